import math

import pytest
import torch
from torchjd.aggregation import GradVac as PeerGradVac
from torchjd.aggregation import _gradvac as peer_module

from equipoise.aggregators import GradVac, PCGrad
from equipoise.aggregators._orders import random_orders
from equipoise.testing._jacobians import sample

STEPS = ("conflicting", "random", "conflicting", "shared direction")


def bound(count, **options):
    aggregator = GradVac(seed=5, **options)
    aggregator.bind([f"task {k}" for k in range(count)])
    return aggregator


def combine(aggregator, jacobian, present=None):
    with aggregator.step(present) as step:
        combined = aggregator(jacobian)
        step.commit()
    return combined


def vaccinated(rows, targets, orders, beta):
    """On the gradients themselves, angle by angle; moves the targets."""
    total = torch.zeros_like(rows[0])
    for i, order in enumerate(orders):
        vector = rows[i].clone()
        for j in order:
            other = rows[j]
            if not vector.any() or not other.any():
                continue
            angle = math.acos(float(vector @ other / (vector.norm() * other.norm())))
            aimed = math.acos(float(targets[i, j]))
            if angle > aimed:
                vector += vector.norm() / other.norm() * math.sin(angle - aimed) / math.sin(aimed) * other
            targets[i, j] += beta * (math.cos(angle) - targets[i, j])
        total += vector
    return total


@pytest.mark.parametrize("beta", [0.01, 0.5, 0.9])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_equals_the_formula_on_the_gradients(count, beta):
    aggregator, targets = bound(count, beta=beta), torch.zeros(count, count, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    for index, name in enumerate((*STEPS, "zero rows")):
        jacobian = sample(name, count, seed=index)
        expected = vaccinated(jacobian, targets, random_orders(count, generator).tolist(), beta)
        torch.testing.assert_close(combine(aggregator, jacobian), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(aggregator.target, targets, rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_equals_torchjd_for_the_same_orders(count, monkeypatch):
    aggregator, peer = bound(count), PeerGradVac(eps=0.0)
    generator = torch.Generator().manual_seed(5)
    for index, name in enumerate(STEPS):
        jacobian = sample(name, count, seed=index)
        orders = random_orders(count, generator).tolist()
        others = [[j for j in range(count) if j != i] for i in range(count)]
        places = iter([[rest.index(j) for j in order] for rest, order in zip(others, orders, strict=True)])
        monkeypatch.setattr(peer_module.torch, "randperm", lambda _, p=places: torch.tensor(next(p)))
        expected = peer(jacobian)
        monkeypatch.undo()
        torch.testing.assert_close(combine(aggregator, jacobian), expected, rtol=1e-9, atol=1e-9)


def test_targets_that_stay_zero_make_it_pcgrad():
    jacobian = sample("conflicting", 6)
    torch.testing.assert_close(combine(bound(6, beta=0.0), jacobian), PCGrad(seed=5)(jacobian))


def test_targets_of_pairs_with_an_absent_task_stay():
    aggregator = bound(4)
    combine(aggregator, sample("conflicting", 4))
    before = aggregator.target.clone()
    combine(aggregator, sample("random", 2), present=[1, 3])
    changed = aggregator.target != before
    assert changed.nonzero().tolist() == [[1, 3], [3, 1]]


def test_parallel_gradients_stay_finite():
    jacobian = torch.ones(3, 5, dtype=torch.float64) * torch.tensor([[1.0], [2.0], [3.0]])
    aggregator = bound(3, beta=1.0)
    for _ in range(3):
        torch.testing.assert_close(combine(aggregator, jacobian), jacobian.sum(0))
    assert combine(aggregator, sample("random", 3)[:, :5]).isfinite().all()
