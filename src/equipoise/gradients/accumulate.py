"""Writing gradients into `.grad`, and the arithmetic of a gradient scaler."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from equipoise.gradients.jacobian import Rows
from equipoise.gradients.sharded import locals_of


def accumulate_gradients(gradients: Mapping[Tensor, Tensor]) -> None:
    """Adds each gradient into its leaf's `.grad`, or makes it the `.grad` where there is none.

    Hooks of `register_post_accumulate_grad_hook` are called, as autograd calls them.
    """
    old, new = [], []
    for leaf, gradient in gradients.items():
        if leaf.grad is None:
            leaf.grad = gradient
        else:
            old.append(leaf.grad)
            new.append(gradient)
    if old:
        torch._foreach_add_(locals_of(old), locals_of(new))
    for leaf in gradients:
        for hook in (leaf._post_accumulate_grad_hooks or {}).values():
            hook(leaf)


def unscale_rows(rows: Rows, scale: Tensor) -> None:
    """Divides every gradient by the scaler's 0-dim `scale`, in place."""
    inverse = scale.double().reciprocal() if scale.device.type != "mps" else scale.reciprocal()
    for row in rows.values():
        if row:
            torch._foreach_mul_(locals_of(row.values()), inverse)


def all_finite(gradients: Iterable[Tensor]) -> Tensor:
    """Returns a 0-dim bool: whether every element is finite."""
    some = [gradient for gradient in locals_of(gradients) if gradient.numel()]
    return torch.nn.utils.get_total_norm(some, norm_type=torch.inf).isfinite()
