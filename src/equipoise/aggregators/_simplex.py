"""The convex problem behind MGDA and CAGrad: a linear term plus a norm, over the simplex of the tasks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ITERATIONS = 40
"""Most interior-point iterations. The most that a Jacobian has been found to need is 30: 60 rows, of norms over 24
decades."""

PIVOTS = 8
"""Most changes of the active set in the first try to finish; usually it succeeds with a few."""

TOLERANCE = 1e-10
"""Largest violation of the optimality conditions in an accepted finish, relative to the ball's radius, in units where
every row has norm 1."""

STATIONARY = 1e-8
"""Relative norm of a combination below which it counts as 0: what float64 can tell from a Gramian."""

BOUNDARY = 0.95
"""Share of the way to the boundary that an interior-point step may go."""


def minimize_on_simplex(cosines: Tensor, norms: Tensor, linear: Tensor, factor: float) -> tuple[Tensor, float]:
    """Minimises `⟨linear, w⟩ + factor · ‖Jᵀw‖` over `w ≥ 0`, `Σ w = 1`.

    With `linear = 0` the solution is the min-norm point of the convex hull of the rows. The dual problem is to
    find a combination `Jᵀu` of norm at most `factor` for which the smallest of `linear + Gu` is as large as
    possible; `u = factor · w/‖Jᵀw‖`, and where `Jᵀw = 0` there is slack.

    A primal-dual interior-point method (predictor and corrector, on both problems at once) finds which weights are
    positive. For a known set of positive weights both problems have a closed form, which is tried in every
    iteration, so that the result is exact to rounding rather than to a barrier parameter. Everything is scaled to
    rows of norm 1 first: the rows' scales may differ by many decades.

    Args:
        cosines: `C` `[K, K]`, with which `G = JJᵀ` is `‖g_j‖ ‖g_k‖ C_jk`.
        norms: `‖g_k‖` `[K]`, positive.
        linear: `[K]`.
        factor: positive.

    Returns:
        The weights `w` `[K]`, and the norm `‖Jᵀw‖`.
    """
    smallest = float(norms.amin())
    sums = smallest / norms  # in these units Σ w = 1 reads ⟨sums, w⟩ = 1
    slope = linear / norms
    unit = max(float(slope.abs().amax()), factor)
    slope, radius = slope / unit, factor / unit

    point = _InteriorPoint(cosines, slope, sums, radius)
    pulls, error = _finish(cosines, slope, sums, radius, point.active(), PIVOTS)
    for _ in range(ITERATIONS):
        if error <= TOLERANCE or not point.advance():
            break
        pulls, error = _finish(cosines, slope, sums, radius, point.active(), 1)
    total = float(sums @ pulls)
    if error <= TOLERANCE and total > 0:  # `u` is 0 where the ball is smaller than rounding
        return pulls * sums / total, radius / total * smallest
    inner = point.weights / (sums @ point.weights)
    return inner * sums, _norm(cosines, inner) * smallest


def _norm(cosines: Tensor, weights: Tensor) -> float:
    """Returns the norm of a combination of unit rows."""
    return math.sqrt(max(float(weights @ (cosines @ weights)), 0.0))


class _InteriorPoint:
    """The iterate: weights `w` and their slacks, the ball's multiplier `λ` and its slack, the bound `ν`, and `u`.

    The dual problem, in units where every row has norm 1 (`C`: cosines, `a`: slope, `b`: sums, `κ`: radius):
    maximise `ν` subject to `p = a + Cu − νb ≥ 0` and `q = ½(κ² − uᵀCu) ≥ 0`. With the multipliers `w` and `λ`
    the solution has `λu = w`, `⟨b, w⟩ = 1`, `w·p = 0` and `λq = 0`.
    """

    def __init__(self, cosines: Tensor, slope: Tensor, sums: Tensor, radius: float) -> None:
        count = len(slope)
        self.cosines = cosines
        self.sums = sums
        self.constants = torch.cat((slope, slope.new_tensor([0.5 * radius**2])))
        weights = torch.ones_like(sums)
        for _ in range(2):
            # Half-way into the ball, with ν so low that all p are positive: large rows can ask for very little.
            # The second time with weights that match p.
            norm = max(_norm(cosines, weights), STATIONARY * float(weights.sum()))
            dual = 0.5 * radius * weights / norm
            level = slope + cosines @ dual
            bound = ((level - 0.5 * radius) / sums).amin()
            slacks = level - bound * sums
            last, weights = weights, 1 / slacks
        scale = 1 / (sums @ last)
        self.multipliers = torch.cat((scale * last, (2 * scale * norm / radius)[None]))  # w, λ
        self.slacks = torch.cat((slacks, slacks.new_tensor([0.375 * radius**2])))  # p, q
        self.bound = bound
        self.dual = dual
        self.matrix = cosines.new_zeros(count + 2, count + 2)
        self.matrix[-1, :-2] = self.matrix[:-2, -1] = -sums

    @property
    def weights(self) -> Tensor:
        return self.multipliers[:-1]

    def active(self) -> Tensor:
        """Guesses which weights are positive in the solution: those larger than their slack, in the dual's units."""
        weights = self.weights
        return (weights > self.slacks[:-1] * self.multipliers[-1]) | (weights >= weights.amax())

    def advance(self) -> bool:
        """One predictor and corrector step.

        Returns:
            Whether there was one to make: not where the combination of the rows has vanished, the gap is closed to
            rounding, or the step would not be finite.
        """
        cosines, multipliers, slacks, dual, matrix = self.cosines, self.multipliers, self.slacks, self.dual, self.matrix
        weights, multiplier = multipliers[:-1], float(multipliers[-1])
        count = len(weights)
        gap = float(multipliers @ slacks)
        if not gap > 1e-14 or _norm(cosines, weights) <= STATIONARY * float(weights.sum()):
            return False

        pulled = cosines @ dual
        squared = float(dual @ pulled)
        drift = weights - multiplier * dual
        infeasible = self.constants - slacks
        infeasible[:-1] += pulled - self.bound * self.sums + (cosines @ drift) / multiplier
        infeasible[-1] -= 0.5 * squared + (pulled @ drift) / multiplier

        ratio = slacks / multipliers
        matrix[:count, :count] = cosines / multiplier
        matrix[:count, count] = matrix[count, :count] = pulled / -multiplier
        matrix[count, count] = squared / multiplier
        matrix.diagonal()[:-1] += ratio
        factors, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        defect = (self.sums @ weights - 1)[None]

        def direction(target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            right = torch.cat((target - infeasible, defect))[:, None]
            solution = torch.linalg.lu_solve(factors, pivots, right)[:, 0]
            return solution[:-1], target - ratio * solution[:-1], solution[-1]

        def length(step: Tensor, slack_step: Tensor, share: float) -> float:
            nearest = min(float((step / multipliers).amin()), float((slack_step / slacks).amin()))
            return 1 / max(1.0, -nearest / share)

        step, slack_step, _ = direction(-slacks)
        size = length(step, slack_step, 1.0)
        predicted = (multipliers + size * step) @ (slacks + size * slack_step)
        centre = (predicted / gap) ** 3 * gap / (count + 1)
        step, slack_step, bound_step = direction((centre - step * slack_step) / multipliers - slacks)
        dual_step = (step[:-1] - dual * step[-1] + drift) / multiplier
        if not (dual_step.sum() + step.sum() + slack_step.sum()).isfinite():
            return False
        size = length(step, slack_step, BOUNDARY)
        self.multipliers = multipliers + size * step
        self.slacks = slacks + size * slack_step
        self.bound = self.bound + size * bound_step
        self.dual = dual + size * dual_step
        return True


def _finish(
    cosines: Tensor, slope: Tensor, sums: Tensor, radius: float, active: Tensor, pivots: int
) -> tuple[Tensor, float]:
    """Solves for `u ≥ 0` with the given weights positive, and corrects the set where the solution contradicts it.

    On the set, `Cu = νb − a` is linear in `ν`, and `uᵀCu = κ²` is a quadratic equation for `ν`.

    Returns:
        `u` `[K]`, and the largest violation of the optimality conditions, relative to `κ` (NaN where the equation has
        no root).
    """
    for _ in range(pivots):
        index = active.nonzero()[:, 0]
        sides = torch.stack((sums[index], slope[index]), 1)
        matrix = cosines[index][:, index]
        matrix.diagonal().add_(1e-14)  # duplicate rows make it singular
        solution, _ = torch.linalg.solve_ex(matrix, sides)
        (curvature, middle), (_, constant) = sides.T @ solution
        bound = (middle + (middle.square() - curvature * (constant - radius**2)).sqrt()) / curvature
        dual = torch.zeros_like(slope)
        dual[index] = bound * solution[:, 0] - solution[:, 1]
        slack = slope + cosines @ dual - bound * sums
        error = float(torch.minimum(dual, slack).abs().amax()) / radius
        if not error > TOLERANCE:
            break
        active = dual > slack
    return dual.clamp(min=0), error
