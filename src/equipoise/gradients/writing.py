"""Writing gradients into `.grad`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from equipoise.gradients.jacobian import Row
from equipoise.gradients.owning import owned
from equipoise.gradients.shards import locals_of
from equipoise.gradients.sparse import accumulate_gradient, coalesced, values_of


def write(gradients: Row) -> None:
    """Adds each gradient into its leaf's `.grad`, or makes it the `.grad` where there is none.

    Hooks of `register_post_accumulate_grad_hook` are called, as autograd calls them.

    Args:
        gradients: taken over and emptied. What anybody else holds is copied; see `owned`.
    """
    leaves, old, new = list(gradients), [], []
    for leaf in leaves:
        if leaf.grad is not None and (leaf.grad.is_sparse or gradients[leaf].is_sparse):
            accumulate_gradient(leaf, gradients.pop(leaf))
        elif leaf.grad is not None:
            old.append(leaf.grad)
            new.append(gradients.pop(leaf))
    for leaf, gradient in owned(gradients).items():
        leaf.grad = gradient
    if old:
        torch._foreach_add_(locals_of(old), locals_of(new))
    for leaf in leaves:
        for hook in (leaf._post_accumulate_grad_hooks or {}).values():
            hook(leaf)


def all_finite(gradients: Iterable[Tensor], device: torch.device) -> Tensor:
    """Returns a 0-dim bool on the device: whether every element is finite."""
    values = values_of(coalesced(gradient) for gradient in locals_of(gradients))
    some = [part for part in values if part.numel()]
    if not some:
        return torch.ones((), dtype=torch.bool, device=device)
    return torch.nn.utils.get_total_norm(some, norm_type=torch.inf).isfinite().to(device)
