"""Sparse gradients, as of `nn.Embedding(sparse=True)`: handled at the cost of the rows they touch, not of the table.

Autograd gives them uncoalesced: an entry for every look-up, so that several can be of the same place and add up. How
many places there are only the device knows: coalescing a gradient waits for it, as `torch.optim.SparseAdam` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from equipoise.gradients.shards import like, local


def compact(column: Sequence[Tensor | None]) -> tuple[Sequence[Tensor | None], Callable[[Tensor], Tensor]]:
    """Leaves out of one leaf's sparse gradients the rows that are zero in all of them.

    What is computed of the compact gradients, such as their Gramian or a combination of them, is what the whole
    ones give: rows of zeros add nothing. Dense gradients are returned as they are; where sparse and dense ones meet,
    all become dense.

    Args:
        column: K gradients of one leaf of shape `[*places, *rest]`; None where a task does not reach it.

    Returns:
        K dense gradients `[U, *rest]` over the U places that any of them touches (None stays None), in memory of
        their own, and the way back: takes `[U, *rest]`, returns the coalesced sparse tensor of the leaf's shape.

    Example:
        >>> import torch
        >>> first = torch.sparse_coo_tensor([[7, 2, 7]], [[1.0], [2.0], [3.0]], (9, 1), check_invariants=True)
        >>> second = torch.sparse_coo_tensor([[5]], [[6.0]], (9, 1), check_invariants=True)
        >>> gradients, restored = compact([first, None, second])
        >>> [None if gradient is None else gradient.T for gradient in gradients]
        [tensor([[2., 0., 4.]]), None, tensor([[0., 6., 0.]])]
        >>> restored(gradients[0] + gradients[2]).indices()
        tensor([[2, 5, 7]])
    """
    given = [gradient for gradient in column if gradient is not None]
    if not any(gradient.is_sparse for gradient in given):
        return column, _same
    if not alike(given):
        return [None if gradient is None else coalesced(gradient).to_dense() for gradient in column], _same
    shape = given[0].shape
    stacked = coalesced(torch.stack(given))  # [K', *places, *rest]: in one go, for it waits for the device
    (tasks, *indices), values = stacked.indices().unbind(), stacked.values()
    flat = torch.zeros_like(tasks)
    for index, size in zip(indices, shape, strict=False):
        flat = flat * size + index
    found, slots = torch.unique(flat, return_inverse=True)
    places = tasks.new_empty((len(indices), len(found)))
    places[:, slots] = stacked.indices()[1:]  # entries of one place write the same
    dense = values.new_zeros((len(given), len(found), *values.shape[1:]))
    dense[tasks, slots] = values
    rows = iter(dense.unbind())

    def restored(combined: Tensor) -> Tensor:
        return torch.sparse_coo_tensor(places, combined, shape, is_coalesced=True, check_invariants=False)

    return [None if gradient is None else next(rows) for gradient in column], restored


def coalesced(gradient: Tensor) -> Tensor:
    """Adds up a sparse gradient's entries of the same place, in float32 at least; a dense gradient is returned as is.

    A norm, finiteness, and whatever is not linear in the entries is that of the coalesced gradient.
    """
    if not gradient.is_sparse:
        return gradient
    wide = torch.promote_types(gradient.dtype, torch.float32)
    return gradient.to(wide).coalesce().to(gradient.dtype)


def values_of(gradients: Iterable[Tensor]) -> list[Tensor]:
    """Returns the dense tensors that hold the gradients: of a sparse one its entries' values `[entries, *rest]`.

    They share the gradients' memory, so that scaling them in place scales the gradients, by PyTorch's foreach kernels,
    which fall back to one tensor at a time if a single one is sparse.
    """
    return [gradient._values() if gradient.is_sparse else gradient for gradient in gradients]


def added(old: Tensor, new: Tensor) -> Tensor:
    """Adds two gradients of one leaf: sparse if both are, dense otherwise; changes neither."""
    if not alike([old, new]):
        return coalesced(old).to_dense() + coalesced(new)  # PyTorch adds no dense tensor to a sparse one
    entries = torch.cat([old._indices(), new._indices()], dim=1)
    values = torch.cat([old._values(), new._values()])
    return torch.sparse_coo_tensor(entries, values, old.shape, check_invariants=False)


def accumulate_gradient(leaf: Tensor, gradient: Tensor) -> None:
    """Adds a gradient into the leaf's `.grad` as autograd does, where either may be sparse.

    Nothing there: it becomes `.grad`. A dense `.grad` is added to in place. A sparse one stays sparse if the gradient
    is, too, and becomes dense otherwise.

    Args:
        leaf: the parameter.
        gradient: shares memory with nothing else.
    """
    if leaf.grad is None:
        leaf.grad = gradient
    elif leaf.grad.is_sparse:
        leaf.grad = added(leaf.grad, gradient)
    else:
        local(leaf.grad).add_(local(gradient))


def zero_unless(flag: Tensor, gradient: Tensor) -> Tensor:
    """Returns the gradient, or zeros where the 0-dim bool is false: also in place of NaN."""
    if gradient.is_sparse:
        values = torch.where(flag, gradient._values(), 0)
        return torch.sparse_coo_tensor(gradient._indices(), values, gradient.shape, check_invariants=False)
    return like(torch.where(flag, local(gradient), 0), gradient)


def touched(gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Returns the places of several sparse gradients' entries, some more than once, as one index `[entries]` each.

    Indexing the leaf with them gives `[entries, *rest]`. Nothing waits for the device.
    """
    return torch.cat([gradient._indices() for gradient in gradients], dim=1).unbind()


def alike(gradients: Sequence[Tensor]) -> bool:
    """Whether all are sparse, in the same dimensions (`torch.gather` is sparse in all, an embedding in the first)."""
    return all(gradient.is_sparse for gradient in gradients) and len({g.sparse_dim() for g in gradients}) == 1


def _same(gradient: Tensor) -> Tensor:
    return gradient
