"""The task gradients' norms and cosines, taken out of their Gramian."""

from __future__ import annotations

from torch import Tensor


def row_norms(gramian: Tensor) -> Tensor:
    """Returns the norms `‖g_k‖` `[K]` of the rows whose Gramian `JJᵀ` `[K, K]` is given."""
    return gramian.diagonal().clamp(min=0).sqrt()


class Normalized:
    """The rows as lengths and directions: `⟨g_j, g_k⟩ = ‖g_j‖ ‖g_k‖ C_jk`.

    Solvers work on the cosines: the rows' norms may differ by many decades, and the Gramian's entries by twice as many.

    Args:
        gramian: `JJᵀ` `[K, K]`.

    Attributes:
        zero: which rows are 0, `[K]`.
        norms: `‖g_k‖` `[K]`; where the row is 0 the least of the other norms, 1 if all are 0.
        cosines: `C` `[K, K]`, with 1 on the diagonal; a row that is 0 is orthogonal to all others.
    """

    def __init__(self, gramian: Tensor) -> None:
        self.norms = row_norms(gramian)
        self.zero = self.norms == 0
        if self.zero.any():
            self.norms[self.zero] = 1.0 if self.zero.all() else self.norms[~self.zero].amin()
        self.cosines = gramian / self.norms / self.norms[:, None]
        self.cosines.fill_diagonal_(1.0)
