"""Balancer: what ends in `.grad`, what is returned, and what is kept."""

import copy
import io
import math

import pytest
import torch
from networks import TASKS, Network, assert_same, batch, gradients, snapshot
from torch import nn

import equipoise as eq


class Recorder(eq.GramianAggregator):
    """Fixed weights by position; remembers what it was shown."""

    def __init__(self, weights):
        super().__init__()
        self.given = weights
        self.gramians = []
        self.losses = []

    def weights(self, gramian, losses):
        self.gramians.append(gramian)
        self.losses.append(losses)
        return gramian.new_tensor(self.given[: len(losses)])


def task_gradients_by_hand(model, x, tasks=TASKS):
    """{task: {name: gradient}}, each from a forward and backward pass of its own."""
    result = {}
    for task in tasks:
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(model.losses(x, [task])[task], list(named.values()), allow_unused=True)
        result[task] = {name: g for name, g in zip(named, found, strict=True) if g is not None}
    return result


def gramian_by_hand(rows, names):
    flat = [
        torch.cat([row[n].flatten() if n in row else torch.zeros_like(some(rows, n)).flatten() for n in names])
        for row in rows.values()
    ]
    return torch.tensor([[float(one @ other) for other in flat] for one in flat], dtype=torch.float64)


def some(rows, name):
    return next(row[name] for row in rows.values() if name in row)


def weighted(rows, name, weights):
    """`Σ_k w_k g_k` of a parameter, over the tasks that reach it."""
    return sum(weights[task] * row[name] for task, row in rows.items() if name in row)


def shared_names(model):
    shared = set(model.shared())
    return [name for name, p in model.named_parameters() if p in shared]


def assert_gradients(model, expected, **tolerance):
    found = {name: g for name, g in gradients(model).items() if g is not None}
    assert set(found) == set(expected)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], **(tolerance or {"rtol": 1e-10, "atol": 1e-12}))


# --- without an aggregator: plain backward -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_is_plain_backward_bit_for_bit(dtype):
    model, twin = Network().to(dtype), Network().to(dtype)
    balancer = eq.Balancer(TASKS)
    for index in range(3):
        weights = balancer.backward(model.losses(batch(index)))
        losses = list(twin.losses(batch(index)).values())
        torch.autograd.backward(losses)  # what sum(losses).backward() does
        assert_same(gradients(model), gradients(twin))
    assert {task: weight.item() for task, weight in weights.items()} == dict.fromkeys(TASKS, 1.0)


def test_static_weights_are_a_weighted_sum():
    model, twin = Network().double(), Network().double()
    given = {"c": 3.0, "a": 0.5, "b": 0.0}
    weights = eq.Balancer(TASKS, eq.Static(given)).backward(model.losses(batch(0)))
    sum(given[task] * loss for task, loss in twin.losses(batch(0)).items()).backward()
    assert_gradients(model, {n: g for n, g in gradients(twin).items() if g is not None})
    assert {task: w.item() for task, w in weights.items()} == given
    assert list(weights) == list(TASKS)
    assert not any(w.requires_grad for w in weights.values())


def test_gls_is_the_gradient_of_the_geometric_mean():
    model, twin = Network().double(), Network().double()
    eq.Balancer(TASKS, eq.GeometricMean(eq.Equal())).backward(model.losses(batch(0)))
    math.prod(twin.losses(batch(0)).values()).pow(1 / 3).backward()
    assert_gradients(model, {n: g for n, g in gradients(twin).items() if g is not None})


def test_uw_trains_its_own_parameters():
    model, twin = Network().double(), Network().double()
    balancer = eq.Balancer(TASKS, eq.UW()).double()
    own = list(balancer.parameters())
    log_variance = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([*model.parameters(), *own], lr=0.1)
    reference = torch.optim.SGD([*twin.parameters(), log_variance], lr=0.1)
    for index in range(4):
        optimizer.zero_grad()
        balancer.backward(model.losses(batch(index)))
        optimizer.step()
        reference.zero_grad()
        losses = torch.stack(list(twin.losses(batch(index)).values()))
        (0.5 * (-log_variance).exp() * losses + 0.5 * log_variance).sum().backward()
        reference.step()
    torch.testing.assert_close(torch.stack(own).detach(), log_variance.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model.trunk.weight, twin.trunk.weight, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("aggregator", [None, [1.0, 1.0, 1.0]], ids=["together", "by task"])
def test_adds_into_existing_grad_in_place(aggregator):
    model = Network().double()
    rows = task_gradients_by_hand(model, batch(0))
    start = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            start[name] = parameter.grad = torch.randn_like(parameter)
    before = {name: g.clone() for name, g in start.items()}
    eq.Balancer(TASKS, aggregator=aggregator and Recorder(aggregator)).backward(model.losses(batch(0)))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is start[name]
            added = weighted(rows, name, dict.fromkeys(TASKS, 1.0)) if not name.startswith("unused") else 0.0
            torch.testing.assert_close(parameter.grad, before[name] + added, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("aggregator", [None, [0.5, 0.25, 2.0]])
def test_hooks_of_the_parameters_are_called(aggregator):
    """Both kinds, and what they do counts."""
    model = Network()
    seen = []
    model.trunk.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    model.heads["a"].weight.register_hook(lambda g: g * 0)
    balancer = eq.Balancer(TASKS, aggregator=aggregator and Recorder(aggregator))
    for index in range(2):
        balancer.backward(model.losses(batch(index)))
        assert len(seen) == index + 1
        assert torch.equal(seen[-1], model.trunk.weight.grad)
    assert not model.heads["a"].weight.grad.any()


def weighting_of(forward):
    return type("Odd", (eq.Weighting,), {"forward": lambda self, losses: forward(losses)})()


def objective_of(forward):
    return type("Odd", (eq.Objective,), {"forward": lambda self, losses: forward(losses)})()


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (
            weighting_of(lambda losses: losses[:2]),
            r"Odd must return a weight for each of the 3 losses, found shape \(2,\)",
        ),
        (eq.GeometricMean(weighting_of(lambda losses: None)), "Odd must return a weight for each .* found None"),
        (objective_of(lambda losses: losses), "Odd must return a 0-dim tensor .* found tensor"),
        (objective_of(lambda losses: losses.detach().sum()), "not detached from them"),
        (objective_of(lambda losses: None), "found None"),
    ],
)
def test_methods_of_ones_own_are_told_what_they_have_to_return(objective, words):
    model = Network()
    balancer = eq.Balancer(TASKS, objective, eq.GradNorm())
    before = snapshot(model, balancer)
    with pytest.raises(ValueError, match=words):
        balancer.backward(model.losses(batch(0)))
    assert_same(snapshot(model, balancer), before)


def test_says_what_it_is_made_of():
    text = repr(eq.Balancer(TASKS, eq.EMA(beta=0.25), eq.CAGrad(c=0.125, rescale="1+c")))
    assert "CAGrad(c=0.125, rescale='1+c')" in text
    assert "beta=0.25" in text
    assert "DWA" not in text
    assert repr(eq.Static({"a": 1, "b": 2.5})) == "Static(weights={'a': 1.0, 'b': 2.5})"
    assert repr(eq.make_method("ew", Network(), TASKS)) == "Method('ew', tasks=['a', 'b', 'c'])"


def test_the_order_of_the_mapping_does_not_matter():
    model, twin = Network(), Network()
    balancer, expected = (eq.Balancer(TASKS, eq.EMA(), Recorder([0.1, 2.0, -3.0])) for _ in range(2))
    weights = balancer.backward(dict(reversed(model.losses(batch(0)).items())))
    assert_same(weights, expected.backward(twin.losses(batch(0))))
    assert_same(gradients(model), gradients(twin))


# --- with an aggregator: who gets what -----------------------------------------------------------------------------


def test_shared_parameters_are_aggregated_and_the_others_get_their_own():
    model = Network().double()
    rows = task_gradients_by_hand(model, batch(0))
    given = {"a": 0.3, "b": -2.0, "c": 5.0}
    coefficients = {"a": 2.0, "b": 0.5, "c": 1.5}
    aggregator = Recorder(list(given.values()))
    losses = model.losses(batch(0))
    weights = eq.Balancer(TASKS, eq.Static(coefficients), aggregator).backward(losses)
    shared = shared_names(model)
    scaled = {task: {name: coefficients[task] * g for name, g in row.items()} for task, row in rows.items()}
    expected = {
        name: weighted(scaled, name, given if name in shared else dict.fromkeys(TASKS, 1.0))
        for name in dict.fromkeys(name for row in rows.values() for name in row)
    }
    assert_gradients(model, expected)
    torch.testing.assert_close(aggregator.gramians[0], gramian_by_hand(scaled, shared), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(aggregator.losses[0], torch.stack(list(losses.values())).detach())
    for task, weight in weights.items():
        assert weight.item() == pytest.approx(coefficients[task] * given[task])


@pytest.mark.parametrize("as_module", [True, False])
def test_shared_overrides_what_is_found(as_module):
    model = Network().double()
    rows = task_gradients_by_hand(model, batch(0))
    given = {"a": 0.3, "b": -2.0, "c": 5.0}
    aggregator = Recorder(list(given.values()))
    shared = model.trunk if as_module else iter([model.trunk.weight, model.trunk.bias])
    eq.Balancer(TASKS, aggregator=aggregator, shared=shared).backward(model.losses(batch(0)))
    names = ["trunk.weight", "trunk.bias"]
    expected = {
        name: weighted(rows, name, given if name in names else dict.fromkeys(TASKS, 1.0))
        for name in dict.fromkeys(name for row in rows.values() for name in row)
    }
    assert_gradients(model, expected)
    torch.testing.assert_close(aggregator.gramians[0], gramian_by_hand(rows, names), rtol=1e-9, atol=1e-12)


def test_shared_may_name_what_one_task_alone_reaches():
    model = Network().double()
    rows = task_gradients_by_hand(model, batch(0))
    aggregator = Recorder([0.3, -2.0, 5.0])
    eq.Balancer(TASKS, aggregator=aggregator, shared=[model.trunk.weight, model.own.weight]).backward(
        model.losses(batch(0))
    )
    torch.testing.assert_close(model.own.weight.grad, 5.0 * rows["c"]["own.weight"])
    torch.testing.assert_close(model.own.bias.grad, rows["c"]["own.bias"])


@pytest.mark.parametrize("probe", ["trunk.weight", "branch"])
def test_probe_restricts_the_statistics_and_the_weights_apply_to_all(probe):
    model = Network().double()
    rows = task_gradients_by_hand(model, batch(0))
    given = {"a": 0.3, "b": -2.0, "c": 5.0}
    aggregator = Recorder(list(given.values()))
    names = ["trunk.weight"] if probe == "trunk.weight" else ["branch.weight", "branch.bias"]
    parameters = [model.trunk.weight] if probe == "trunk.weight" else model.branch
    weights = eq.Balancer(TASKS, aggregator=aggregator, probe=parameters).backward(model.losses(batch(0)))
    shared = shared_names(model)
    expected = {
        name: weighted(rows, name, given if name in shared else dict.fromkeys(TASKS, 1.0))
        for name in dict.fromkeys(name for row in rows.values() for name in row)
    }
    assert_gradients(model, expected)
    torch.testing.assert_close(aggregator.gramians[0], gramian_by_hand(rows, names), rtol=1e-9, atol=1e-12)
    assert {task: w.item() for task, w in weights.items()} == pytest.approx(given)


@pytest.mark.parametrize("option", ["scaler", "accumulate", "missing", "retain_graph"])
def test_probe_with_everything_else(option):
    """The probe changes the Gramian alone: with weights that ignore it, the gradients are those without a probe."""
    results = []
    for probed in (True, False):
        model = Network().double()
        balancer = eq.Balancer(
            TASKS, eq.EMA(), Recorder([0.3, -2.0, 5.0]), probe=[model.trunk.weight] if probed else None
        )
        balancer.backward(model.losses(batch(0)))
        if option == "scaler":
            balancer.backward(model.losses(batch(1)), scaler=torch.amp.GradScaler("cpu", init_scale=64.0))
        elif option == "accumulate":
            balancer.backward(model.losses(batch(1)), accumulate=True)
            balancer.backward(model.losses(batch(2)))
        elif option == "missing":
            balancer.backward(model.losses(batch(1), ["a", "c"]))
        else:
            losses = model.losses(batch(1))
            balancer.backward(losses, retain_graph=True)
            balancer.backward(losses)
        results.append({n: g for n, g in gradients(model).items() if g is not None})
    for name, gradient in results[0].items():
        torch.testing.assert_close(gradient, results[1][name], rtol=1e-10, atol=1e-12)


def test_probe_takes_one_pass_a_task_down_to_the_probe_and_one_through_the_trunk():
    model = Network()
    passes = {"trunk": 0, "branch": 0}
    for part in passes:
        getattr(model, part).register_full_backward_hook(
            lambda *_, part=part: passes.__setitem__(part, passes[part] + 1)
        )
    eq.Balancer(["a", "b"], aggregator=eq.IMTLG(), probe=model.branch).backward(
        model.losses(batch(0).requires_grad_(), ["a", "b"])
    )
    assert passes["trunk"] == 1


def test_a_probe_that_the_tasks_present_do_not_reach():
    """The branch is of a and b alone: with c alone the statistics are taken on the trunk."""
    model = Network().double()
    aggregator = Recorder([2.0, 3.0, 5.0])
    balancer = eq.Balancer(TASKS, aggregator=aggregator, probe=[*model.branch.parameters(), *model.unused.parameters()])
    balancer.backward(model.losses(batch(0)))
    model.zero_grad()
    weights = balancer.backward(model.losses(batch(1), ["c"]))
    rows = task_gradients_by_hand(model, batch(1), ["c"])
    assert weights["c"].item() == 2.0
    torch.testing.assert_close(aggregator.gramians[1], gramian_by_hand(rows, ["trunk.weight", "trunk.bias"]))
    assert_gradients(model, {name: (2.0 if "trunk" in name else 1.0) * g for name, g in rows["c"].items()})


@pytest.mark.parametrize("where", ["head", "elsewhere", "frozen"])
def test_a_probe_that_no_two_losses_reach_is_an_error(where):
    model = Network()
    probe = {"head": model.heads["a"], "elsewhere": nn.Linear(2, 2), "frozen": model.frozen}[where]
    balancer = eq.Balancer(TASKS, eq.EMA(), eq.IMTLG(), probe=probe, model=model)
    before = snapshot(model, balancer)
    with pytest.raises(ValueError, match="probe= holds no parameter that two losses reach"):
        balancer.backward(model.losses(batch(0)))
    assert_same(snapshot(model, balancer), before)


def test_retain_graph():
    for aggregator in (None, [1.0, 2.0, 3.0]):
        model = Network().double()
        balancer = eq.Balancer(TASKS, aggregator=aggregator and Recorder(aggregator))
        losses = model.losses(batch(0))
        balancer.backward(losses, retain_graph=True)
        once = gradients(model)
        balancer.backward(losses)
        for name, gradient in gradients(model).items():
            if gradient is not None:
                torch.testing.assert_close(gradient, 2 * once[name])
        with pytest.raises(RuntimeError, match="second time"):
            balancer.backward(losses)


def test_single_loss_reaching_everything_twice():
    """The same loss under two names: both rows are equal."""
    model = Network().double()
    loss = model.losses(batch(0), ["a"])["a"]
    eq.Balancer(["one", "other"], aggregator=Recorder([0.25, 0.5])).backward({"one": loss, "other": loss})
    rows = task_gradients_by_hand(model, batch(0), ["a"])
    assert_gradients(model, {name: 0.75 * g for name, g in rows["a"].items()})


def test_one_task_with_an_aggregator():
    model = Network().double()
    eq.Balancer(["a"], aggregator=eq.MGDA()).backward(model.losses(batch(0), ["a"]))
    assert_gradients(model, task_gradients_by_hand(model, batch(0), ["a"])["a"])


def test_no_shared_parameters_is_an_error_that_changes_nothing():
    model = Network()
    heads = {task: nn.Linear(4, 1) for task in TASKS}
    balancer = eq.Balancer(TASKS, eq.EMA(), eq.PCGrad())
    balancer.backward(model.losses(batch(0)))
    before = snapshot(model, balancer)
    apart = {task: head(batch(0)).square().mean() for task, head in heads.items()}
    with pytest.raises(ValueError, match=r"PCGrad .* found none.*trunk is not frozen or detached"):
        balancer.backward(apart)
    assert_same(snapshot(model, balancer), before)
    assert all(p.grad is None for head in heads.values() for p in head.parameters())
    given = eq.Balancer(TASKS, aggregator=eq.PCGrad(), shared=nn.Linear(1, 1))
    with pytest.raises(ValueError, match="shared="):
        given.backward(model.losses(batch(0)))


# --- missing tasks --------------------------------------------------------------------------------------------------


def test_missing_tasks_leave_the_rest_as_if_alone():
    model = Network().double()
    rows = task_gradients_by_hand(model, batch(0), ["a", "c"])
    aggregator = Recorder([0.3, -2.0])
    weights = eq.Balancer(TASKS, aggregator=aggregator).backward(model.losses(batch(0), ["a", "c"]))
    trunk = ["trunk.weight", "trunk.bias"]
    given = {"a": 0.3, "c": -2.0}
    expected = {
        name: weighted(rows, name, given if name in trunk else dict.fromkeys(TASKS, 1.0))
        for name in dict.fromkeys(name for row in rows.values() for name in row)
    }
    assert_gradients(model, expected)
    assert list(weights) == ["a", "c"]
    torch.testing.assert_close(aggregator.gramians[0], gramian_by_hand(rows, trunk), rtol=1e-9, atol=1e-12)


def test_once_shared_always_shared():
    model = Network().double()
    balancer = eq.Balancer(TASKS, aggregator=Recorder([0.5, 0.5, 0.5]))
    balancer.backward(model.losses(batch(0)))
    model.zero_grad()
    rows = task_gradients_by_hand(model, batch(1), ["a"])["a"]
    balancer.backward(model.losses(batch(1), ["a"]))
    shared = shared_names(model)
    assert_gradients(model, {name: (0.5 if name in shared else 1.0) * g for name, g in rows.items()})


def test_tasks_that_share_nothing_may_be_alone_in_a_step():
    """Only a step in which every task is present shows that nothing is shared."""
    model = Network().double()
    balancer = eq.Balancer(TASKS, aggregator=eq.IMTLG())
    rows = task_gradients_by_hand(model, batch(0), ["b"])["b"]
    balancer.backward(model.losses(batch(0), ["b"]))
    assert_gradients(model, rows)


# --- GradScaler -----------------------------------------------------------------------------------------------------

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


# --- check_finite=False, the way of accelerators, on the CPU --------------------------------------------------------


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
def test_unchecked_loss_below_zero_makes_the_step_contribute_nothing(name):
    model = Network()
    balancer = eq.Balancer(TASKS, *METHODS[name](), check_finite=False)
    balancer.backward(model.losses(batch(0)))
    before, grads = snapshot(balancer)[0], gradients(model)
    losses = model.losses(batch(1))
    losses["b"] = losses["b"] - 1e4
    balancer.backward(losses)
    assert_same(snapshot(balancer)[0], before)
    assert_same(gradients(model), grads)


def test_check_finite_true_raises():
    model = Network()
    with pytest.raises(ValueError, match="'c' is inf: a NaN or infinite loss"):
        eq.Balancer(TASKS, check_finite=True).backward(
            {**model.losses(batch(0)), "c": model.losses(batch(0))["c"] * torch.inf}
        )


# --- epochs, accuracies, after_step ---------------------------------------------------------------------------------


def losses_of(**values):
    return {task: torch.tensor(value, requires_grad=True) * 1.0 for task, value in values.items()}


def weights_of(balancer, **values):
    return [w.item() for w in balancer.backward(losses_of(**values)).values()]


def test_end_epoch_rolls_dwa():
    balancer = eq.Balancer(["a", "b"], eq.DWA(temperature=2.0))
    assert weights_of(balancer, a=4.0, b=1.0) == [1.0, 1.0]
    balancer.end_epoch()
    assert weights_of(balancer, a=2.0, b=1.0) == [1.0, 1.0]
    weights_of(balancer, a=4.0, b=2.0)
    balancer.end_epoch()
    rates = [3.0 / 4.0, 1.5 / 1.0]
    total = sum(math.exp(rate / 2) for rate in rates)
    assert weights_of(balancer, a=1.0, b=1.0) == pytest.approx([2 * math.exp(rate / 2) / total for rate in rates])


def test_end_epoch_gives_dtp_its_accuracies():
    balancer = eq.Balancer(["a", "b"], eq.DTP(gamma=1.0))
    assert balancer.needs_accuracies
    assert not eq.Balancer(["a", "b"]).needs_accuracies
    assert weights_of(balancer, a=1.0, b=1.0) == [1.0, 1.0]
    balancer.end_epoch({"b": torch.tensor(0.9), "a": 0.5})
    expected = [-(1 - k) * math.log(k) for k in (0.5, 0.9)]
    assert weights_of(balancer, a=1.0, b=1.0) == pytest.approx(expected)
    balancer.end_epoch({"a": 1.0})
    kappa = 0.1 * 1.0 + 0.9 * 0.5
    assert weights_of(balancer, a=1.0, b=1.0) == pytest.approx([-(1 - kappa) * math.log(kappa), expected[1]])


@pytest.mark.parametrize(
    ("metrics", "error", "words"),
    [
        ({"a": 0.5, "x": 0.5}, ValueError, "metrics: unknown task 'x'; the tasks are 'a', 'b', 'c'"),
        ({"a": 0.5, "b": 1.5}, ValueError, "accuracy of task 'b' must be .*≤ 1, found 1.5"),
        ({"a": 0.5, "b": -0.1}, ValueError, "accuracy of task 'b' must be .*≥ 0.*found -0.1"),
        ({"a": 0.5, "b": torch.tensor(torch.nan)}, ValueError, "accuracy of task 'b'"),
        ([0.5, 0.5], TypeError, "metrics must be a mapping from task to accuracy, found list"),
    ],
)
def test_bad_metrics_change_nothing(metrics, error, words):
    model = Network()
    balancer = eq.Balancer(TASKS, eq.GeometricMean(eq.DTP()))
    balancer.backward(model.losses(batch(0)))
    balancer.end_epoch({"a": 0.2})
    before = snapshot(model, balancer)
    with pytest.raises(error, match=words):
        balancer.end_epoch(metrics)
    assert_same(snapshot(model, balancer), before)


def test_after_step_moves_famo_by_its_formula():
    balancer = eq.Balancer(["a", "b"], eq.FAMO(lr=0.1, weight_decay=0.0))
    assert balancer.needs_after_step
    first = weights_of(balancer, a=2.0, b=4.0)
    assert first == pytest.approx([2 / 3, 1 / 3])  # ½/L_k over their sum
    balancer.after_step({"a": torch.tensor(1.0), "b": torch.tensor(4.0)})
    # the gradient's first Adam step is lr times its sign: a improved, so its logit falls and b's rises
    share = math.exp(-0.1) / (math.exp(-0.1) + math.exp(0.1))
    raw = [share / 2.0, (1 - share) / 4.0]
    assert weights_of(balancer, a=2.0, b=4.0) == pytest.approx([r / sum(raw) for r in raw], rel=1e-6)


def test_after_step_checks_and_changes_nothing_then():
    balancer = eq.Balancer(["a", "b"], eq.FAMO())
    weights_of(balancer, a=2.0, b=4.0)
    before = snapshot(balancer)
    for bad in ({"x": torch.tensor(1.0)}, {}, {"a": torch.tensor(torch.nan)}, {"a": torch.ones(2)}):
        with pytest.raises(ValueError):
            balancer.after_step(bad)
    with pytest.raises(TypeError, match="losses must be a mapping from task to scalar tensor, found NoneType"):
        balancer.after_step(None)
    assert_same(snapshot(balancer), before)


def test_a_loss_at_its_bound_is_named_with_the_bound():
    model = Network()
    balancer = eq.Balancer(TASKS, eq.FAMO(lower_bounds={"a": -2.0, "b": 1000.0}))
    with pytest.raises(
        ValueError, match=r"The loss of task 'b' is [\d.]+, but this method needs it to be above 1000\."
    ):
        balancer.backward(model.losses(batch(0)))


def test_after_step_is_free_to_call_for_others():
    balancer = eq.Balancer(["a", "b"], eq.EMA())
    before = snapshot(balancer)[0]
    assert balancer.after_step({"a": torch.tensor(1.0)}) is None
    assert_same(snapshot(balancer)[0], before)


# --- state ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: eq.Balancer(["a", "c", "b"], eq.EMA(), eq.GradNorm()), "other tasks: found"),
        (lambda: eq.Balancer(["a", "b"], eq.EMA(), eq.GradNorm()), "other tasks: found"),
        (lambda: eq.Balancer(TASKS, eq.REMA(), eq.GradNorm()), "other method: found"),
        (lambda: eq.Balancer(TASKS, eq.GeometricMean(eq.EMA()), eq.GradNorm()), "other method: found"),
        (lambda: eq.Balancer(TASKS, eq.EMA()), "other method: found"),
        (lambda: nn.Linear(1, 1), "holds no Balancer"),
    ],
)
def test_state_of_another_is_refused_before_anything_changes(other, words):
    model = Network()
    balancer = eq.Balancer(TASKS, eq.EMA(), eq.GradNorm())
    balancer.backward(model.losses(batch(0)))
    before = snapshot(model, balancer)
    with pytest.raises(ValueError, match=words):
        balancer.load_state_dict(other().state_dict())
    assert_same(snapshot(model, balancer), before)


class Whole(nn.Module):
    def __init__(self, objective):
        super().__init__()
        self.network = Network()
        self.balancer = eq.Balancer(TASKS, objective, eq.PCGrad(), model=self.network)


def test_as_a_part_of_another_module():
    torch.manual_seed(0)
    whole = Whole(eq.UW())
    assert any(name.startswith("balancer.objective") for name, _ in whole.named_parameters())
    optimizer = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad])
    for index in range(3):
        optimizer.zero_grad()
        whole.balancer.backward(whole.network.losses(batch(index)))
        optimizer.step()
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    torch.manual_seed(99)
    resumed = Whole(eq.UW())
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert_same(resumed.state_dict(), whole.state_dict())
    for module in (whole, resumed):
        module.zero_grad()
        module.balancer.backward(module.network.losses(batch(5), ["a", "b"]))
    assert_same(gradients(resumed), gradients(whole))


def test_as_a_part_that_a_checkpoint_lacks():
    checkpoint = {f"network.{name}": value for name, value in Network(seed=7).state_dict().items()}
    whole = Whole(None)
    with pytest.raises(RuntimeError, match=r"Missing key.*balancer"):
        whole.load_state_dict(checkpoint)
    whole.load_state_dict(checkpoint, strict=False)
    assert torch.equal(whole.network.trunk.weight, Network(seed=7).trunk.weight)


def test_dtype_moves():
    whole = Whole(eq.UW()).double()
    assert next(whole.balancer.parameters()).dtype == torch.float64
    whole.balancer.backward(whole.network.losses(batch(0)))
    half = Whole(eq.EMA()).bfloat16()
    half.balancer.backward(half.network.losses(batch(0)))
    assert half.network.trunk.weight.grad.isfinite().all()


def test_a_copy_is_independent():
    whole = Whole(eq.EMA())
    whole.balancer.backward(whole.network.losses(batch(0)))
    whole.zero_grad()
    twin = copy.deepcopy(whole)
    before = snapshot(whole)
    for index in (1, 2):
        twin.balancer.backward(twin.network.losses(batch(index)))
    assert_same(snapshot(whole), before)
    for index in (1, 2):
        whole.balancer.backward(whole.network.losses(batch(index)))
    assert_same(snapshot(twin), snapshot(whole))


def test_loading_forgets_what_was_found_shared_later():
    """State saved before anything was found shared gives back a balancer that has found nothing."""
    model = Network()
    balancer = eq.Balancer(TASKS, aggregator=Recorder([0.5, 0.5, 0.5]), model=model)
    fresh = copy.deepcopy(balancer.state_dict())
    balancer.backward(model.losses(batch(0)))
    balancer.load_state_dict(fresh)
    assert_same(balancer.state_dict(), fresh)


# --- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"tasks": []}, ValueError, "tasks is empty"),
        ({"tasks": "abc"}, TypeError, "single string 'abc'"),
        ({"tasks": ["a", "b", "a"]}, ValueError, "found twice: 'a'"),
        ({"tasks": ["a", 3]}, TypeError, "found 3 of type int"),
        ({"tasks": ["a", ""]}, ValueError, "must not be empty"),
        ({"tasks": ["a"], "objective": eq.EMA}, TypeError, "a class needs to be called"),
        ({"tasks": ["a"], "objective": eq.PCGrad()}, TypeError, "Aggregators go into aggregator="),
        ({"tasks": ["a"], "aggregator": eq.EMA()}, TypeError, "Objectives and weightings go into objective="),
        ({"tasks": None}, TypeError, "tasks must be a sequence of names, found None"),
        ({"tasks": ["a"], "model": [1]}, TypeError, r"model must be a torch.nn.Module, found \[1\]"),
        ({"tasks": ["a"], "shared": 3}, TypeError, "shared must be a module or an iterable of parameters, found 3"),
        ({"tasks": ["a"], "shared": []}, ValueError, "shared must be a module with parameters"),
        ({"tasks": ["a"], "shared": nn.ReLU()}, ValueError, "shared must be a module with parameters"),
        ({"tasks": ["a"], "shared": nn.Linear(1, 1).weight}, TypeError, "put it in a list"),
        ({"tasks": ["a"], "shared": ["weight"]}, ValueError, "shared must be"),
        ({"tasks": ["a"], "probe": nn.Linear(1, 1)}, ValueError, "probe needs an aggregator"),
        ({"tasks": ["a"], "aggregator": eq.GradDrop(), "probe": nn.Linear(1, 1)}, ValueError, "found GradDrop"),
        ({"tasks": ["a"], "objective": eq.Static({"b": 1.0})}, ValueError, "unknown task 'b'"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        eq.Balancer(**arguments)


def test_a_method_serves_one_set_of_tasks():
    method = eq.EMA()
    eq.Balancer(["a", "b"], method)
    with pytest.raises(ValueError, match=r"belongs to the tasks \['a', 'b'\].*make a new one"):
        eq.Balancer(["a", "c"], method)


@pytest.mark.parametrize("objective", [eq.Equal, eq.UW])
def test_counts_for_some_micro_batches_only_are_an_error_that_changes_nothing(objective):
    model = Network().double()
    balancer = eq.Balancer(TASKS, objective())
    balancer.backward(model.losses(batch(0)), accumulate=True)
    before = gradients(model)
    with pytest.raises(ValueError, match="for every micro-batch that is accumulated, or for none"):
        balancer.backward(model.losses(batch(1)), counts=dict.fromkeys(TASKS, 6))
    assert_same(gradients(model), before)
    assert all(parameter.grad is None for parameter in balancer.parameters())


@pytest.mark.parametrize("count", ["x", None, torch.ones(2), -1.0, math.inf])
def test_what_is_no_count_is_refused(count):
    model = Network()
    balancer = eq.Balancer(TASKS, eq.UW(), eq.MGDA())
    before = snapshot(model, balancer)
    with pytest.raises(ValueError, match=r"counts\['b'\] must be a finite number ≥ 0, found"):
        balancer.backward(model.losses(batch(0)), counts={"a": 1, "b": count, "c": 1})
    assert_same(snapshot(model, balancer), before)


def test_a_complex_loss_is_refused():
    loss = torch.ones((), dtype=torch.complex64, requires_grad=True)
    with pytest.raises(ValueError, match=r"'a' must be a real number, found torch\.complex64"):
        eq.Balancer(["a"]).backward({"a": loss})


@pytest.mark.parametrize("outer", [eq.WeightedSum, eq.GeometricMean])
@pytest.mark.parametrize("inner", [eq.UW(), None, eq.DWA])
def test_what_is_no_weighting_is_refused(outer, inner):
    with pytest.raises(TypeError, match="takes a Weighting instance"):
        outer(inner)
