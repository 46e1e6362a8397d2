"""MAO's streaming mode: each gradient goes into its moments at once, and the numbers stay the same."""

import copy
import weakref

import pytest
import torch
from networks import TASKS, Network, assert_same, batch, snapshot

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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.1}, {"max_norm": 0.5}, {"fused": False}, {"groups": 2, "weight_decay": 0.1}],
    ids=str,
)
def test_streaming_is_the_same_bit_for_bit_in_every_dtype(options, dtype):
    results = []
    for streaming in (True, False):
        model = Network().to(dtype)
        optimizer = eq.MAO(model.parameters(), TASKS, lr=0.01, eps=1e-4, streaming=streaming, **options)
        for index in range(20):
            optimizer.backward(model.losses(batch(index), ("a", "c") if index % 3 == 1 else TASKS))
            optimizer.step()
            optimizer.zero_grad()
        results.append(snapshot(model, optimizer))
        assert all(p.isfinite().all() for p in model.parameters())
    assert_same(*results)
    assert not torch.equal(model.trunk.weight, Network().to(dtype).trunk.weight)


def test_options_count_as_they_are_at_backward():
    """A scheduler that goes on between backward and step, say, changes the next step."""
    streamed, kept = network(), network()
    streaming = eq.MAO(streamed.parameters(), TASKS, lr=0.01, weight_decay=0.1, streaming=True)
    keeping = eq.MAO(kept.parameters(), TASKS, lr=0.01, weight_decay=0.1)
    for index in range(4):
        streaming.backward(streamed.losses(batch(index)))
        keeping.backward(kept.losses(batch(index)))
        keeping.step()
        for optimizer in (streaming, keeping):
            optimizer.param_groups[0]["lr"] *= 0.5
        streaming.step()
        keeping.zero_grad()
        assert_same(streamed.state_dict(), kept.state_dict())


def test_cleared_in_place_of_a_step_leaves_the_parameters_and_keeps_the_moments():
    model = network()
    optimizer = eq.MAO(model.parameters(), TASKS, lr=0.01, weight_decay=0.1, streaming=True)
    before = copy.deepcopy(model.state_dict())
    optimizer.backward(model.losses(batch(0)))
    optimizer.zero_grad()
    optimizer.step()
    assert_same(model.state_dict(), before)
    assert optimizer.state[model.trunk.weight]["step"].tolist() == [1.0, 1.0, 1.0]
    optimizer.backward(model.losses(batch(1)))
    optimizer.step()
    assert optimizer.state[model.trunk.weight]["step"].tolist() == [2.0, 2.0, 2.0]
    after = copy.deepcopy(model.state_dict())
    assert not torch.equal(after["trunk.weight"], before["trunk.weight"])
    optimizer.step()
    assert_same(model.state_dict(), after)


def test_one_gradient_is_there_at_a_time(monkeypatch):
    """A task's gradient is gone before the next one's backward pass."""
    model = network()
    optimizer = eq.MAO(model.parameters(), TASKS, max_norm=1.0, streaming=True)
    compute, gradients, alive = optimizer._company.now().rows, [], []

    def rows(*arguments, **options):
        for row in compute(*arguments, **options):
            alive.append(sum(gradient() is not None for gradient in gradients))
            gradients.extend(weakref.ref(gradient) for gradient in row.values())
            yield row
            del row

    monkeypatch.setattr(optimizer._company.now(), "rows", rows)
    optimizer.backward(model.losses(batch(0)))
    assert gradients
    assert alive == [0, 0, 0]


def test_parameters_stay_until_the_step():
    model = network()
    optimizer = eq.MAO(model.parameters(), TASKS, lr=0.01, streaming=True)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.backward(model.losses(batch(0)))
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None or p.grad.norm() < 1e-20 for p in model.parameters())  # a mark at most


def test_parameters_of_others_get_their_gradient():
    model, reference = network(), network()
    eq.MAO(model.trunk.parameters(), TASKS, streaming=True).backward(model.losses(batch(0)))
    sum(reference.losses(batch(0)).values()).backward()
    for name, parameter in reference.named_parameters():
        own = model.get_parameter(name).grad
        if name.startswith("trunk") or parameter.grad is None:
            assert own is None or own.norm() < 1e-20  # a mark at most
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
