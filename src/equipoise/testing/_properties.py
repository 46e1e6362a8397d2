"""Checks of what an aggregator declares: on sampled Jacobians, whatever it is that makes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from equipoise.aggregators import Aggregator, RowStateAggregator
from equipoise.testing._jacobians import CASES, COUNTS, FULL_RANK, sample
from equipoise.testing._subject import TASKS

SHOWN = 5
"""Gradients that can be read where they are printed."""


class Ready:
    """An aggregator that is told the tasks, and opens a step, when it is given a Jacobian."""

    def __init__(self, aggregator: Aggregator) -> None:
        self.aggregator = aggregator

    def __call__(self, jacobian: Tensor) -> Tensor:
        """Returns the result `[P]`."""
        return self.weighed(jacobian)[0]

    def weighed(self, jacobian: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the result `[P]` and the weights `[K]`, if there are any."""
        count = len(jacobian)
        self.aggregator.bind([*TASKS, *(f"task {index}" for index in range(count))][:count])
        if isinstance(self.aggregator, RowStateAggregator):
            self.aggregator.columns = ["jacobian"]
        with self.aggregator.step():
            combined, weights = self.aggregator.aggregate([[row.clone()] for row in jacobian], jacobian.new_ones(count))
        return combined[0], weights


Make = Callable[[], Ready]
Fault = Callable[[Make, Tensor], str | None]
"""What is wrong with an aggregator's result of a Jacobian `[K, P]`, in words; None: nothing."""


def _search(fault: Fault, cases: Iterable[tuple[str, int]], make: Make) -> None:
    """Raises AssertionError at the first Jacobian with a fault, of those with few rows first.

    It shows one with few columns and digits where that has a fault, too.
    """
    for name, count in sorted(cases, key=lambda case: case[1]):
        jacobian = sample(name, count)
        found = fault(make, jacobian)
        if found is None:
            continue
        width = max(2, count)
        for columns in (width, width + 2) if count <= SHOWN else ():
            small = jacobian[:, :columns].clone().apply_(lambda x: float(f"{x:.2g}"))
            less = fault(make, small)
            if less is not None:
                raise AssertionError(f"{less}, for the gradients {small.tolist()}")
        raise AssertionError(f"{found}, for {count} gradients ({name})")


def check_is_finite(make: Make) -> None:
    """Every sampled Jacobian `[K, P]` gives a finite `[P]`, and zeros give zeros."""
    _search(_not_finite, CASES, make)
    for dtype in (torch.float32, torch.float64):
        combined = make()(torch.zeros(3, 7, dtype=dtype))
        assert combined.dtype == dtype, f"of gradients in {dtype} the result is {combined.dtype}"
        assert torch.equal(combined, torch.zeros(7, dtype=dtype)), "three gradients of zeros do not give zeros"


def _not_finite(make: Make, jacobian: Tensor) -> str | None:
    combined = make()(jacobian)
    if combined.shape != jacobian.shape[1:]:
        return f"the result has the shape {tuple(combined.shape)}, not {tuple(jacobian.shape[1:])}"
    return None if torch.isfinite(combined).all() else "the result is not finite"


def check_not_finite_shows(make: Make) -> None:
    """A gradient that is NaN or infinite shows in the result and does not raise."""
    for value in () if make().aggregator.robust else (math.nan, math.inf):
        jacobian = sample("random", 3)
        jacobian[1] = value
        assert not torch.isfinite(make()(jacobian)).all(), f"of three gradients one is {value}, the result finite"


def check_float32_is_near_float64(make: Make) -> None:
    """Gradients in float32 give nearly what they give in float64."""
    if make().aggregator.generator is None:  # draws depend on the dtype
        _search(_is_not_near, [("random", count) for count in COUNTS], make)


def _is_not_near(make: Make, jacobian: Tensor) -> str | None:
    combined = make()(jacobian.float())
    if combined.dtype != torch.float32:
        return f"of gradients in float32 the result is {combined.dtype}"
    what = "in float32 the result is not near that in float64"
    return _apart(combined.double(), make()(jacobian.float().double()), what, rtol=1e-5, atol=1e-5)


def _is_ordered(make: Make, jacobian: Tensor) -> str | None:
    """`permutation_invariant`: the tasks' order does not matter."""
    order = torch.randperm(len(jacobian), generator=torch.Generator().manual_seed(0))
    one, other = make()(jacobian), make()(jacobian[order])
    what = f"with the gradients in the order {order.tolist()} the result is another"
    return _apart(other, one, what, rtol=1e-8, atol=1e-9 * float(jacobian.norm(dim=1).max()))


def _is_not_homogeneous(make: Make, jacobian: Tensor) -> str | None:
    """`homogeneous`: all gradients times a positive number give the result times it."""
    one = make()(jacobian)
    for factor in (1e-12, 1e-3, 1e12):
        other = make()(factor * jacobian)
        ratio = float(other.norm() / one.norm())
        what = f"with all gradients × {factor:g} the result is not × {factor:g} (ratio {ratio:.3g})"
        found = _apart(other, factor * one, what, rtol=1e-6, atol=1e-7 * float(factor * one.norm()))
        if found is not None:
            return found
    return None


def _is_scaled(make: Make, jacobian: Tensor) -> str | None:
    """`scale_invariant`: no task's scale matters."""
    expected, count = make()(jacobian), len(jacobian)
    for scales in (torch.logspace(-6, 6, count), torch.full((count,), 1e-12), torch.full((count,), 1e12)):
        scaled = make()(jacobian * scales.double()[:, None])
        ratio = float(scaled.norm() / expected.norm())
        low, high = (f"{float(scale):.0e}" for scale in (scales.min(), scales.max()))
        factors = low if low == high else f"factors of {low} to {high}"
        what = f"with the gradients × {factors} the result does not stay as it is (ratio {ratio:.3g})"
        found = _apart(scaled, expected, what, rtol=1e-8, atol=1e-9)
        if found is not None:
            return found
    return None


def _conflicts(make: Make, jacobian: Tensor, floor: float) -> str | None:
    """`non_conflicting`: no task's gradient points against the result.

    Where the rows cancel, the direction of the remainder is rounding; what is asked for is relative to what was
    added up.
    """
    combined = make()(jacobian)
    norms = jacobian.norm(dim=1)
    products = jacobian @ combined + floor * max(float(norms.max()), float(combined.norm()), 10.0) * norms
    if (products >= 0).all():
        return None
    worst = int(products.argmin())
    return f"⟨d, g_k⟩ is {float(jacobian[worst] @ combined):.2g}, below 0, for task {worst + 1} of {len(jacobian)}"


def check_non_conflicting(make: Make) -> None:
    """`non_conflicting`, on every sampled Jacobian."""
    cancels = ("opposite rows", "low rank")
    _search(partial(_conflicts, floor=1e-8), [case for case in CASES if case[0] not in cancels], make)
    _search(partial(_conflicts, floor=1e-5), [case for case in CASES if case[0] in cancels], make)


def _is_no_sum(make: Make, jacobian: Tensor) -> str | None:
    """`weighs`: the result is the sum of the gradients with the weights that are returned."""
    combined, weights = make().weighed(jacobian)
    if weights is None:
        return "no weights are returned"
    norm = float((weights.abs()[:, None] * jacobian).norm())
    what = "the result is not the sum of the gradients with the weights that are returned"
    return _apart(combined, weights.to(jacobian) @ jacobian, what, rtol=1e-6, atol=1e-9 * norm)


def _apart(found: Tensor, expected: Tensor, what: str, rtol: float, atol: float) -> str | None:
    """Returns `what` if the tensors are not near each other, as `torch.testing.assert_close` has it."""
    near = torch.isclose(found, expected, rtol=rtol, atol=atol)
    return None if near.all() else what


PROMISES: dict[str, Callable[[Make], None]] = {
    "weighs": partial(_search, _is_no_sum, FULL_RANK),
    "permutation_invariant": partial(_search, _is_ordered, FULL_RANK),
    "homogeneous": partial(_search, _is_not_homogeneous, FULL_RANK),
    "scale_invariant": partial(_search, _is_scaled, FULL_RANK),
    "non_conflicting": check_non_conflicting,
}
"""What an aggregator's class may declare → the check of it."""

ALWAYS = (check_is_finite, check_not_finite_shows, check_float32_is_near_float64)
