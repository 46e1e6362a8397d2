"""Products with the Jacobian of the shared parameters, which is never built."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from equipoise.gradients.sharded import like, local, sharding_groups, sum_over

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
    columns = list(zip(*gradients, strict=True))
    spread = [sharding_groups(next(g for g in column if g is not None)) for column in columns]
    parts = []
    for groups in dict.fromkeys(spread):
        own = [column for column, over in zip(columns, spread, strict=True) if over == groups]
        rows = [[None if g is None else local(g) for g in row] for row in zip(*own, strict=True)]
        parts.append(sum_over(groups, _local_gramian(rows)))
    return sum(parts[1:], parts[0])


def _local_gramian(gradients: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """Computes `JJᵀ` of gradients that this rank has in full."""
    count = len(gradients)
    some = next(gradient for row in gradients for gradient in row if gradient is not None)
    blocks = _blocks(gradients)
    dtype = wide_dtype(some.device)
    widest = max(sum(width for _, _, width in columns) for columns in blocks) if blocks else 0
    buffer = some.new_empty((count, widest), dtype=dtype)
    result = some.new_zeros((count, count), dtype=dtype)
    for columns in blocks:
        targets, sources, gaps = [], [], []
        offset = 0
        for parameter, start, width in columns:
            column = [row[parameter] for row in gradients]
            order = _memory_order(next(gradient for gradient in column if gradient is not None))
            for gradient, out in zip(column, buffer, strict=True):
                target = out[offset : offset + width]
                if gradient is None:
                    gaps.append(target)
                else:
                    targets.append(target)
                    sources.append(gradient.permute(order).reshape(-1)[start : start + width])
            offset += width
        torch._foreach_copy_(targets, sources)
        if gaps:
            torch._foreach_zero_(gaps)
        block = buffer[:, :offset]
        result.addmm_(block, block.T)
    return result


def _memory_order(gradient: Tensor) -> list[int]:
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
    scales = {
        dtype: weights.to(dtype).unbind()
        for dtype in {_sum_dtype(gradient) for row in gradients for gradient in row if gradient is not None}
    }
    combined = []
    for column in zip(*gradients, strict=True):
        total: Tensor | None = None
        for index, gradient in enumerate(column):
            if gradient is not None:
                whole = gradient
                wide = local(gradient).to(_sum_dtype(gradient))
                scale = scales[wide.dtype][index]
                total = wide * scale if total is None else total.addcmul_(wide, scale)
        if total is not None:
            combined.append(like(total.to(whole.dtype), whole))
    return combined


def _sum_dtype(gradient: Tensor) -> torch.dtype:
    """The dtype in which gradients like this one are added up: their own, but no narrower than float32."""
    return torch.promote_types(gradient.dtype, torch.float32)
