"""Checks of what an aggregator declares: on sampled Jacobians, whatever it is that makes it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from equipoise.aggregators import Aggregator, RowStateAggregator
from equipoise.testing._jacobians import CASES, COUNTS, FULL_RANK, sample
from equipoise.testing._subject import TASKS


class Ready:
    """An aggregator that is told the tasks, and opens a step, when it is given a Jacobian."""

    def __init__(self, aggregator: Aggregator) -> None:
        self.aggregator = aggregator

    def __call__(self, jacobian: Tensor) -> Tensor:
        count = len(jacobian)
        self.aggregator.bind([*TASKS, *(f"task {index}" for index in range(count))][:count])
        if isinstance(self.aggregator, RowStateAggregator):
            self.aggregator.columns = ["jacobian"]
        with self.aggregator.step():
            combined: Tensor = self.aggregator(jacobian)
        return combined


Make = Callable[[], Ready]


def check_is_finite(make: Make) -> None:
    """Every sampled Jacobian `[K, P]` gives a finite `[P]`, and zeros give zeros."""
    for name, count in CASES:
        combined = make()(sample(name, count))
        assert combined.shape == (100,), f"{name}, {count} rows: shape {tuple(combined.shape)}"
        assert torch.isfinite(combined).all(), f"{name}, {count} rows: not finite"
    for dtype in (torch.float32, torch.float64):
        combined = make()(torch.zeros(3, 7, dtype=dtype))
        assert combined.dtype == dtype
        assert torch.equal(combined, torch.zeros(7, dtype=dtype)), "rows of zeros must give zeros"


def check_not_finite_shows(make: Make) -> None:
    """A gradient that is NaN or infinite shows in the result and does not raise."""
    for value in () if make().aggregator.robust else (math.nan, math.inf):
        jacobian = sample("random", 3)
        jacobian[1] = value
        assert not torch.isfinite(make()(jacobian)).all(), f"{value} was hidden"


def check_float32_is_near_float64(make: Make) -> None:
    """Gradients in float32 give nearly what they give in float64."""
    if make().aggregator.generator is not None:  # draws depend on the dtype
        return
    for count in COUNTS:
        jacobian = sample("random", count).float()
        combined = make()(jacobian)
        assert combined.dtype == torch.float32
        torch.testing.assert_close(combined.double(), make()(jacobian.double()), rtol=1e-5, atol=1e-5)


def check_permutation_invariant(make: Make) -> None:
    """`permutation_invariant`: the tasks' order does not matter."""
    for name, count in FULL_RANK:
        jacobian = sample(name, count)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        one, other = make()(jacobian), make()(jacobian[order])
        torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-9 * float(jacobian.norm(dim=1).max()))


def check_homogeneous(make: Make) -> None:
    """`homogeneous`: all gradients times a positive number give the result times it."""
    for name, count in FULL_RANK:
        for factor in (1e-12, 1e-3, 1e12):
            jacobian = sample(name, count)
            one, other = make()(jacobian), make()(factor * jacobian)
            torch.testing.assert_close(other, factor * one, rtol=1e-6, atol=1e-7 * float(factor * one.norm()))


def check_scale_invariant(make: Make) -> None:
    """`scale_invariant`: no task's scale matters."""
    for name, count in FULL_RANK:
        jacobian = sample(name, count)
        expected = make()(jacobian)
        for scales in (torch.logspace(-6, 6, count), torch.full((count,), 1e-12), torch.full((count,), 1e12)):
            scaled = jacobian * scales.double()[:, None]
            torch.testing.assert_close(make()(scaled), expected, rtol=1e-8, atol=1e-9)


def check_non_conflicting(make: Make) -> None:
    """`non_conflicting`: no task's gradient points against the result.

    Where the rows cancel, the direction of the remainder is rounding; what is asked for is relative to what was
    added up.
    """
    for name, count in CASES:
        jacobian = sample(name, count)
        combined = make()(jacobian)
        norms = jacobian.norm(dim=1)
        floor = 1e-5 if name in ("opposite rows", "low rank") else 1e-8
        floor *= max(float(norms.max()), float(combined.norm()), 10.0)
        assert ((jacobian @ combined) >= -floor * norms).all(), f"{name}, {count} rows"


PROMISES: dict[str, Callable[[Make], None]] = {
    "permutation_invariant": check_permutation_invariant,
    "homogeneous": check_homogeneous,
    "scale_invariant": check_scale_invariant,
    "non_conflicting": check_non_conflicting,
}
"""What an aggregator's class may declare → the check of it."""

ALWAYS = (check_is_finite, check_not_finite_shows, check_float32_is_near_float64)
