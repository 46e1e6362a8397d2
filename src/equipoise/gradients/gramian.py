"""Products with the Jacobian of the shared parameters, which is never built."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from equipoise.gradients.shards import is_sharded, like, local, sharding_groups, sum_over

BLOCK = 1 << 17
"""Columns of the Jacobian that are held together at a time, so that a block of 40 rows in float64 stays under 42 MB."""


def wide_dtype(device: torch.device) -> torch.dtype:
    """The dtype for K-sized arithmetic: float64, or float32 on a device without it."""
    return torch.float32 if device.type == "mps" else torch.float64


def gramian(gradients: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """Computes `JJᵀ` of K rows of gradients, block by block.

    The products are taken in float64, not only summed in it: a float32 product is off by some 1e-6 of the norms
    (1e-3 in TF32), too much to tell nearly dependent or cancelling gradients apart, and it overflows at gradients
    of 1e19.

    Args:
        gradients: K rows, each one gradient a parameter, None where it is zero by structure. Of sharded gradients
            every rank takes its shards, and the products are added up over the ranks.

    Returns:
        `[K, K]`, float64 where the device has it.
    """
    columns = [column for column in zip(*gradients, strict=True) if any(gradient is not None for gradient in column)]
    spread = [sharding_groups(next(g for g in column if g is not None)) for column in columns]
    parts = []
    for groups in dict.fromkeys(spread):
        own = [column for column, over in zip(columns, spread, strict=True) if over == groups]
        rows = [[None if g is None else as_real(local(g)) for g in row] for row in zip(*own, strict=True)]
        parts.append(sum_over(groups, _local_gramian(rows)))
    return sum(parts[1:], parts[0])


def as_real(gradient: Tensor) -> Tensor:
    """A complex gradient as one of real and imaginary parts, which share its memory; any other as it is.

    PyTorch's complex gradients are those of the real and the imaginary part by themselves, as if they were two
    parameters.
    """
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient


def _local_gramian(gradients: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """Computes `JJᵀ` of gradients that this rank has in full."""
    count = len(gradients)
    some = next(gradient for row in gradients for gradient in row if gradient is not None)
    blocks = _blocks(gradients)
    dtype = wide_dtype(some.device)
    widest = max(sum(width for _, _, width in columns) for columns in blocks) if blocks else 0
    buffer = some.new_empty((count, widest), dtype=dtype)
    result = some.new_zeros((count, count), dtype=dtype)
    columns_of = list(zip(*gradients, strict=True))
    stacks = [stacked(column) for column in columns_of]
    flat = [_flattened(c) if stack is None else [] for c, stack in zip(columns_of, stacks, strict=True)]
    for columns in blocks:
        targets, sources, gaps = [], [], []
        offset = 0
        for parameter, start, width in columns:
            block = buffer[:, offset : offset + width]
            stack = stacks[parameter]
            offset += width
            if stack is not None:
                block.copy_(stack[:, start : start + width])
                continue
            for gradient, out in zip(flat[parameter], block, strict=True):
                if gradient is None:
                    gaps.append(out)
                else:
                    targets.append(out)
                    sources.append(gradient[start : start + width])
        if targets:
            torch._foreach_copy_(targets, sources)
        if gaps:
            torch._foreach_zero_(gaps)
        block = buffer[:, :offset]
        result.addmm_(block, block.T)
    return result


def stacked(column: Sequence[Tensor | None]) -> Tensor | None:
    """Returns one parameter's K gradients as one matrix `[K, n]` where they lie in memory as such; else None.

    So they do where several tasks went through the graph at once.
    """
    first = column[0]
    if len(column) < 2 or first is None or is_sharded(first) or not first.is_contiguous():
        return None
    size = first.numel()
    start = first.storage_offset()
    identity = first.untyped_storage()._cdata
    for place, gradient in enumerate(column):
        if (
            gradient is None
            or gradient.storage_offset() != start + place * size
            or gradient.shape != first.shape
            or not gradient.is_contiguous()
            or gradient.untyped_storage()._cdata != identity
        ):
            return None
    return first.as_strided((len(column), size), (size, 1), start)


def _flattened(column: Sequence[Tensor | None]) -> list[Tensor | None]:
    """One parameter's gradients as vectors, in the order of memory, so that none is copied."""
    some = next(gradient for gradient in column if gradient is not None)
    if some.is_contiguous():
        return [None if gradient is None else gradient.reshape(-1) for gradient in column]
    order = memory_order(some)
    return [None if gradient is None else gradient.permute(order).reshape(-1) for gradient in column]


def memory_order(gradient: Tensor) -> list[int]:
    """The dimensions as they lie in memory: so permuted, a channels-last tensor is flat without a copy, too."""
    return sorted(range(gradient.dim()), key=gradient.stride, reverse=True)


def _blocks(gradients: Sequence[Sequence[Tensor | None]]) -> list[list[tuple[int, int, int]]]:
    """Cuts the parameters' flat ranges into blocks of at most BLOCK columns: lists of (parameter, start, width)."""
    blocks: list[list[tuple[int, int, int]]] = []
    room = 0
    for parameter, column in enumerate(zip(*gradients, strict=True)):
        size = next((g.numel() for g in column if g is not None), 0)
        start = 0
        while start < size:
            if room == 0:
                blocks.append([])
                room = BLOCK
            width = min(room, size - start)
            blocks[-1].append((parameter, start, width))
            start += width
            room -= width
    return blocks


def combine(gradients: Sequence[Sequence[Tensor | None]], weights: Tensor) -> list[Tensor]:
    """Computes `Σ_k w_k g_k` of every parameter, in float32 at least and returned in the gradients' dtype.

    Args:
        gradients: K rows; every parameter has a gradient in at least one of them.
        weights: `[K]`.
    """
    columns = list(zip(*gradients, strict=True))
    some = [next(gradient for gradient in column if gradient is not None) for column in columns]
    dtypes = [torch.promote_types(gradient.dtype, torch.float32) for gradient in some]
    stacks = {
        index: stack
        for index, column in enumerate(columns)
        if dtypes[index] == some[index].dtype and (stack := stacked(column)) is not None
    }
    combined: dict[int, Tensor] = {}
    with torch.autocast(weights.device.type, enabled=False):
        for index, stack in stacks.items():
            combined[index] = torch.mv(stack.T, weights.to(stack.dtype)).view(some[index].shape)
    for dtype in {dtype for index, dtype in enumerate(dtypes) if index not in combined}:
        totals: dict[int, Tensor] = {}
        for row, weight in zip(gradients, weights.to(dtype).unbind(), strict=True):
            own = {
                index: local(gradient).to(dtype)
                for index, gradient in enumerate(row)
                if gradient is not None and dtypes[index] == dtype and index not in combined
            }
            held = [index for index in own if index in totals]
            new = [index for index in own if index not in totals]
            if held:
                _add_scaled([totals[index] for index in held], [own[index] for index in held], weight)
            if new:
                totals.update(zip(new, torch._foreach_mul([own[index] for index in new], weight), strict=True))
        combined |= totals
    return [like(combined[index].to(whole.dtype), whole) for index, whole in enumerate(some)]


def _add_scaled(totals: list[Tensor], gradients: list[Tensor], weight: Tensor) -> None:
    if weight.device.type == "cpu":
        torch._foreach_add_(totals, gradients, alpha=weight.item())
    else:
        torch._foreach_add_(totals, torch._foreach_mul(gradients, weight))
