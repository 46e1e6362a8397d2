import pytest
import torch
from torchjd.aggregation import PCGrad as PeerPCGrad

from equipoise.aggregators import PCGrad
from equipoise.testing._jacobians import CASES, SAMPLES, sample


def orders_of(seed, count):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, count, dtype=torch.float64, generator=generator).argsort(1)


def surgery(jacobian, orders):
    """Algorithm 1 of the paper, on whole vectors."""
    total = torch.zeros_like(jacobian[0])
    for i, row in enumerate(jacobian):
        vector = row.clone()
        for j in orders[i].tolist():
            inner = vector @ jacobian[j]
            if i != j and inner < 0:
                vector -= inner / (jacobian[j] @ jacobian[j]) * jacobian[j]
        total += vector
    return total


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("name", "count"), CASES)
def test_equals_the_algorithm_on_vectors(name, count, seed):
    jacobian = sample(name, count)
    expected = surgery(jacobian, orders_of(seed, count))
    norms = jacobian.norm(dim=1)
    torch.testing.assert_close(PCGrad(seed=seed)(jacobian), expected, rtol=1e-9, atol=1e-10 * float(norms.max()))


@pytest.mark.parametrize(("name", "count"), [case for case in CASES if case[0] != "wildly scaled"])
def test_equals_torchjd_for_the_same_orders(name, count, monkeypatch):
    jacobian = sample(name, count)
    drawn = iter(orders_of(5, count))
    monkeypatch.setattr(torch, "randperm", lambda *args, **kwargs: next(drawn))
    expected = PeerPCGrad()(jacobian)
    scale = float(jacobian.norm(dim=1).max())
    torch.testing.assert_close(PCGrad(seed=5)(jacobian), expected, rtol=1e-9, atol=1e-10 * scale)


@pytest.mark.parametrize("name", SAMPLES)
def test_equals_torchjd_for_two_tasks_whatever_the_order(name):
    jacobian = sample(name, 2)
    scale = float(jacobian.norm(dim=1).max())
    torch.testing.assert_close(PCGrad()(jacobian), PeerPCGrad()(jacobian), rtol=1e-9, atol=1e-10 * scale)


def test_orders_are_uniform():
    """Over 3 conflicting tasks each of the 8 combinations of orders that matter comes up as often as the others."""
    jacobian = torch.tensor([[1.0, 0.0], [-0.6, 0.8], [-0.7, -0.7]], dtype=torch.float64)
    aggregator = PCGrad(seed=0)
    results = torch.stack([aggregator(jacobian) for _ in range(2000)])
    distinct, counts = results.round(decimals=9).unique(dim=0, return_counts=True)
    possible = {
        tuple(surgery(jacobian, torch.tensor(orders)).round(decimals=9).tolist()): 0
        for orders in torch.cartesian_prod(torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([0, 1])).tolist()
        for orders in [[[[1, 2], [2, 1]][orders[0]], [[0, 2], [2, 0]][orders[1]], [[0, 1], [1, 0]][orders[2]]]]
    }
    assert {tuple(result.tolist()) for result in distinct} == set(possible)
    assert len(possible) == 8
    assert (counts / 2000 - 1 / 8).abs().max() < 5 * (1 / 8 * 7 / 8 / 2000) ** 0.5
