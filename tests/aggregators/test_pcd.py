import numpy as np
import pytest
import quadprog
import torch
from torchjd.aggregation import PCD as PeerPCD

from equipoise.aggregators import PCD
from equipoise.testing._jacobians import FULL_RANK, sample


def bound(count, **options):
    aggregator = PCD(**options)
    aggregator.bind([f"task {k}" for k in range(count)])
    return aggregator


def combine(aggregator, jacobian, present=None):
    with aggregator.step(present) as step:
        combined = aggregator(jacobian)
        step.commit()
    return combined


class Paper:
    """The program in the space of the gradients, by a general solver."""

    def __init__(self, count, tau, beta=0.999, eps=1e-8):
        self.tau, self.beta, self.eps = tau, beta, eps
        self.average, self.updates = torch.zeros(count, dtype=torch.float64), 0

    def __call__(self, jacobian):
        self.updates += 1
        self.average = self.beta * self.average + (1 - self.beta) * jacobian.square().sum(1)
        rows = jacobian / (self.average / (1 - self.beta**self.updates) + self.eps).sqrt()[:, None]
        if len(rows) == 1:
            return jacobian[0]
        basis = torch.linalg.svd(rows, full_matrices=False).Vh
        inside = (rows @ basis.T).numpy()
        least = self.tau * (inside[1:] ** 2).sum(1)
        found = torch.from_numpy(quadprog.solve_qp(np.eye(len(basis)), inside[0], inside[1:].T, least)[0]) @ basis
        return found * jacobian[0].norm() / found.norm()


@pytest.mark.parametrize("tau", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 40])
def test_equals_the_program(count, tau):
    aggregator, paper = bound(count, tau=tau), Paper(count, tau)
    for index, name in enumerate(("conflicting", "random", "conflicting")):
        jacobian = sample(name, count, seed=index)
        torch.testing.assert_close(combine(aggregator, jacobian), paper(jacobian), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("name", "count"), [case for case in FULL_RANK if case[1] < 40])
def test_equals_torchjd(name, count):
    aggregator, peer = bound(count, tau=0.1), PeerPCD(tau=0.1)
    for seed in range(3):
        jacobian = sample(name, count, seed)
        atol = 1e-7 * float(jacobian[0].norm())
        torch.testing.assert_close(combine(aggregator, jacobian), peer(jacobian), rtol=1e-6, atol=atol)


def test_the_primary_task_is_named_and_another_takes_its_place_where_it_is_absent():
    jacobian = sample("conflicting", 3)
    order = [2, 0, 1]
    named = bound(3, primary="task 2", tau=0.3)
    torch.testing.assert_close(combine(named, jacobian), combine(bound(3, tau=0.3), jacobian[order]))
    fresh, pair = bound(3, primary="task 2", tau=0.3), bound(2, tau=0.3)
    torch.testing.assert_close(combine(fresh, jacobian[:2], present=[0, 1]), combine(pair, jacobian[:2]))
    assert fresh.updates.tolist() == [1, 1, 0]


def test_constraints_that_contradict_one_another_are_dropped():
    jacobian = torch.tensor([[1.0, 1.0], [1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(combine(bound(3), jacobian), jacobian[0])


def test_nothing_without_a_primary_gradient_and_no_constraint_without_another():
    jacobian = sample("conflicting", 3)
    jacobian[0] = 0
    assert not combine(bound(3, tau=0.5), jacobian).any()
    jacobian = sample("conflicting", 3)
    jacobian[1] = 0
    torch.testing.assert_close(combine(bound(3), jacobian), combine(bound(2), jacobian[[0, 2]]))
