"""Every method as a scalar whose backward pass balances: what `backward(losses)` does, times what reaches it."""

import copy

import pytest
import torch
from networks import TASKS, Network, assert_same, batch, gradients
from torch import nn

import equipoise as eq

from registry import NAMES, PRESENT, every_method, has_aggregator, make

BALANCERS = [name for name in NAMES if name != "mao"]
every_balancer = pytest.mark.parametrize("name", BALANCERS)


def pair(name, **options):
    """Two like models with the method."""
    return make(name, **options), make(name, **options)


def learned(method):
    return [] if method.balancer is None else list(method.balancer.parameters())


def assert_close(found, expected, rtol=1e-6):
    assert list(found) == list(expected)
    for name, gradient in expected.items():
        assert (gradient is None) == (found[name] is None), name
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, rtol=rtol, atol=1e-7, msg=name)


@every_method
def test_training_by_scalars_is_training_by_backward(name):
    """With missing tasks, over many steps; the weights' state included."""
    (model, method), (other, scalars) = pair(name)
    for index, tasks in enumerate(PRESENT):
        if name.startswith("single:"):
            tasks = name[-1]
        for net, by, way in ((model, method, "backward"), (other, scalars, "loss")):
            by.zero_grad()
            losses = net.losses(batch(index), tasks)
            by.backward(losses) if way == "backward" else by.loss(losses).backward()
        assert_close(gradients(other), gradients(model))
        for by, net in ((method, model), (scalars, other)):
            by.step()
            if by.needs_after_step:
                with torch.no_grad():
                    by.after_step(net.losses(batch(index), tasks))
    torch.testing.assert_close(dict(other.named_parameters()), dict(model.named_parameters()), rtol=1e-4, atol=1e-5)
    if method.balancer is not None:
        buffers = dict(method.balancer.named_buffers())
        torch.testing.assert_close(dict(scalars.balancer.named_buffers()), buffers, rtol=1e-5, atol=1e-6)


@every_balancer
def test_the_value_is_the_objectives(name):
    model, method = make(name)
    tasks = name[-1] if name.startswith("single:") else TASKS
    losses = model.losses(batch(0), tasks)
    objective = copy.deepcopy(method.balancer.objective)
    value = method.loss(losses)
    assert value.dim() == 0
    assert value.dtype == torch.float32
    with objective.step():
        expected = objective(torch.stack([loss.detach().double() for loss in losses.values()]))
    torch.testing.assert_close(value.double(), expected.detach(), rtol=1e-6, atol=0)


@every_method
def test_a_factor_multiplies_and_what_is_added_is_plain(name):
    (model, method), (other, scalars) = pair(name)
    tasks = name[-1] if name.startswith("single:") else TASKS
    method.backward(model.losses(batch(0), tasks))
    if name == "mao":
        expected = {p: g / 4 for p, g in flat(method.optimizer._pending.rows, model).items()}
        (scalars.loss(other.losses(batch(0), tasks)) / 4).backward()
        found = flat(scalars.optimizer._pending.rows, other)
        assert all(torch.equal(found[key], g) for key, g in expected.items())
        return
    for p in trained(model):
        p.grad = 2e-2 * p.detach() if p.grad is None else p.grad / 3 + 2e-2 * p.detach()
    for p in learned(method):
        p.grad = None if p.grad is None else p.grad / 3
    loss = scalars.loss(other.losses(batch(0), tasks)) / 3 + 1e-2 * sum(p.square().sum() for p in trained(other))
    loss.backward()
    assert_close(gradients(other), gradients(model), rtol=1e-5)
    for p, q in zip(learned(scalars), learned(method), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def flat(rows, model):
    names = {p: name for name, p in model.named_parameters()}
    return {(task, names[p]): g for task, row in rows.items() for p, g in row.items()}
