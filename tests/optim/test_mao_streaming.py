"""MAO's streaming mode: each gradient goes into its moments at once, and the numbers stay the same."""

import pytest
import torch
from networks import TASKS, Network, batch

import equipoise as eq


def network():
    return Network().double()


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"max_norm": 0.5}, {"fused": False}])
def test_streaming_is_the_same_update(options):
    streamed, kept = network(), network()
    streaming = eq.MAO(streamed.parameters(), TASKS, lr=0.01, streaming=True, **options)
    keeping = eq.MAO(kept.parameters(), TASKS, lr=0.01, **options)
    for index in range(20):
        present = ("a", "c") if index % 3 == 1 else TASKS
        for model, optimizer in ((streamed, streaming), (kept, keeping)):
            weights = optimizer.backward(model.losses(batch(index), present))
            assert tuple(weights) == present
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
    optimizer.backward(model.losses(batch(0)))
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_parameters_of_others_get_their_gradient():
    model, reference = network(), network()
    eq.MAO(model.trunk.parameters(), TASKS, streaming=True).backward(model.losses(batch(0)))
    sum(reference.losses(batch(0)).values()).backward()
    for name, parameter in reference.named_parameters():
        own = model.get_parameter(name).grad
        if name.startswith("trunk") or parameter.grad is None:
            assert own is None
        else:
            torch.testing.assert_close(own, parameter.grad)


@pytest.mark.parametrize("options", [{"accumulate": True}, {"scaler": torch.amp.GradScaler("cpu")}])
def test_what_streaming_cannot_do_is_an_error_that_changes_nothing(options):
    model = network()
    optimizer = eq.MAO(model.parameters(), TASKS, streaming=True)
    with pytest.raises(ValueError, match="streaming=False"):
        optimizer.backward(model.losses(batch(0)), **options)
    assert not optimizer.state


def test_a_second_backward_before_the_step_is_an_error():
    model = network()
    optimizer = eq.MAO(model.parameters(), TASKS, streaming=True)
    optimizer.backward(model.losses(batch(0)))
    with pytest.raises(ValueError, match="one backward"):
        optimizer.backward(model.losses(batch(0)))
