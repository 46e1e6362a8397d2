"""Without an aggregator: a plain backward pass of the objective."""

import math

import pytest
import torch
from balancer.by_hand import Recorder, assert_gradients, task_gradients_by_hand, weighted
from networks import TASKS, Network, assert_same, batch, gradients, snapshot

import equipoise as eq


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
