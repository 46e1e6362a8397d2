"""Aligned-MTL: gradients made orthogonal and equally long."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from equipoise._checks import check_choice
from equipoise.aggregators._base import GramianAggregator
from equipoise.search_space import Choice, SearchSpace

SCALES = ("min", "median", "mean")


class AlignedMTL(GramianAggregator):
    """Combines the tasks' gradients as if they were orthogonal and equally long.

    With `G = JJᵀ = VΛVᵀ` the aligned gradients are the rows of `Ĵ = √s V Λ^{−½} Vᵀ J`, which is the matrix nearest to
    `J` up to scale whose rows are orthonormal, times `√s`; `d` is their mean. So the weights are
    `w = √s V Λ^{−½} Vᵀ 1/K`. The condition number of the linear system of gradients is then 1, whatever it was.

    Directions in which the rows do not reach, with eigenvalues up to `K ε λ_max` (float64's ε), are left out, as in
    the authors' code; if all gradients are 0 the weights are `1/K`.

    One eigendecomposition of the Gramian, on the host: 128 tasks take some 3 ms.

    Preferences `p_k` weigh the mean: `w = √s V Λ^{−½} Vᵀ p / Σ_k p_k`, the paper's pre-defined task weights.

    Args:
        scale: the length `s` of the aligned gradients, of the eigenvalues that are not left out: `"min"` the least one
            (the paper), `"median"` the lower median, or `"mean"` (both in the authors' code, whose default is the
            least as well).

    Raises:
        ValueError: `scale` is none of these.

    Source: Senushkin et al., "Independent Component Alignment for Multi-Task Learning", CVPR 2023, Algorithm 1.

    Example:
        >>> import torch
        >>> from equipoise.aggregators import AlignedMTL
        >>> AlignedMTL()(torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
        tensor([0.5000, 0.5000])
    """

    takes_preferences = True
    permutation_invariant = True
    homogeneous = True
    search_space: ClassVar[SearchSpace] = {"scale": Choice(SCALES)}

    def __init__(self, scale: str = "min") -> None:
        super().__init__()
        self.scale = check_choice("scale", scale, SCALES)

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Returns `√s V Λ^{−½} Vᵀ 1/K'` `[K']`."""
        preferences = torch.ones_like(gramian[0]) if self.preferences is None else self.preferences
        shares = preferences / preferences.sum()
        eigenvalues, vectors = torch.linalg.eigh(gramian)
        kept = eigenvalues > len(gramian) * torch.finfo(gramian.dtype).eps * eigenvalues[-1]
        if not kept.any():
            return shares
        eigenvalues, vectors = eigenvalues[kept], vectors[:, kept]
        scales = {"min": eigenvalues.amin(), "median": eigenvalues.median(), "mean": eigenvalues.mean()}
        weights: Tensor = vectors @ ((scales[self.scale] / eigenvalues).sqrt() * (vectors.T @ shares))
        return weights
