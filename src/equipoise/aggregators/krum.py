"""Krum: the gradient with the nearest neighbours."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from equipoise._checks import check_count
from equipoise.aggregators._base import GramianAggregator
from equipoise.search_space import Choice, SearchSpace


class Krum(GramianAggregator):
    """Takes the gradient nearest to the others, so that a few that have nothing to do with them cannot lead away.

    The score of a task is the sum of the squared distances `‖g_k − g_j‖² = G_kk + G_jj − 2G_kj` to its `K − f − 2`
    nearest neighbours; `d` is the mean of the `selected` gradients of lowest score (more than one is Multi-Krum). Among
    equal scores the first task's counts, as in the paper. It is proven to withstand f arbitrary gradients among
    `K > 2f + 2`.

    Distances are those of the Gramian. With few tasks, f is at most `K − 3`, and of one or two tasks the mean is taken:
    none can be outvoted. TorchJD adds up distances that are not squared, which can select another task.

    Preferences `p_k` multiply the gradients, as if they were in front of the losses.

    Args:
        byzantine: f, how many tasks' gradients may be arbitrary, at least 0.
        selected: how many gradients the mean is of, at least 1; at most all that are there are taken.

    Raises:
        ValueError: one is no integer, or below that.

    Source: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017.

    Example:
        >>> import torch
        >>> from equipoise.aggregators import Krum
        >>> Krum(byzantine=0)(torch.tensor([[1.0, 0.0], [1.5, 0.0], [0.0, 90.0], [1.25, 0.0]]))
        tensor([1.2500, 0.0000])
    """

    homogeneous = True
    search_space: ClassVar[SearchSpace] = {"byzantine": Choice((0, 1, 2)), "selected": Choice((1, 2, 3))}

    def __init__(self, byzantine: int = 1, selected: int = 1) -> None:
        super().__init__()
        self.byzantine = check_count("byzantine", byzantine, at_least=0)
        self.selected = check_count("selected", selected, at_least=1)

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Returns 1/`selected` for the tasks that are taken `[K']`, else 0."""
        count = len(gramian)
        if count <= 2:
            return torch.full_like(gramian[0], 1 / count)
        norms = gramian.diagonal()
        distances = (norms + norms[:, None] - (gramian + gramian.T)).clamp(min=0).fill_diagonal_(torch.inf)
        neighbours = count - min(self.byzantine, count - 3) - 2
        scores = distances.sort(1).values[:, :neighbours].sum(1)
        taken = scores.argsort(stable=True)[: self.selected]
        return torch.zeros_like(scores).index_fill(0, taken, 1 / len(taken))
