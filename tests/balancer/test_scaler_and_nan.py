"""GradScaler, and `check_finite=False`, the way of accelerators, on the CPU: an overflow or NaN keeps the state."""

import copy
from contextlib import nullcontext

import pytest
import torch
from networks import TASKS, Network, assert_same, batch, gradients, snapshot

import equipoise as eq

METHODS = {
    "ema": lambda: (eq.EMA(), None),
    "rlw": lambda: (eq.RLW(seed=0), None),
    "uw": lambda: (eq.UW(), None),
    "famo": lambda: (eq.FAMO(), None),
    "gradnorm": lambda: (None, eq.GradNorm()),
    "imtl-g": lambda: (eq.IMTLL(), eq.IMTLG()),
    "mgda": lambda: (eq.DWA(interval=1), eq.MGDA()),
    "pcgrad": lambda: (eq.RLW(seed=0), eq.PCGrad(seed=0)),
    "graddrop": lambda: (eq.EMA(), eq.GradDrop(seed=0)),
    "cagrad": lambda: (eq.REMA(), eq.CAGrad()),
    "nash-mtl": lambda: (eq.DWEMA(), eq.NashMTL()),
}


@pytest.mark.parametrize("name", METHODS)
def test_scaler_scales_grad_and_nothing_else(name):
    model, twin = Network().double(), Network().double()
    balancer, expected = (eq.Balancer(TASKS, *METHODS[name]()) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for index in range(3):
        for m in (model, twin):
            m.zero_grad()
        for b in (balancer, expected):
            b.zero_grad()
        weights = balancer.backward(model.losses(batch(index)), scaler=scaler)
        expected_weights = expected.backward(twin.losses(batch(index)))
        for found, wanted in zip(gradients(model).values(), gradients(twin).values(), strict=True):
            if wanted is not None:
                torch.testing.assert_close(found, 1024 * wanted, rtol=1e-6, atol=1e-8)
        for one, other in zip(balancer.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(one.grad, 1024 * other.grad)
        for task, weight in weights.items():
            torch.testing.assert_close(weight, expected_weights[task])


@pytest.mark.parametrize("overflow", ["last", "earlier micro-batch"])
@pytest.mark.parametrize("name", METHODS)
def test_overflow_leaves_balancing_state_alone(name, overflow):
    """Losses are finite, a gradient is not; the scaler skips the step and so does the balancer."""
    model = Network()
    balancer = eq.Balancer(TASKS, *METHODS[name]())
    optimizer = torch.optim.SGD([*model.parameters(), *balancer.parameters()], lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    balancer.backward(model.losses(batch(0)), scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    before = snapshot(balancer)[0]
    state = copy.deepcopy(model.state_dict())

    overflowing = model.losses(batch(1))
    overflowing["b"] = overflowing["b"] + (model.trunk.weight - model.trunk.weight.detach())[0, 0].sqrt()
    if overflow == "last":
        balancer.backward(overflowing, scaler=scaler)
        assert_same(snapshot(balancer)[0], before)
    else:
        balancer.backward(overflowing, scaler=scaler, accumulate=True)
        assert_same(snapshot(balancer)[0], before)
        balancer.backward(model.losses(batch(2)), scaler=scaler)
        if balancer.aggregator is not None:
            assert_same(snapshot(balancer)[0], before)
    assert not all(g is None or g.isfinite().all() for g in gradients(model).values())
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 1.0
    assert_same(model.state_dict(), state)

    balancer.zero_grad()
    optimizer.zero_grad()
    balancer.backward(model.losses(batch(3)), scaler=scaler)
    scaler.step(optimizer)
    assert all(p.isfinite().all() for p in model.parameters())
    assert not torch.equal(model.trunk.weight, state["trunk.weight"])


def test_a_disabled_scaler_is_none():
    model, twin = Network(), Network()
    eq.Balancer(TASKS, aggregator=eq.IMTLG()).backward(
        model.losses(batch(0)), scaler=torch.amp.GradScaler("cpu", enabled=False)
    )
    eq.Balancer(TASKS, aggregator=eq.IMTLG()).backward(twin.losses(batch(0)))
    for one, other in zip(gradients(model).values(), gradients(twin).values(), strict=True):
        if one is not None:
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", METHODS)
def test_unchecked_nan_shows_in_the_gradients_and_not_in_the_state(name, value):
    model = Network()
    balancer = eq.Balancer(TASKS, *METHODS[name](), check_finite=False)
    balancer.backward(model.losses(batch(0)))
    model.zero_grad()
    before = snapshot(balancer)[0]
    losses = model.losses(batch(1))
    losses["b"] = losses["b"] * value
    balancer.backward(losses)
    assert_same(snapshot(balancer)[0], before)
    assert model.trunk.weight.grad.isnan().all()
    model.zero_grad()
    balancer.zero_grad()
    balancer.backward(model.losses(batch(2)))
    assert all(g is None or g.isfinite().all() for g in gradients(model).values())
    assert all(p.grad.isfinite().all() for p in balancer.parameters())


@pytest.mark.parametrize("name", ["ema", "famo", "gradnorm", "mgda", "graddrop", "cagrad", "nash-mtl"])
@pytest.mark.parametrize("looks", [True, False], ids=["on the host", "as on a device"])
def test_a_loss_below_zero_is_left_out(name, looks):
    """On the CPU, and as on an accelerator, where the host does not look at losses: there its head gets zeros."""
    model, twin = Network().double(), Network().double()
    balancer, expected = (eq.Balancer(TASKS, *METHODS[name](), check_finite=looks) for _ in range(2))
    for index in range(4):
        broken = index in (1, 2)
        losses = model.losses(batch(index))
        if broken:
            losses["b"] = losses["b"] - 1e4
        with pytest.warns(UserWarning, match="the loss of task 'b' is 0 or below") if index == 1 else nullcontext():
            weights = balancer.backward(losses)
        wanted = expected.backward(twin.losses(batch(index), ["a", "c"] if broken else TASKS))
        for task, weight in weights.items():
            torch.testing.assert_close(weight, wanted.get(task, torch.zeros_like(weight)), rtol=1e-9, atol=1e-12)
        for found, other in zip(gradients(model).values(), gradients(twin).values(), strict=True):
            if found is not None:
                torch.testing.assert_close(found, other, rtol=1e-9, atol=1e-12)
    for (key, found), other in zip(balancer.state_dict().items(), expected.state_dict().values(), strict=True):
        if isinstance(found, torch.Tensor):
            torch.testing.assert_close(found, other, rtol=1e-9, atol=1e-12, msg=key)


@pytest.mark.parametrize("name", ["ema", "famo", "gradnorm"])
def test_where_no_task_remains_the_step_contributes_nothing(name):
    model = Network()
    balancer = eq.Balancer(TASKS, *METHODS[name]())
    balancer.backward(model.losses(batch(0)))
    before, grads = snapshot(balancer)[0], gradients(model)
    with pytest.warns(UserWarning, match="'a', 'b', 'c'"):
        assert balancer.backward({task: loss - 1e4 for task, loss in model.losses(batch(1)).items()}) == {}
    assert_same(snapshot(balancer)[0], before)
    assert_same(gradients(model), grads)


def test_check_finite_true_raises():
    model = Network()
    with pytest.raises(ValueError, match="'c' is inf: a NaN or infinite loss"):
        eq.Balancer(TASKS, check_finite=True).backward(
            {**model.losses(batch(0)), "c": model.losses(batch(0))["c"] * torch.inf}
        )
