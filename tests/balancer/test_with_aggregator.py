"""With an aggregator: which parameters get what."""

import pytest
import torch
from balancer.by_hand import Recorder, assert_gradients, gramian_by_hand, shared_names, task_gradients_by_hand, weighted
from networks import TASKS, Network, assert_same, batch, gradients, snapshot
from torch import nn

import equipoise as eq


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
    """Where a task does not reach it, as c the branch, they are those of all that is shared."""
    model = Network().double()
    rows = task_gradients_by_hand(model, batch(0))
    given = {"a": 0.3, "b": -2.0, "c": 5.0}
    aggregator = Recorder(list(given.values()))
    names = ["trunk.weight"] if probe == "trunk.weight" else shared_names(model)
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
        getattr(model, part).weight.register_hook(lambda _, part=part: passes.__setitem__(part, passes[part] + 1))
    eq.Balancer(["a", "b"], aggregator=eq.IMTLG(), probe=model.branch).backward(model.losses(batch(0), ["a", "b"]))
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
