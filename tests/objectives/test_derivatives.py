"""Derivatives in closed form against those that autograd takes from the formula."""

import pytest
import torch
from catalogue import METHODS
from conftest import Driver

import equipoise as eq
from equipoise.objectives import UW, GeometricMean, Objective, WeightedSum

LOSSES = {"a": 0.7, "b": 3.0, "c": 25.0}
STEPS = [("abc", None), ("abc", None), ("ab", None), ("abc", "ac"), ("c", None), ("abc", "abc"), ("abc", None)]
"""The tasks present, and those that take part where the host does not know it; None: all."""


def losses_of(tasks, index):
    return {task: LOSSES[task] * (1 + 0.3 * index) for task in tasks}


def prepared(make):
    driver = Driver(make())
    for index, parameter in enumerate(driver.parameters):
        torch.nn.init.constant_(parameter, 0.2 * index - 0.1)
    driver.observe({"a": 0.3, "b": 0.5, "c": 0.2})
    return driver


def closed(driver, losses, usable):
    """What `Driver.step` returns beside the value, from `derivatives`."""
    present, values, opened = driver._values(losses, usable)
    with driver.objective.step(**opened) as step, torch.no_grad():
        coefficients, learned = driver.objective.derivatives(values)
        gradients = driver.objective.gradients(learned)
        step.commit(None if opened["usable"] is None else opened["usable"].any())
    by_name = {}
    for name, parameter in driver.objective.named_parameters():
        gradient = gradients.get(parameter)
        by_name.setdefault(name.rpartition(".")[0], []).append(0.0 if gradient is None else gradient.item())
    return dict(zip(present, coefficients.tolist(), strict=True)), by_name


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_they_are_the_derivatives_of_the_formula(make):
    ours, theirs = prepared(make), prepared(make)
    for driver in (ours, theirs):
        for module in driver.objective.task_modules():
            if module.generator is not None:
                module.generator.manual_seed(3)
    for index, (tasks, usable) in enumerate(STEPS):
        losses = losses_of(tasks, index)
        coefficients, gradients = closed(ours, losses, usable)
        _, expected, slopes = theirs.step(losses, usable=usable)
        taking = [task for task in tasks if usable is None or task in usable]
        assert [coefficients[task] for task in taking] == pytest.approx([expected[task] for task in taking], rel=1e-12)
        assert gradients == {name: pytest.approx(slope, rel=1e-6) for name, slope in slopes.items()}
        for buffer, other in zip(ours.objective.buffers(), theirs.objective.buffers(), strict=True):
            assert torch.equal(buffer, other)


class Doubled(UW):
    """Another formula."""

    def forward(self, losses):
        return 2 * super().forward(losses)


class Squared(WeightedSum):
    """Another formula."""

    def forward(self, losses):
        return super().forward(losses).square()


class Halved(GeometricMean):
    """Another formula, with derivatives of its own."""

    def forward(self, losses):
        return 0.5 * super().forward(losses)

    def derivatives(self, losses):
        coefficients, learned = super().derivatives(losses)
        return 0.5 * coefficients, learned


def backward(objective):
    balancer = eq.Balancer(["a", "b"], objective)
    weight = torch.ones(2, requires_grad=True)
    weights = balancer.backward({"a": 2 * weight[0], "b": 3 * weight[1]})
    return torch.stack([*weights.values()]), [parameter.grad for parameter in balancer.parameters()]


def test_another_formula_does_not_inherit_them():
    weights, learned = backward(Doubled())
    once, learned_once = backward(UW())
    assert torch.equal(weights, 2 * once)
    assert learned == [2 * gradient for gradient in learned_once]
    weights, _ = backward(Squared(eq.Equal()))
    assert weights.tolist() == [10.0, 10.0]
    assert Doubled.derivatives is Squared.derivatives is Objective.derivatives


def test_another_formula_can_have_its_own():
    weights, _ = backward(Halved(eq.Equal()))
    assert torch.equal(weights, 0.5 * backward(GeometricMean(eq.Equal()))[0])


class Tempered(eq.EMA):
    """A weighting that learns what nobody declared."""

    def __init__(self):
        super().__init__()
        self.power = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, losses):
        return super().forward(losses) ** self.power


def test_what_was_not_declared_is_learned_by_autograd():
    balancer = eq.Balancer(["a", "b"], Tempered())
    weight = torch.ones(2, requires_grad=True)
    balancer.backward({"a": 2 * weight[0], "b": 3 * weight[1]})
    (power,) = balancer.parameters()
    # d/dp Σ L_k^(1 − p) at p = 1
    torch.testing.assert_close(power.grad, -torch.tensor([2.0, 3.0], dtype=torch.float64).log().sum())


def test_frozen_ones_get_no_gradient():
    balancer = eq.Balancer(["a", "b"], UW())
    first, second = balancer.parameters()
    first.requires_grad_(False)
    weight = torch.ones(2, requires_grad=True)
    balancer.backward({"a": 2 * weight[0], "b": 3 * weight[1]})
    assert first.grad is None
    assert second.grad == -1.0


def test_gradients_share_no_memory():
    balancer = eq.Balancer(["a", "b"], UW())
    weight = torch.ones(2, requires_grad=True)
    balancer.backward({"a": 2 * weight[0], "b": 3 * weight[1]})
    first, second = (parameter.grad for parameter in balancer.parameters())
    assert first.untyped_storage().nbytes() == second.untyped_storage().nbytes() == 4
