"""GradVac: gradients turned towards one another, as far as they usually agree."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from equipoise._checks import check_number
from equipoise.aggregators._base import GramianAggregator
from equipoise.aggregators._normalized import Normalized
from equipoise.aggregators._orders import random_orders
from equipoise.search_space import Range, SearchSpace

SMALLEST_SINE = 1e-4
"""Least sine of the angle between the gradients of a pair that is aimed at: between parallel ones there is none."""


class GradVac(GramianAggregator):
    """Raises the cosine between two tasks' gradients to its moving average, then adds the gradients up.

    For each task i, starting from `v_i = g_i` and over the other tasks j in random order, with the cosine `φ` of `v_i`
    and `g_j` and the pair's target `φ̂_ij`: if `φ < φ̂_ij`, then
    `v_i ← v_i + ‖v_i‖ (φ̂√(1 − φ²) − φ√(1 − φ̂²)) / (‖g_j‖ √(1 − φ̂²)) g_j`, after which their cosine is `φ̂_ij`. Then
    `φ̂_ij ← (1 − β) φ̂_ij + β φ`, from 0. The result is `Σ_i v_i`. With targets that stay 0 it is PCGrad.

    Every `v_i` is a combination of the rows, so they are followed on coefficients alone, for all i at once. The targets
    are K² numbers, part of the state; those of pairs with a task that is absent stay as they are. A gradient that is 0
    has no angle: its pairs are passed over.

    The paper takes cosines a group of parameters (layers); here, as in LibMTL by default, over all shared parameters.
    LibMTL moves a target only where the cosine lies below it; here it always moves, as in the paper's Eq. 4. Both and
    TorchJD add 1e-8 to denominators; here the sine in the denominator is at least 1e-4.

    The order is drawn on the CPU from the aggregator's own generator, as in PCGrad.

    Preferences `p_k` multiply the gradients, as if they were in front of the losses: that is `Σ_i p_i v_i`.

    Args:
        beta: β, the share of the newest cosine in a target, in [0, 1]. 0.5 is LibMTL's default and TorchJD's.
        seed: of the random orders; None takes one from PyTorch's default generator.

    Raises:
        ValueError: `beta` is outside [0, 1].

    Source: Wang et al., "Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively
    Multilingual Models", ICLR 2021, Eq. 3 and 4.

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["depth", "normals"], aggregator=eq.GradVac(beta=0.5))
    """

    search_space: ClassVar[SearchSpace] = {"beta": Range(0.01, 1.0, log=True)}
    homogeneous = True

    def __init__(self, beta: float = 0.5, seed: int | None = None) -> None:
        super().__init__()
        self.beta = check_number("beta", beta, at_least=0, at_most=1)
        self.add_pair_state("target", 0.0)
        self.add_generator(seed)

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Returns `Σ_i` of the coefficients of `v_i` `[K']`, and keeps the targets."""
        orders = random_orders(len(gramian), self.generator)
        rows = Normalized(gramian)
        some = ~(rows.zero | rows.zero[:, None])
        targets = self.state.target.clone()
        added = torch.zeros_like(gramian)  # the coefficients of v_i/‖g_i‖ on the unit rows, beside its own
        inner = rows.cosines.clone()  # ⟨v_i, u_j⟩/‖g_i‖
        squared = torch.ones_like(rows.norms)  # ‖v_i‖²/‖g_i‖²
        for others in orders.T:
            column = others[:, None]
            along, target = inner.gather(1, column)[:, 0], targets.gather(1, column)[:, 0]
            angled = some.gather(1, column)[:, 0]
            cosine = (along / squared.sqrt()).clamp(-1, 1)
            sine, aimed = (1 - cosine.square()).sqrt(), (1 - target.square()).clamp(min=SMALLEST_SINE**2).sqrt()
            share = squared.sqrt() * (target * sine - cosine * aimed) / aimed
            share = torch.where(angled & (cosine < target), share, 0.0)
            inner += share[:, None] * rows.cosines[others]
            squared = squared + 2 * share * along + share.square()
            added.scatter_(1, column, share[:, None])
            moved = torch.where(angled, torch.lerp(target, cosine, self.beta), target)
            targets.scatter_(1, column, moved[:, None])
        self.state.target = targets
        return 1 + (rows.norms @ added) / rows.norms
