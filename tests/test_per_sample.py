"""Every sample a task: number for number with TorchJD's engine, and with explicit gradients of every sample."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import assert_same
from torch import Tensor, nn

import equipoise as eq

AGGREGATORS: dict[str, Callable[[], Any]] = {
    "cagrad": eq.CAGrad,
    "imtl-g": eq.IMTLG,
    "mgda": eq.MGDA,
    "nash-mtl": eq.NashMTL,
    "pcgrad": lambda: eq.PCGrad(seed=3),
}


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1), nn.Flatten(0)).double()


def convolutions(normalised: bool) -> nn.Module:
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(4), nn.BatchNorm1d(6)] if normalised else [nn.Identity(), nn.Identity()]
    layers = [nn.Conv2d(2, 4, 3), norms[0], nn.ReLU(), nn.Flatten(), nn.Linear(36, 6), norms[1], nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(6, 1), nn.Flatten(0)).double()


def inputs(model: nn.Module, count: int, seed: int = 0) -> Tensor:
    shape = (5,) if isinstance(model[0], nn.Linear) else (2, 5, 5)
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def losses_of(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - x.flatten(1).sum(1).sin()).square()


def taken(model: nn.Module) -> list[Tensor]:
    """Takes the gradients away."""
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return gradients


def explicit(model: nn.Module, losses: Tensor, aggregator: Any, parameters: Any = None) -> tuple[Tensor, list[Tensor]]:
    """The weights, and the gradients that they give, from every sample's own backward pass."""
    parameters = list(model.parameters() if parameters is None else parameters)
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses.flatten()]
    jacobian = torch.stack([torch.cat([gradient.flatten() for gradient in row]) for row in rows])
    aggregator.bind([str(index) for index in range(len(rows))])
    with aggregator.step() as step:
        weights = aggregator.weights(jacobian @ jacobian.T, losses.detach().flatten())
        step.commit()
    gradients = torch.autograd.grad(losses.flatten(), list(model.parameters()), weights)
    return weights.view_as(losses), list(gradients)


@pytest.mark.parametrize("name", ["UPGrad", "MGDA", "AlignedMTL"])
@pytest.mark.parametrize("make", [mlp, lambda: convolutions(False)], ids=["mlp", "convolutions"])
def test_number_for_number_with_torchjd(make: Callable[[], nn.Module], name: str) -> None:
    aggregation, autogram = pytest.importorskip("torchjd.aggregation"), pytest.importorskip("torchjd.autogram")
    weighting = getattr(aggregation, f"{name}Weighting")
    model, other = make(), make()
    engine = autogram.Engine(other, batch_dim=0)
    balance = eq.PerSample(weighting())
    for index, count in enumerate((6, 4)):
        x = inputs(model, count, index)
        found = balance.backward(losses_of(model, x))
        losses = losses_of(other, x)
        weights = weighting()(engine.compute_gramian(losses))
        losses.backward(weights)
        torch.testing.assert_close(found, weights, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(taken(model), taken(other), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", AGGREGATORS)
@pytest.mark.parametrize("make", [mlp, lambda: convolutions(True)], ids=["mlp", "batch norm"])
def test_as_from_every_samples_own_gradient(make: Callable[[], nn.Module], name: str) -> None:
    """With batch normalisation in training mode, where each sample's loss depends on all; as many as there are."""
    model, other = make(), make()
    balance, aggregator = eq.PerSample(AGGREGATORS[name]()), AGGREGATORS[name]()
    for index, count in enumerate((6, 9, 2)):
        x = inputs(model, count, index)
        weights = balance.backward(losses_of(model, x))
        fresh = copy.deepcopy(aggregator)
        expected, gradients = explicit(other, losses_of(other, x), fresh)
        if fresh.generator is not None:
            aggregator.generator.set_state(fresh.generator.get_state())
        torch.testing.assert_close(weights, expected, rtol=1e-7, atol=1e-10)
        torch.testing.assert_close(taken(model), gradients, rtol=1e-7, atol=1e-10)
    assert_same(dict(model.state_dict()), dict(other.state_dict()))  # running statistics: one forward pass each


def test_as_a_scalar() -> None:
    model = convolutions(True)
    x = inputs(model, 5)
    balance = eq.PerSample(eq.MGDA())
    weights = balance.backward(losses_of(model, x))
    expected = taken(model)
    losses = losses_of(model, x)
    loss = balance(losses)
    assert loss.item() == pytest.approx((weights * losses).sum().item())
    penalty = sum(p.square().sum() for p in model.parameters())
    (0.5 * loss + penalty).backward()
    plain = [0.5 * g + 2 * p for g, p in zip(expected, model.parameters(), strict=True)]
    torch.testing.assert_close(taken(model), [gradient.detach() for gradient in plain])
    with torch.no_grad():
        assert balance(losses_of(model, x)).item() == pytest.approx(losses.mean().item())


def test_losses_of_several_tasks_a_sample() -> None:
    model, other = mlp()[:3], mlp()[:3]
    model[2] = other[2] = nn.Linear(7, 3).double()
    x = inputs(model, 4)
    weights = eq.PerSample(eq.IMTLG()).backward(model(x).square())
    gradients = taken(model)
    expected = explicit(other, other(x).square(), eq.IMTLG())
    assert weights.shape == (4, 3)
    torch.testing.assert_close((weights, gradients), expected)


def test_statistics_on_a_probe() -> None:
    model = mlp()
    x = inputs(model, 5)
    weights = eq.PerSample(eq.MGDA(), probe=model[2]).backward(losses_of(model, x))
    gradients = taken(model)
    torch.testing.assert_close(
        (weights, gradients), explicit(model, losses_of(model, x), eq.MGDA(), model[2].parameters())
    )
    assert not torch.allclose(weights, eq.PerSample(eq.MGDA()).backward(losses_of(model, x)))
    with pytest.raises(ValueError, match="No loss reaches the probe"):
        eq.PerSample(eq.MGDA(), probe=nn.Linear(2, 2)).backward(losses_of(model, x))


class OneByOne(torch.autograd.Function):
    """An operator that several gradients cannot go through at once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        assert gradient.sum().item() is not None
        return 2 * gradient


def test_where_samples_cannot_go_together() -> None:
    model = mlp()
    x = inputs(model, 5)
    weights = eq.PerSample(eq.MGDA()).backward(losses_of(lambda x: OneByOne.apply(model(x)), x))
    gradients = taken(model)
    expected = explicit(model, losses_of(lambda x: 2 * model(x), x), eq.MGDA())
    torch.testing.assert_close((weights, gradients), expected)


def test_random_generator_is_saved() -> None:
    model = mlp()
    one, other = (eq.PerSample(eq.PCGrad()) for _ in range(2))
    one.backward(losses_of(model, inputs(model, 6)))
    other.load_state_dict(one.state_dict())
    for index in range(3):
        both = [balance.backward(losses_of(model, inputs(model, 6, index))) for balance in (one, other)]
        assert torch.equal(*both)


@pytest.mark.parametrize(
    ("aggregator", "error", "message"),
    [
        (lambda: eq.GradNorm(), ValueError, "GradNorm keeps state for every task"),
        (lambda: eq.GradDrop(), ValueError, "finds weights from the Gramian; found GradDrop"),
        (lambda: None, ValueError, "found none"),
        (lambda: eq.EMA(), TypeError, "aggregator must be"),
    ],
)
def test_aggregators_that_do_not_go(aggregator: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        eq.PerSample(aggregator())


@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        (lambda loss: {"a": loss.sum()}, TypeError, "must be a tensor with a loss a sample, found dict"),
        (lambda loss: loss.mean(), ValueError, r"one a sample, found torch.float64 of shape \(\)"),
        (lambda loss: loss[:0], ValueError, "one a sample"),
        (lambda loss: loss.detach(), ValueError, "has no graph"),
        (lambda loss: loss * torch.tensor([1.0, torch.nan, 1.0]), ValueError, "holds NaN or infinity"),
    ],
)
def test_losses_that_do_not_go(losses: Callable[[Tensor], Any], error: type[Exception], message: str) -> None:
    model = mlp()
    with pytest.raises(error, match=message):
        eq.PerSample(eq.MGDA()).backward(losses(losses_of(model, inputs(model, 3))))
    assert all(p.grad is None for p in model.parameters())
