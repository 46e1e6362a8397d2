"""Projections onto the cone of the directions that do not conflict with any row: quadratic programs on K numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

GUESSES = 30
"""Most projected-gradient steps, of all programs at once, that guess which multipliers are positive."""

EXCHANGES = 12
"""Most exchanges of the guessed sets. Independent rows need some five; where that many do not do, rows are dependent.
"""

TOLERANCE = 1e-10
"""Largest violation of the optimality conditions in an accepted solution, for multipliers up to 1."""

LARGE = 1e3
"""Multipliers in proportion to which, and no further, that grows: rounding does, and those of dependent rows explode.
"""

REGULARIZATION = 1e-12
"""Added to the diagonal where a set is solved for, so that one with dependent rows can be, too: below `TOLERANCE`."""

DEPENDENT = 1e-10
"""Squared distance of a unit row from the span of others up to which it lies in that span."""


def multipliers(cosines: Tensor, slopes: Tensor) -> Tensor:
    """Minimises `½xᵀCx + ⟨q, x⟩` over `x ≥ 0`, for several `q` at once.

    The solution has `x ≥ 0`, `Cx + q ≥ 0`, and in every place one of both is 0. With unit rows `u_k`, and a vector `a`
    of which `q_k = ⟨u_k, a⟩ − b_k`, it gives `a + Σ_k x_k u_k`, the vector nearest to `a` that has `⟨u_k, d⟩ ≥ b_k`
    for all k; with `b = 0` that is the projection of `a` onto the dual cone of the rows.

    Which `x_k` are positive is guessed for all programs together, by accelerated projected-gradient steps. Then the
    programs with these sets are solved exactly, and wherever a sign contradicts its set, it changes sides (block
    principal pivoting; Portugal, Júdice & Vicente, "A comparison of block pivoting and interior-point algorithms for
    linear least squares problems with nonnegative variables", 1994). That converges quickly where the rows are
    independent. Programs for which it does not end are solved by adding one row after the other to the set, and none
    that depends on those in it (Goldfarb & Idnani, "A numerically stable dual method for solving strictly convex
    quadratic programs", 1983).

    Args:
        cosines: `C` `[K, K]`, positive semidefinite with ones on the diagonal.
        slopes: a `q` a row, `[B, K]`, in units in which what they are products of has at most about the length 1.

    Returns:
        An `x` a row, `[B, K]`; NaN in a row whose constraints contradict one another, which those of a cone never do.
    """
    found = torch.zeros_like(slopes)
    if not found.numel():
        return found
    waiting = torch.arange(len(slopes), device="cpu")
    inside = _guess(cosines, slopes)
    for _ in range(EXCHANGES):
        solved = _on_sets(cosines, slopes[waiting], inside)
        rest = torch.addmm(slopes[waiting], solved, cosines)
        limit = TOLERANCE * solved.abs().amax(1, keepdim=True).clamp(1.0, LARGE)
        wrong = ~torch.where(inside, (solved >= -limit) & (rest.abs() <= limit), rest >= -limit)  # NaN is wrong
        done = ~wrong.any(1)
        found[waiting[done]] = solved[done].clamp(min=0)
        waiting, inside = waiting[~done], (inside ^ wrong)[~done]
        if not len(waiting):
            break
    for index in waiting.tolist():
        found[index] = _one_by_one(cosines, slopes[index])
    return found


def _guess(cosines: Tensor, slopes: Tensor) -> Tensor:
    """Guesses which multipliers are positive, `[B, K]` bool."""
    steepest = torch.linalg.eigvalsh(cosines)[-1]
    before = ahead = (-slopes).clamp(min=0)
    momentum = 1.0
    for _ in range(min(GUESSES, len(cosines))):
        now = torch.addmm(slopes, ahead, cosines).div_(-steepest).add_(ahead).clamp_(min=0)
        following = 0.5 + math.sqrt(0.25 + momentum**2)
        ahead = now + (momentum - 1) / following * (now - before)
        before, momentum = now, following
    return (before > 0) | (torch.addmm(slopes, before, cosines) < 0)


def _on_sets(cosines: Tensor, slopes: Tensor, inside: Tensor) -> Tensor:
    """Solves `(Cx + q)_k = 0` where inside, with `x_k = 0` elsewhere, for each row `q`."""
    count, size = len(cosines), int(inside.sum(1).amax())
    places = inside.to(torch.uint8).argsort(1, descending=True)[:, :size]  # those inside, filled up to the largest set
    real = inside.gather(1, places)
    regular = torch.eye(count + size, dtype=cosines.dtype, device="cpu")  # of what fills up each is a program by itself
    regular[:count, :count] = cosines
    regular.diagonal()[:count] += REGULARIZATION
    filled = torch.where(real, places, torch.arange(count, count + size, device="cpu"))
    factors, _ = torch.linalg.cholesky_ex(regular[filled[:, :, None], filled[:, None, :]])
    right = torch.where(real, -slopes.gather(1, places), 0.0)
    return torch.zeros_like(slopes).scatter(1, places, torch.cholesky_solve(right[:, :, None], factors)[:, :, 0])


def _one_by_one(cosines: Tensor, slope: Tensor) -> Tensor:
    """Solves one program whose rows may be dependent, `[K]`."""
    solution = torch.zeros_like(slope)
    inside: list[int] = []
    for _ in range(10 * len(slope)):
        slack = cosines @ solution + slope
        slack[inside] = 0.0
        entering = int(slack.argmin())
        missing = -float(slack[entering])
        if missing <= TOLERANCE * min(max(1.0, float(solution.amax())), LARGE):
            return solution
        while entering not in inside:
            shares = torch.linalg.solve(cosines[inside][:, inside], cosines[inside, entering])
            apart = 1.0 - float(cosines[entering, inside] @ shares)  # squared distance from the span of those inside
            until_left = torch.where(shares > 0, solution[inside] / shares, torch.inf)
            nearest = float(until_left.amin()) if inside else math.inf
            whole = missing / apart if apart > DEPENDENT else math.inf
            step = min(nearest, whole)
            if step == math.inf:
                return torch.full_like(slope, torch.nan)
            solution[inside] -= step * shares
            solution[entering] += step
            missing -= step * apart
            if whole <= nearest:
                inside.append(entering)
            else:
                leaving = inside.pop(int(until_left.argmin()))
                solution[leaving] = 0.0
    return solution
