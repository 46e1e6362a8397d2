"""Moments that take less memory: first ones in bfloat16, second ones as the means of rows and columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from equipoise.gradients.gramian import wide_dtype
from equipoise.gradients.shards import local

SMALLEST = 1e-30
"""No mean of squares is taken to be less than this where it divides, as in Adafactor."""


class Factors(NamedTuple):
    """Second moments of a parameter, taken as a matrix `[A, B]`: the means of its rows `[A]` and of its columns `[B]`.

    The matrix that they stand for, `v_ij ≈ r_i c_j / mean(r)`, is of all with these means the one of rank one.
    """

    rows: Tensor
    columns: Tensor

    def whole(self, parameter: Tensor) -> Tensor:
        """Returns the second moments in the parameter's shape."""
        return (self.rows[:, None] * (self.columns / self.rows.mean().clamp(min=SMALLEST))).view(parameter.shape)


def whole(square: Tensor | Factors, parameter: Tensor) -> Tensor:
    """Returns second moments in the parameter's shape."""
    return square.whole(parameter) if isinstance(square, Factors) else square


@torch.no_grad()
def update_reduced(
    parameter: Tensor,
    gradient: Tensor,
    average: Tensor,
    square: Tensor | Factors,
    steps: Tensor,
    group: Mapping[str, Any],
    taking: Tensor | None,
) -> None:
    """Makes the update of `moments.update` in float32 at least; what is kept is rounded after it was used.

    Args:
        parameter: changed in place, as its moments are.
        gradient: the task's.
        average: the first moments, of any dtype.
        square: the second moments.
        steps: number of updates, 0-dim.
        group: as in `moments.update`.
        taking: as in `moments.update`.
    """
    beta1, beta2 = group["betas"]
    target, kept = local(parameter), local(average)
    wide = torch.promote_types(target.dtype, torch.float32)
    g = local(gradient).to(wide)
    first = kept.to(wide).lerp(g, 1 - beta1)
    if isinstance(square, Factors):
        squares = g.square().flatten(1)
        factors = Factors(
            square.rows.to(wide).lerp(squares.mean(1), 1 - beta2),
            square.columns.to(wide).lerp(squares.mean(0), 1 - beta2),
        )
        second, changes = factors.whole(target), [(square.rows, factors.rows), (square.columns, factors.columns)]
    else:
        second = local(square).to(wide).lerp(g.square(), 1 - beta2)
        changes = [(local(square), second)]
    count = (steps + 1).to(wide_dtype(steps.device))
    root = (second / (1 - beta2**count)).sqrt() + group["eps"]
    moved = target - group["lr"] * (first / (1 - beta1**count)) / root
    for into, new in [(target, moved), (kept, first), *changes, (steps, steps + 1)]:
        into.copy_(new if taking is None else torch.where(taking.to(into.device), new.to(into.dtype), into))
