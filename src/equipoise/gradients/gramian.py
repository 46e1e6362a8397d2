"""Products with the Jacobian of the shared parameters, which is never built."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from equipoise.gradients.shards import is_sharded, like, local, sharding_groups, sum_over

SMALL = 1 << 21
"""Numbers of several parameters' K gradients that are copied into matrices, to save operations: 8 MB in float32."""

BLOCK = 1 << 17
"""Columns of the Jacobian that are held together at a time, so that a block of 40 rows in float64 stays under 42 MB."""


@lru_cache(maxsize=64)
def wide_dtype(device: torch.device) -> torch.dtype:
    """The dtype for K-sized arithmetic: float64, or float32 on a device without it."""
    return torch.float32 if device.type == "mps" else torch.float64


Stacks = Sequence[Tensor | None]
"""For each parameter its K gradients as a matrix `[K, n]`, where there is one; see `stacks_of`."""


def gramian(gradients: Sequence[Sequence[Tensor | None]], stacks: Stacks | None = None) -> Tensor:
    """Computes `JJᵀ` of K rows of gradients, block by block.

    The products are taken in float64, not only summed in it: a float32 product is off by some 1e-6 of the norms
    (1e-3 in TF32), too much to tell nearly dependent or cancelling gradients apart, and it overflows at gradients
    of 1e19.

    Args:
        gradients: K rows, each one gradient a parameter, None where it is zero by structure. Of sharded gradients
            every rank takes its shards, and the products are added up over the ranks.
        stacks: what `stacks_of` gives of them.

    Returns:
        `[K, K]`, float64 where the device has it.
    """
    columns = list(zip(*gradients, strict=True))
    some = [next((g for g in column if g is not None), None) for column in columns]
    spread = [None if gradient is None else sharding_groups(gradient) for gradient in some]
    parts = []
    for groups in dict.fromkeys(over for over in spread if over is not None):
        own = [index for index, over in enumerate(spread) if over == groups]
        rows = [[row[index] for index in own] for row in gradients]
        real = not any(t is not None and t.is_complex() for t in some)
        if not real or any(t is not None and is_sharded(t) for t in some):
            rows = [[None if g is None else as_real(local(g)) for g in row] for row in rows]
        known = [stacks[index] for index in own] if stacks is not None and real else stacks_of(rows)
        parts.append(sum_over(groups, _local_gramian(rows, known)))
    return sum(parts[1:], parts[0])


def stacks_of(gradients: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
    """Returns for each parameter its K gradients as a matrix: as they lie in memory, or, if few, copied; else None."""
    stacks = []
    room = SMALL
    for column in zip(*gradients, strict=True):
        some = next((gradient for gradient in column if gradient is not None), None)
        stack = None if some is None or is_sharded(some) else stacked(column)
        if stack is None and some is not None and not is_sharded(some) and len(column) * some.numel() <= room:
            rows = [torch.zeros_like(some) if gradient is None else gradient for gradient in column]
            stack = torch.stack(rows).reshape(len(column), some.numel())
            room -= stack.numel()
        stacks.append(stack)
    return stacks


def as_real(gradient: Tensor) -> Tensor:
    """A complex gradient as one of real and imaginary parts, which share its memory; any other as it is.

    PyTorch's complex gradients are those of the real and the imaginary part by themselves, as if they were two
    parameters.
    """
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient


def _local_gramian(gradients: Sequence[Sequence[Tensor | None]], stacks: Stacks) -> Tensor:
    """Computes `JJᵀ` of gradients that this rank has in full."""
    count = len(gradients)
    some = next(gradient for row in gradients for gradient in row if gradient is not None)
    dtype = wide_dtype(some.device)
    result = some.new_zeros((count, count), dtype=dtype)
    small, left, room = [], [], BLOCK
    for index, stack in enumerate(stacks):
        if stack is None or stack.shape[1] > room:
            left.append(index)
        else:
            small.append(stack)
            room -= stack.shape[1]
    if small:
        concatenated = torch.cat(small, 1).to(dtype)
        result.addmm_(concatenated, concatenated.T)
    if not left:
        return result
    rows = [[row[index] for index in left] for row in gradients]
    stacks = [stacks[index] for index in left]
    blocks = _blocks(rows)
    widest = max(sum(width for _, _, width in columns) for columns in blocks) if blocks else 0
    buffer = some.new_empty((count, widest), dtype=dtype)
    flat = [
        _flattened(column) if stack is None else []
        for column, stack in zip(zip(*rows, strict=True), stacks, strict=True)
    ]
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


def combine(
    gradients: Sequence[Sequence[Tensor | None]], weights: Tensor, stacks: Stacks | None = None
) -> list[Tensor]:
    """Computes `Σ_k w_k g_k` of every parameter, in float32 at least and returned in the gradients' dtype.

    Args:
        gradients: K rows; every parameter has a gradient in at least one of them.
        weights: `[K]`.
        stacks: what `stacks_of` gives of the rows.
    """
    columns = list(zip(*gradients, strict=True))
    some = [next(gradient for gradient in column if gradient is not None) for column in columns]
    dtypes = [torch.promote_types(gradient.dtype, torch.float32) for gradient in some]
    combined: dict[int, Tensor] = {}
    with torch.autocast(weights.device.type, enabled=False):
        for index, stack in enumerate(stacks_of(gradients) if stacks is None else stacks):
            if stack is not None:
                wide = torch.mv(stack.to(dtypes[index]).T, weights.to(dtypes[index]))
                combined[index] = wide.view(some[index].shape)
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
