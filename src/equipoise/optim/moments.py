"""Adam's arithmetic on one task's moments, and weight decay, which is no task's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from equipoise.gradients.sharded import locals_of


class Moments(NamedTuple):
    """What is kept of one task for one parameter: the number of updates (0-dim), and the two moving averages."""

    steps: Tensor
    average: Tensor
    square: Tensor


@torch.no_grad()
def update(
    parameters: Iterable[Tensor], gradients: Iterable[Tensor], moments: Sequence[Moments], group: Mapping[str, Any]
) -> None:
    """Takes the gradients into the moments and adds `−η m̂ / (√v̂ + ε)` to the parameters, by PyTorch's own kernels.

    Args:
        parameters: changed in place.
        gradients: one a parameter.
        moments: one a parameter; changed in place.
        group: the parameters' group, for `lr`, `betas`, `eps`, `fused` and `capturable`.
    """
    adamw(
        locals_of(parameters),
        locals_of(gradients),
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
def decay(parameters: Iterable[Tensor], group: Mapping[str, Any]) -> None:
    """Multiplies the parameters by `1 − η λ`."""
    if group["weight_decay"]:
        torch._foreach_mul_(locals_of(parameters), 1 - group["lr"] * group["weight_decay"])
