"""PCGrad: gradient surgery."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.aggregators._base import GramianAggregator


class PCGrad(GramianAggregator):
    """Removes from each task's gradient what conflicts with the others, then adds them up.

    For each task i, starting from `v_i = g_i` and over the other tasks j in random order: if `⟨v_i, g_j⟩ < 0`, then
    `v_i ← v_i − ⟨v_i, g_j⟩/‖g_j‖² g_j`. The result is `Σ_i v_i`. Every `v_i` is a combination of the rows, so the
    projections are followed on coefficients alone, for all i at once. A gradient that is 0 conflicts with none.

    The order is drawn on the CPU from the aggregator's own generator, whose state is saved: the same on every
    device and rank. It makes the result depend on the order of the tasks, but only through the draw.

    Args:
        seed: of the random orders; None takes one from PyTorch's default generator.

    Source: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, Algorithm 1.

    Example:
        >>> import torch
        >>> from equipoise.aggregators import PCGrad
        >>> PCGrad(seed=0)(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0.5000, 1.5000])
    """

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self.add_generator(seed)

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Returns `Σ_i` of the coefficients of `v_i` `[K']`."""
        count = len(gramian)
        draw = torch.rand(count, count, dtype=torch.float64, generator=self.generator)
        orders = draw.argsort(1).to(gramian.device, non_blocking=True)
        others = torch.arange(count, device=gramian.device)[:, None] != orders
        squares = gramian.diagonal()[orders]
        inverses = torch.where(others & (squares > 0), 1 / squares, 0.0)
        inner = gramian.clone()  # ⟨v_i, g_j⟩
        removed = torch.zeros_like(gramian)
        for turn in range(count):
            order = orders[:, turn : turn + 1]
            share = inner.gather(1, order).clamp_(max=0).mul_(inverses[:, turn : turn + 1])
            inner.addcmul_(share, gramian.index_select(0, order[:, 0]), value=-1)
            removed.scatter_(1, order, share)
        return 1 - removed.sum(0)
