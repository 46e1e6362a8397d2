"""Gradients that are kept or become `.grad`: memory of their own, laid out like their parameter.

Autograd hands out what an operator returned: a tensor that the user's own `autograd.Function` had saved, the gradient
of another leaf, a view. `AccumulateGrad` copies where anybody else holds the tensor, and so does this.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from equipoise.gradients.jacobian import Row
from equipoise.gradients.shards import is_sharded

_USE_COUNT = getattr(torch.Tensor, "_use_count", None)
"""How many hold the tensor, for Python counts as one; older PyTorch does not tell."""


def owned(row: Row) -> Row:
    """Returns the row's gradients, those copied that share memory with anything else or are laid out otherwise.

    Empties the row, which would count as somebody else. Sparse gradients stay sparse.
    """
    leaves, gradients = list(row), list(row.values())
    row.clear()
    alone = [_is_alone(*holders) for holders in _holders(gradients)]
    return {
        leaf: gradient if kept and _is_laid_out(gradient, leaf) else _copied(gradient, leaf)
        for leaf, gradient, kept in zip(leaves, gradients, alone, strict=True)
    }


def _is_laid_out(gradient: Tensor, leaf: Tensor) -> bool:
    """Whether it could be the leaf's `.grad`, and keeps no more memory: several tasks' rows can come in one piece."""
    fills_storage = gradient.untyped_storage().nbytes() == gradient.nbytes
    return fills_storage and not gradient.requires_grad and gradient.stride() == leaf.stride()


def _copied(gradient: Tensor, leaf: Tensor) -> Tensor:
    gradient = gradient.detach()
    if gradient.layout != torch.strided:
        return gradient.clone()
    return torch.empty_like(leaf, requires_grad=False).copy_(gradient)


def _holders(tensors: Sequence[Tensor]) -> list[tuple[int, int, int, int]]:
    """For each tensor how many hold it, hold it beside Python, hold its base if it is a view, and hold its memory.

    There are views whose base nobody else has, since operators return them. What cannot be told counts as many.
    """
    found = []
    for tensor in tensors:
        base = tensor._base
        if _USE_COUNT is None or tensor.layout != torch.strided or is_sharded(tensor):
            found.append((sys.maxsize,) * 4)
            continue
        of_base = 0 if base is None else sys.getrefcount(base) + _USE_COUNT(base)
        of_memory = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
        found.append((sys.getrefcount(tensor), _USE_COUNT(tensor), of_base, of_memory - (base is not None)))
    return found


def _is_alone(references: int, uses: int, of_base: int, of_memory: int) -> bool:
    return references <= _ALONE[0] and uses <= _ALONE[1] and of_base <= _VIEW_ALONE[2] and of_memory <= _ALONE[3]


_ALONE = _holders([torch.empty(1, device="cpu")])[0]
_VIEW_ALONE = _holders([torch.empty(1, device="cpu").view(1)])[0]
