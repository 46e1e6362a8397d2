"""How much a task is wanted, on top of what balances."""

import pytest
import torch
from networks import TASKS, Network, assert_same, batch, gradients
from torch import nn

import equipoise as eq

PRIORITIES = {"a": 3.0, "c": 0.5}
FACTORS = {"a": 3.0, "b": 1.0, "c": 0.5}
OBJECTIVES = [eq.Equal, eq.EMA, eq.UW, eq.DWA, eq.IMTLL, eq.FAMO, lambda: eq.GeometricMean(eq.Equal())]
AGGREGATORS = [eq.PCGrad, eq.CAGrad, eq.MGDA, eq.IMTLG, eq.NashMTL, eq.GradNorm, eq.GradDrop]
AGGREGATORS += [eq.UPGrad, eq.DualProj, eq.AlignedMTL, eq.ConFIG, eq.FairGrad, eq.GradVac, eq.PCD, eq.Krum]
AGGREGATORS += [eq.TrimmedMean]


def made(objective=None, aggregator=None, priorities=None):
    torch.manual_seed(0)
    model = Network().double()
    return model, eq.Balancer(TASKS, objective and objective(), aggregator and aggregator(), priorities=priorities)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("tasks", ["abc", "ac"])
def test_an_objectives_weight_is_multiplied(objective, tasks):
    model, balancer = made(objective)
    other, preferring = made(objective, priorities=PRIORITIES)
    for index in range(3):
        weights = balancer.backward(model.losses(batch(index), tasks))
        found = preferring.backward(other.losses(batch(index), tasks))
        for task, weight in weights.items():
            torch.testing.assert_close(found[task], FACTORS[task] * weight, rtol=1e-12, atol=0)
    plain = sum(float(found[task]) * loss for task, loss in other.losses(batch(2), tasks).items())
    torch.testing.assert_close(
        torch.autograd.grad(plain, other.trunk.weight)[0], added(other, preferring, 2, tasks), rtol=1e-10, atol=1e-12
    )


def added(model, balancer, index, tasks):
    """The gradient of the trunk that the last weights give."""
    model.zero_grad()
    with balancer.frozen():
        balancer.backward(model.losses(batch(index), tasks))
    return model.trunk.weight.grad


@pytest.mark.parametrize("same", [dict.fromkeys(TASKS, 1.0), dict.fromkeys(TASKS, 7.0), {}])
@pytest.mark.parametrize(
    ("objective", "aggregator"), [*((o, None) for o in OBJECTIVES), *((None, a) for a in AGGREGATORS)]
)
def test_equal_priorities_change_nothing(objective, aggregator, same):
    model, balancer = made(objective, aggregator)
    other, equal = made(objective, aggregator, same)
    for index in range(2):
        weights = balancer.backward(model.losses(batch(index)))
        assert_same(equal.backward(other.losses(batch(index))), weights)
    assert_same(gradients(other), gradients(model))


@pytest.mark.parametrize(
    "aggregator",
    [eq.PCGrad, eq.CAGrad, eq.GradDrop, eq.FairGrad, eq.GradVac, lambda: eq.PCD(eps=0.0), eq.Krum, eq.TrimmedMean],
)
def test_as_if_they_were_in_front_of_the_losses(aggregator):
    """On the shared parameters; a head gets its own task's gradient."""
    model, balancer = made(None, aggregator)
    other, preferring = made(None, aggregator, PRIORITIES)
    balancer.backward({task: FACTORS[task] * loss for task, loss in model.losses(batch(0)).items()})
    preferring.backward(other.losses(batch(0)))
    for p, q in zip(other.shared(), model.shared(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)
    for task in TASKS:
        for p, q in zip(other.heads[task].parameters(), model.heads[task].parameters(), strict=True):
            torch.testing.assert_close(FACTORS[task] * p.grad, q.grad)


def rows_of(seed=0, tasks=3, size=7):
    return torch.randn(tasks, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * torch.tensor(
        [[1.0], [30.0], [0.1]], dtype=torch.float64
    )


def combined(aggregator, rows, priorities):
    """The combined gradient of independent rows, which keep no conflict out, and the weights."""
    aggregator.bind(TASKS)
    aggregator.prefer(priorities)
    with aggregator.step():
        found, weights = aggregator.aggregate([[row] for row in rows], torch.ones(3, dtype=torch.float64))
    return found[0], weights


@pytest.mark.parametrize("seed", range(5))
def test_imtl_g_projects_in_the_ratio_of_priorities(seed):
    rows = rows_of(seed)
    d, weights = combined(eq.IMTLG(), rows, FACTORS)
    projections = rows @ d / rows.norm(dim=1)
    ratio = projections / torch.tensor(list(FACTORS.values()), dtype=torch.float64)
    torch.testing.assert_close(ratio, ratio[0].expand(3), rtol=1e-8, atol=0)
    torch.testing.assert_close(weights.sum(), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("seed", range(5))
def test_mgda_lowers_the_losses_in_the_ratio_of_priorities(seed):
    rows = rows_of(seed)
    d, weights = combined(eq.MGDA(), rows, FACTORS)
    falls = rows @ d / torch.tensor(list(FACTORS.values()), dtype=torch.float64)
    some = weights > 1e-12
    torch.testing.assert_close(falls[some], d.square().sum().expand(int(some.sum())), rtol=1e-8, atol=0)
    assert (falls >= d.square().sum() * (1 - 1e-8)).all()


@pytest.mark.parametrize("seed", range(5))
def test_nash_mtl_bargains_with_powers(seed):
    rows = rows_of(seed)
    for factors in (FACTORS, {task: 100 * factor for task, factor in FACTORS.items()}):
        d, alpha = combined(eq.NashMTL(), rows, factors)
        powers = torch.tensor(list(factors.values()), dtype=torch.float64)
        torch.testing.assert_close(alpha * (rows @ d), powers, rtol=1e-8, atol=0)
        torch.testing.assert_close(d.square().sum(), powers.sum(), rtol=1e-8, atol=0)


def test_gradnorm_aims_at_norms_in_the_ratio_of_priorities():
    """With constant rates the weighted norms settle there."""
    rows = rows_of(1)
    aggregator = eq.GradNorm(alpha=0.0, lr=0.01)
    aggregator.bind(TASKS)
    aggregator.prefer(FACTORS)
    rows = rows / rows.norm(dim=1, keepdim=True) * torch.tensor([[1.0], [2.0], [1.5]], dtype=torch.float64)
    for _ in range(3000):
        with aggregator.step() as step:
            _, weights = aggregator.aggregate([[row] for row in rows], torch.ones(3, dtype=torch.float64))
            step.commit()
    norms = weights * rows.norm(dim=1)
    aimed = torch.tensor(list(FACTORS.values()), dtype=torch.float64) * 3 / 4.5
    torch.testing.assert_close(norms / norms.mean(), aimed, rtol=0.05, atol=0)


class Own(eq.IMTLG):
    """A formula of somebody's own, that knows nothing of preferences."""

    def weights(self, gramian, losses):
        return torch.ones_like(losses)


class Whole(eq.Aggregator):
    def aggregate(self, gradients, losses):
        return [sum(g for g in column if g is not None) for column in zip(*gradients, strict=True)], None


def test_aggregators_of_ones_own():
    """A Gramian one has its rows multiplied; any other says that it takes none."""
    rows = rows_of()
    d, weights = combined(Own(), rows, FACTORS)
    factors = torch.tensor(list(FACTORS.values()), dtype=torch.float64)
    torch.testing.assert_close(weights, factors)
    torch.testing.assert_close(d, factors @ rows)
    with pytest.raises(ValueError, match="Whole takes no preferences"):
        eq.Balancer(TASKS, aggregator=Whole(), priorities=PRIORITIES)


@pytest.mark.parametrize(
    ("priorities", "error", "match"),
    [
        ({"d": 1.0}, ValueError, "priorities"),
        ({"a": 0.0}, ValueError, r"priorities\['a'\] must be a finite number > 0, found 0.0"),
        ({"a": float("nan")}, ValueError, "finite"),
        ([1.0, 2.0, 3.0], TypeError, "mapping from task to factor"),
    ],
)
def test_wrong_priorities(priorities, error, match):
    with pytest.raises(error, match=match):
        eq.Balancer(TASKS, priorities=priorities)
    with pytest.raises(error, match=match):
        eq.make_method("ew", nn.Linear(2, 2), TASKS, priorities=priorities)


def test_the_scalars_value_has_them():
    model, balancer = made(eq.EMA, priorities=PRIORITIES)
    losses = model.losses(batch(0))
    value = balancer(losses)
    weights = {task: float(w) for task, w in balancer._balancing.held.weights.items()}
    torch.testing.assert_close(float(value.detach()), sum(weights[t] * float(losses[t].detach()) for t in TASKS))
