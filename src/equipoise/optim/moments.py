"""Adam's arithmetic on one task's moments: in one go, or the moments first and the parameters later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from equipoise.gradients.gramian import as_real
from equipoise.gradients.sharded import locals_of


class Moments(NamedTuple):
    """What is kept of one task for one parameter: the number of updates (0-dim), and the two moving averages."""

    steps: Tensor
    average: Tensor
    square: Tensor


@torch.no_grad()
def update(row: Mapping[Tensor, Tensor], moments: Sequence[Moments], group: Mapping[str, Any]) -> None:
    """Takes the gradients into the moments and adds `−η m̂ / (√v̂ + ε)` to the parameters, by PyTorch's own kernels.

    Args:
        row: parameter → gradient.
        moments: one a parameter; changed in place.
        group: the parameters' group, for `lr`, `betas`, `eps`, `fused` and `capturable`.
    """
    adamw(
        locals_of(row),
        locals_of(row.values()),
        locals_of(m.average for m in moments),
        locals_of(m.square for m in moments),
        [],
        [m.steps for m in moments],
        foreach=None if not group["fused"] else False,
        capturable=group["capturable"],
        fused=group["fused"],
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=0.0,
        eps=group["eps"],
        maximize=False,
    )


@torch.no_grad()
def fold(gradients: Iterable[Tensor], moments: Sequence[Moments], group: Mapping[str, Any]) -> None:
    """Takes the gradients into the moments; what `update` does of itself, without touching the parameters."""
    first, second = group["betas"]
    taken = [as_real(gradient) for gradient in locals_of(gradients)]
    squares = [as_real(square) for square in locals_of(m.square for m in moments)]
    averages = [as_real(average) for average in locals_of(m.average for m in moments)]
    torch._foreach_lerp_(averages, taken, 1 - first)
    torch._foreach_mul_(squares, second)
    torch._foreach_addcmul_(squares, taken, taken, 1 - second)
    torch._foreach_add_([m.steps for m in moments], 1)


@torch.no_grad()
def apply(parameters: Sequence[Tensor], moments: Sequence[Moments], group: Mapping[str, Any]) -> None:
    """Adds `−η m̂ / (√v̂ + ε)` to the parameters, from moments that have taken the gradients in already."""
    first, second = group["betas"]
    for parameter, m in zip(parameters, moments, strict=True):
        target, average, square = (as_real(tensor) for tensor in locals_of([parameter, m.average, m.square]))
        steps = m.steps.to(target.device, torch.float64 if target.dtype == torch.float64 else torch.float32)
        denominator = (square.sqrt() / (1 - second**steps).sqrt().to(target.dtype)).add_(group["eps"])
        target.sub_((average * (group["lr"] / (1 - first**steps)).to(target.dtype)).div_(denominator))
