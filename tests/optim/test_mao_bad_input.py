"""What MAO makes of arguments that are wrong, and of losses that are not finite."""

import math

import pytest
import torch
from mao_and_reference import Reference, run, trainable
from networks import TASKS, Network, assert_same, batch, snapshot
from torch import nn

import equipoise as eq


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"lr": -1.0}, ValueError, "lr must be a finite number ≥ 0, found -1"),
        ({"lr": math.nan}, ValueError, "lr must be"),
        ({"lr": torch.tensor(-1.0)}, ValueError, "lr must be"),
        ({"betas": (1.0, 0.9)}, ValueError, "beta1 must be .* < 1, found 1"),
        ({"betas": (0.9, -0.1)}, ValueError, "beta2 must be .*found -0.1"),
        ({"betas": (0.9,)}, ValueError, "betas must be two numbers"),
        ({"eps": -1e-8}, ValueError, "eps must be"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be"),
        ({"max_norm": 0.0}, ValueError, "max_norm must be a finite number > 0, found 0"),
        ({"tasks": ["a", "a"]}, ValueError, "found twice: 'a'"),
        ({"tasks": []}, ValueError, "tasks is empty"),
        ({"tasks": "a"}, TypeError, "single string"),
        ({"params": []}, ValueError, "empty parameter list"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        eq.MAO(**{"params": [nn.Parameter(torch.ones(1))], "tasks": ["a"], **arguments})


@pytest.mark.parametrize(
    "group", [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"eps": -1.0}, {"weight_decay": -1.0}, "twice"], ids=str
)
def test_a_bad_group_is_not_added(group):
    held, new = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = eq.MAO([held], ["a"])
    before = snapshot(optimizer)
    with pytest.raises(ValueError):
        optimizer.add_param_group({"params": [held]} if group == "twice" else {"params": [new], **group})
    assert_same(snapshot(optimizer), before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_nothing(value):
    models = [Network(), Network()]
    optimizers = [eq.MAO(trainable(m), TASKS) for m in models]
    for index, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
        run(model, optimizer, tasks=TASKS)
        optimizer.backward(model.losses(batch(0)))
        if index == 0:
            losses = model.losses(batch(1))
            with pytest.raises(ValueError, match=f"'c' is {value:g}: a NaN or infinite loss"):
                optimizer.backward({**losses, "c": losses["c"] * value})
        optimizer.step()
    assert_same(snapshot(models[0], optimizers[0]), snapshot(models[1], optimizers[1]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_unchecked_the_gradient_of_such_a_loss_counts_as_zero(value):
    """Without the check, the way of accelerators: never in the moments, and the other tasks go on."""
    model, twin = Network().double(), Network().double()
    optimizer = eq.MAO(model.parameters(), TASKS, lr=0.1, check_finite=False)
    reference = Reference(twin, lr=0.1)
    for index in range(4):
        losses, expected = model.losses(batch(index)), twin.losses(batch(index))
        if index == 2:
            losses["b"], expected["b"] = losses["b"] * value, expected["b"] * 0.0
        optimizer.backward(losses)
        optimizer.step()
        optimizer.zero_grad()
        reference.step(reference.gradients(expected))
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_unchecked_nan_reaches_grad_of_parameters_it_does_not_hold():
    model = Network()
    optimizer = eq.MAO(model.trunk.parameters(), TASKS, check_finite=False)
    losses = model.losses(batch(0))
    optimizer.backward({**losses, "a": losses["a"] * math.nan})
    optimizer.step()
    assert all(p.isfinite().all() for p in model.trunk.parameters())
    assert model.heads["a"].weight.grad.isnan().all()
    assert model.heads["b"].weight.grad.isfinite().all()
