"""PCGrad: gradient surgery."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.aggregators._base import GramianAggregator
from equipoise.aggregators._normalized import Normalized
from equipoise.aggregators._orders import random_orders


class PCGrad(GramianAggregator):
    """Removes from each task's gradient what conflicts with the others, then adds them up.

    For each task i, starting from `v_i = g_i` and over the other tasks j in random order: if `⟨v_i, g_j⟩ < 0`, then
    `v_i ← v_i − ⟨v_i, g_j⟩/‖g_j‖² g_j`. The result is `Σ_i v_i`. Every `v_i` is a combination of the rows, so the
    projections are followed on coefficients alone, for all i at once. A gradient that is 0 conflicts with none.

    The order is drawn on the CPU from the aggregator's own generator, whose state is saved: the same on every
    device and rank. It makes the result depend on the order of the tasks, but only through the draw.

    Preferences `p_k` multiply the gradients, as if they were in front of the losses: that is `Σ_i p_i v_i`.

    Args:
        seed: of the random orders; None takes one from PyTorch's default generator.

    Source: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, Algorithm 1.

    Example:
        >>> import torch
        >>> from equipoise.aggregators import PCGrad
        >>> PCGrad(seed=0)(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0.5000, 1.5000])
    """

    homogeneous = True

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self.add_generator(seed)

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Returns `Σ_i` of the coefficients of `v_i` `[K']`."""
        orders = random_orders(len(gramian), self.generator)
        rows = Normalized(gramian)
        inner = rows.cosines.clone()  # ⟨v_i, u_j⟩/‖g_i‖, where u_j = g_j/‖g_j‖
        removed, theirs = torch.zeros_like(inner), torch.empty_like(inner)
        for others in orders.T:
            column = others[:, None]
            share = inner.gather(1, column).clamp_(max=0)
            inner.addcmul_(share, torch.index_select(rows.cosines, 0, others, out=theirs), value=-1)
            removed.scatter_(1, column, share)
        return 1 - (rows.norms @ removed) / rows.norms
