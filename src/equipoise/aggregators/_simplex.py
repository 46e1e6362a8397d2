"""The convex problem behind MGDA and CAGrad: a linear term plus a norm, over the simplex of the tasks."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.aggregators._base import on_host

ITERATIONS = 40
"""Most interior-point iterations. On an accelerator all are made: to stop early, the host would have to wait.

The most that a Jacobian has been found to need is 30: 60 rows, of norms over 24 decades.
"""

PIVOTS = 8
"""Most changes of the active set in the first and the last try to finish; usually the first succeeds with a few."""

TOLERANCE = 1e-10
"""Largest violation of the optimality conditions in an accepted finish, in units where every row has norm 1."""

STATIONARY = 1e-8
"""Relative norm of a combination below which it counts as 0: what float64 can tell from a Gramian."""

BOUNDARY = 0.95
"""Share of the way to the boundary that an interior-point step may go."""


def minimize_on_simplex(
    gramian: Tensor, linear: Tensor, factor: Tensor, iterations: int = ITERATIONS
) -> tuple[Tensor, Tensor]:
    """Minimises `⟨linear, w⟩ + factor · ‖Jᵀw‖` over `w ≥ 0`, `Σ w = 1`.

    With `linear = 0` the solution is the min-norm point of the convex hull of the rows. The dual problem is to
    find a combination `Jᵀu` of norm at most `factor` for which the smallest of `linear + Gu` is as large as
    possible; `u = factor · w/‖Jᵀw‖`, and where `Jᵀw = 0` there is slack.

    A primal-dual interior-point method (predictor and corrector, on both problems at once) finds which weights are
    positive. For a known set of positive weights both problems have a closed form, which is tried in every
    iteration on the CPU and once at the end elsewhere, so that the result is exact to rounding rather than to a
    barrier parameter. Everything is scaled to rows of norm 1 first: the rows' scales may differ by many decades.
    Nothing waits for an accelerator.

    Args:
        gramian: `G = JJᵀ` `[K, K]`.
        linear: `[K]`, 0 where the row is 0.
        factor: 0-dim, positive.
        iterations: most interior-point iterations.

    Returns:
        The weights `w` `[K]` (0 for a row that is 0, unless all are), and the norm `‖Jᵀw‖`.
    """
    norms = gramian.diagonal().clamp(min=0).sqrt()
    zero = norms <= 0
    norms = torch.where(zero, torch.where(zero, torch.inf, norms).amin(), norms)
    norms = torch.where(norms.isfinite(), norms, 1.0)
    smallest = norms.amin()
    sums = smallest / norms  # in these units Σ w = 1 reads ⟨sums, w⟩ = 1
    cosines = gramian / norms / norms[:, None]
    cosines.diagonal().fill_(1.0)
    slope = linear / norms
    unit = torch.maximum(slope.abs().amax(), factor)
    slope = torch.where(zero, 3.0, slope / unit)  # a row of zeros costs more than it can be worth: it stays out
    radius = factor / unit

    point = _InteriorPoint(cosines, slope, sums, radius)
    if on_host(gramian):
        pulls, error = _finish(cosines, slope, sums, radius, point.active(), PIVOTS)
    for _ in range(iterations):
        if on_host(gramian) and (error <= TOLERANCE or point.stationary()):
            break
        point.advance()
        if on_host(gramian):
            pulls, error = _finish(cosines, slope, sums, radius, point.active(), 1)
    if not on_host(gramian):
        pulls, error = _finish(cosines, slope, sums, radius, point.active(), PIVOTS)

    inner = point.weights
    inner = inner / (sums @ inner)
    exact = error <= TOLERANCE
    total = sums @ pulls
    weights = torch.where(exact, pulls / total, inner) * sums
    norm = torch.where(exact, radius / total, (inner @ (cosines @ inner)).clamp(min=0).sqrt()) * smallest
    return weights, norm


class _InteriorPoint:
    """The iterate: weights `w` and their slacks, the ball's multiplier `λ` and its slack, the bound `ν`, and `u`.

    The dual problem, in units where every row has norm 1 (`C`: cosines, `a`: slope, `b`: sums, `κ`: radius):
    maximise `ν` subject to `p = a + Cu − νb ≥ 0` and `q = ½(κ² − uᵀCu) ≥ 0`. With the multipliers `w` and `λ`
    the solution has `λu = w`, `⟨b, w⟩ = 1`, `w·p = 0` and `λq = 0`.
    """

    def __init__(self, cosines: Tensor, slope: Tensor, sums: Tensor, radius: Tensor) -> None:
        self.cosines = cosines
        self.radius = radius
        self.count = len(slope)
        self.constants = torch.cat((slope, 0.5 * radius.square()[None]))
        self.sums = sums
        weights = torch.ones_like(sums)
        for _ in range(2):
            # Half-way into the ball, with ν so low that all p are positive: large rows can ask for very little.
            # The second time with weights that match p.
            norm = torch.maximum((weights @ (cosines @ weights)).clamp(min=0).sqrt(), STATIONARY * weights.sum())
            dual = 0.5 * radius / norm * weights
            level = slope + cosines @ dual
            bound = ((level - 0.5 * radius) / sums).amin()
            slacks = level - bound * sums
            last, weights = weights, 1 / slacks
        scale = 1 / (sums @ last)
        self.multipliers = torch.cat((scale * last, (2 * scale * norm / radius)[None]))  # w, λ
        self.slacks = torch.cat((slacks, 0.375 * radius.square()[None]))  # p, q
        self.bound = bound
        self.dual = dual
        self.matrix = cosines.new_zeros(self.count + 2, self.count + 2)
        self.matrix[-1, :-2] = self.matrix[:-2, -1] = -sums

    @property
    def weights(self) -> Tensor:
        return self.multipliers[:-1]

    def active(self) -> Tensor:
        """Guesses which weights are positive in the solution: those larger than their slack, in the dual's units."""
        weights = self.weights
        return (weights > self.slacks[:-1] * self.multipliers[-1]) | (weights >= weights.amax())

    def stationary(self) -> Tensor:
        """Whether the combination of the rows has vanished."""
        weights = self.weights
        return weights @ (self.cosines @ weights) <= (STATIONARY * weights.sum()).square()

    def advance(self) -> None:
        """One predictor and corrector step; none where it would not be finite or the solution is reached."""
        count, matrix = self.count, self.matrix
        multipliers, slacks, dual = self.multipliers, self.slacks, self.dual
        weights, multiplier = multipliers[:-1], multipliers[-1]

        pulled = self.cosines @ dual
        squared = dual @ pulled
        drift = weights - multiplier * dual
        infeasible = self.constants - slacks
        infeasible[:-1] += pulled - self.bound * self.sums + (self.cosines @ drift) / multiplier
        infeasible[-1] -= 0.5 * squared + (pulled @ drift) / multiplier

        ratio = slacks / multipliers
        matrix[:count, :count] = self.cosines / multiplier
        matrix[:count, count] = matrix[count, :count] = pulled / -multiplier
        matrix[count, count] = squared / multiplier
        matrix.diagonal()[:-1] += ratio
        factors, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        defect = (self.sums @ weights - 1)[None]

        def direction(target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            right = torch.cat((target - infeasible, defect))[:, None]
            solution = torch.linalg.lu_solve(factors, pivots, right)[:, 0]
            return solution[:-1], target - ratio * solution[:-1], solution[-1]

        def length(step: Tensor, slack_step: Tensor, share: float) -> Tensor:
            nearest = torch.minimum((step / multipliers).amin(), (slack_step / slacks).amin())
            return (nearest / -share).clamp(min=1).reciprocal()

        gap = multipliers @ slacks
        step, slack_step, _ = direction(-slacks)
        size = length(step, slack_step, 1.0)
        predicted = (multipliers + size * step) @ (slacks + size * slack_step)
        centre = (predicted / gap) ** 3 * gap / (count + 1)
        step, slack_step, bound_step = direction((centre - step * slack_step) / multipliers - slacks)
        size = length(step, slack_step, BOUNDARY)

        dual_step = (step[:-1] - dual * step[-1] + drift) / multiplier
        usable = (dual_step.sum() + step.sum() + slack_step.sum()).isfinite() & (gap > 1e-14) & ~self.stationary()
        size = torch.where(usable, size, 0.0)
        self.multipliers = torch.where(usable, multipliers + size * step, multipliers)
        self.slacks = torch.where(usable, slacks + size * slack_step, slacks)
        self.bound = torch.where(usable, self.bound + size * bound_step, self.bound)
        self.dual = torch.where(usable, dual + size * dual_step, dual)


def _finish(
    cosines: Tensor, slope: Tensor, sums: Tensor, radius: Tensor, active: Tensor, pivots: int
) -> tuple[Tensor, Tensor]:
    """Solves for `u ≥ 0` with the given weights positive, and corrects the set where the solution contradicts it.

    On the set, `Cu = νb − a` is linear in `ν`, and `uᵀCu = κ²` is a quadratic equation for `ν`.

    Returns:
        `u` `[K]`, and the largest violation of the optimality conditions (NaN where the equation has no root).
    """
    for _ in range(pivots):
        mask = active.to(cosines.dtype)
        matrix = cosines * (mask * mask[:, None])
        matrix.diagonal().copy_(1 + 1e-14 * mask)  # duplicate rows make it singular
        solution, _ = torch.linalg.solve_ex(matrix, torch.stack((sums * mask, slope * mask), 1))
        along, offset = solution.unbind(1)
        curvature = sums @ along
        middle = sums @ offset
        root = (middle.square() - curvature * (slope @ offset - radius.square())).sqrt()
        bound = (middle + root) / curvature
        dual = bound * along - offset
        slack = slope + cosines @ dual - bound * sums
        error = torch.minimum(dual, slack).abs().amax()
        if on_host(error) and error <= TOLERANCE:
            break
        active = dual > slack
    return dual.clamp(min=0), error
