"""Products with the Jacobian of the shared parameters, which is never built."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.gradients.shards import is_sharded, like, local, sharding_groups, sum_over

SMALL = 1 << 21
"""Numbers of several parameters' K gradients that are copied into matrices, to save operations: 8 MB in float32."""

BLOCK = 1 << 17
"""Columns of the Jacobian that are held together at a time, so that a block of 40 rows in float64 stays under 42 MB."""

CACHED = 1 << 20
"""Numbers that are held together at a time on a CPU, whose caches have room for about as many."""


@lru_cache(maxsize=64)
def wide_dtype(device: torch.device) -> torch.dtype:
    """The dtype for K-sized arithmetic: float64, or float32 on a device without it."""
    return torch.float32 if device.type == "mps" else torch.float64


class Stack(NamedTuple):
    """The K gradients of some parameters, side by side as one matrix."""

    places: list[int]
    """The parameters' places in the rows."""

    matrix: Tensor
    """`[K, n]`, of the gradients' dtype."""


def gramian(gradients: Sequence[Sequence[Tensor | None]], stacks: Sequence[Stack] | None = None) -> Tensor:
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
        known = stacks if stacks is not None and real and len(own) == len(some) else stacks_of(rows)
        parts.append(sum_over(groups, _local_gramian(rows, known)))
    return sum(parts[1:], parts[0])


def stacks_of(gradients: Sequence[Sequence[Tensor | None]]) -> list[Stack]:
    """Returns what there is of K rows as matrices: as it lies in memory, or, where it is little, copied."""
    stacks = []
    little: dict[tuple[torch.dtype, torch.device], list[int]] = defaultdict(list)
    zeros: dict[int, Tensor] = {}
    room = SMALL
    for index, column in enumerate(zip(*gradients, strict=True)):
        some = next((gradient for gradient in column if gradient is not None), None)
        if some is None or is_sharded(some):
            continue
        stack = stacked(column)
        if stack is not None:
            stacks.append(Stack([index], stack))
        elif len(column) * some.numel() <= room:
            room -= len(column) * some.numel()
            little[some.dtype, some.device].append(index)
            if any(gradient is None for gradient in column):
                zeros[index] = some.new_zeros(some.numel())
    for places in little.values():
        parts = [zeros[i] if (part := row[i]) is None else part.reshape(-1) for row in gradients for i in places]
        stacks.append(Stack(places, torch.cat(parts).view(len(gradients), -1)))
    return stacks


def as_real(gradient: Tensor) -> Tensor:
    """A complex gradient as one of real and imaginary parts, which share its memory; any other as it is.

    PyTorch's complex gradients are those of the real and the imaginary part by themselves, as if they were two
    parameters.
    """
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient


def _local_gramian(gradients: Sequence[Sequence[Tensor | None]], stacks: Sequence[Stack]) -> Tensor:
    """Computes `JJᵀ` of gradients that this rank has in full."""
    count = len(gradients)
    some = next(gradient for row in gradients for gradient in row if gradient is not None)
    dtype = wide_dtype(some.device)
    done = {place for stack in stacks for place in stack.places}
    left = [column for index, column in enumerate(zip(*gradients, strict=True)) if index not in done]
    parts: list[Tensor | list[Tensor | None]] = [stack.matrix for stack in stacks]
    parts += [_flattened(column) for column in left if any(gradient is not None for gradient in column)]
    blocks = _blocks(parts, min(BLOCK, max(CACHED // count, 1)) if some.device.type == "cpu" else BLOCK)
    widest = max((sum(width for _, _, width in block) for block in blocks), default=0)
    buffer = some.new_empty((count, widest), dtype=dtype)
    result = some.new_zeros((count, count), dtype=dtype)
    for columns in blocks:
        targets, sources, gaps = [], [], []
        offset = 0
        for part, start, width in columns:
            block = buffer[:, offset : offset + width]
            offset += width
            if isinstance(part, Tensor):
                block.copy_(part[:, start : start + width])
                continue
            for gradient, out in zip(part, block, strict=True):
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
    first, last = column[0], column[-1]
    if len(column) < 2 or first is None or last is None:
        return None
    start, step = first.data_ptr(), first.nbytes
    for place, gradient in enumerate(column):
        if gradient is None or gradient.data_ptr() != start + place * step or not gradient.is_contiguous():
            return None
    if first.untyped_storage()._cdata != last.untyped_storage()._cdata:  # what lies between is of the same memory
        return None
    return first.as_strided((len(column), first.numel()), (first.numel(), 1))


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


def _blocks(
    parts: Sequence[Tensor | list[Tensor | None]], most: int
) -> list[list[tuple[Tensor | list[Tensor | None], int, int]]]:
    """Cuts matrices `[K, n]` and lists of K vectors `[n]` into blocks of at most `most` columns.

    Returns:
        Lists of (part, start, width).
    """
    blocks: list[list[tuple[Tensor | list[Tensor | None], int, int]]] = []
    room = 0
    for part in parts:
        size = part.shape[1] if isinstance(part, Tensor) else next(len(vector) for vector in part if vector is not None)
        start = 0
        while start < size:
            if room == 0:
                blocks.append([])
                room = most
            width = min(room, size - start)
            blocks[-1].append((part, start, width))
            start += width
            room -= width
    return blocks


def combine(
    gradients: Sequence[Sequence[Tensor | None]], weights: Tensor, stacks: Sequence[Stack] | None = None
) -> list[Tensor]:
    """Computes `Σ_k w_k g_k` of every parameter, in float32 at least and returned in the gradients' dtype.

    Args:
        gradients: K rows; every parameter has a gradient in at least one of them.
        weights: `[K]`.
        stacks: what `stacks_of` gives of the rows.
    """
    columns = list(zip(*gradients, strict=True))
    some = [next(gradient for gradient in column if gradient is not None) for column in columns]
    wide = {dtype: torch.promote_types(dtype, torch.float32) for dtype in {gradient.dtype for gradient in some}}
    dtypes = [wide[gradient.dtype] for gradient in some]
    combined: dict[int, Tensor] = {}
    with torch.autocast(weights.device.type, enabled=False):
        for places, matrix in stacks_of(gradients) if stacks is None else stacks:
            dtype = dtypes[places[0]]
            total = torch.mv(matrix.to(dtype).T, weights.to(dtype))
            if len(places) == 1:
                combined[places[0]] = total.view(some[places[0]].shape)
                continue
            for i, part in zip(places, torch.split(total, [some[i].numel() for i in places]), strict=True):
                combined[i] = part.clone().view(some[i].shape)  # in memory of its own, to become `.grad`
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
