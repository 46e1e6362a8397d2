"""MAO's streaming mode: each gradient goes into its moments at once, and the numbers stay the same."""

import pytest
import torch
from torch import nn

import equipoise as eq

TASKS = ["a", "b", "c"]


def network():
    torch.manual_seed(1)
    return nn.ModuleDict(
        {"trunk": nn.Linear(4, 8), **{task: nn.Linear(8, 1) for task in TASKS}, "unused": nn.Linear(2, 2)}
    ).double()


def losses(model, inputs, tasks=TASKS):
    features = model["trunk"](inputs).tanh()
    return {task: 10.0 ** TASKS.index(task) * (model[task](features) - 1).square().mean() for task in tasks}


def batches(count):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(6, 4, dtype=torch.float64, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"max_norm": 0.5}, {"fused": False}])
def test_streaming_is_the_same_update(options):
    streamed, kept = network(), network()
    streaming = eq.MAO(streamed.parameters(), TASKS, lr=0.01, streaming=True, **options)
    keeping = eq.MAO(kept.parameters(), TASKS, lr=0.01, **options)
    for index, inputs in enumerate(batches(20)):
        present = ["a", "c"] if index % 3 == 1 else TASKS
        for model, optimizer in ((streamed, streaming), (kept, keeping)):
            weights = optimizer.backward(losses(model, inputs, present))
            assert list(weights) == present
            optimizer.step()
            optimizer.zero_grad()
        for one, other in zip(streamed.parameters(), kept.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    for one, other in zip(streaming.state.values(), keeping.state.values(), strict=True):
        assert one.keys() == other.keys()
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=1e-12, atol=1e-14)


def test_parameters_stay_until_the_step():
    model = network()
    optimizer = eq.MAO(model.parameters(), TASKS, lr=0.01, streaming=True)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.backward(losses(model, batches(1)[0]))
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_parameters_of_others_get_their_gradient():
    model, reference = network(), network()
    inputs = batches(1)[0]
    eq.MAO(model["trunk"].parameters(), TASKS, streaming=True).backward(losses(model, inputs))
    sum(losses(reference, inputs).values()).backward()
    for task in TASKS:
        torch.testing.assert_close(model[task].weight.grad, reference[task].weight.grad)


@pytest.mark.parametrize("options", [{"accumulate": True}, {"scaler": torch.amp.GradScaler("cpu")}])
def test_what_streaming_cannot_do_is_an_error_that_changes_nothing(options):
    model = network()
    optimizer = eq.MAO(model.parameters(), TASKS, streaming=True)
    with pytest.raises(ValueError, match="streaming=False"):
        optimizer.backward(losses(model, batches(1)[0]), **options)
    assert not optimizer.state


def test_a_second_backward_before_the_step_is_an_error():
    model = network()
    optimizer = eq.MAO(model.parameters(), TASKS, streaming=True)
    inputs = batches(1)[0]
    optimizer.backward(losses(model, inputs))
    with pytest.raises(ValueError, match="one backward"):
        optimizer.backward(losses(model, inputs))
