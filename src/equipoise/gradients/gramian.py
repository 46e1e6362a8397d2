"""Products with the Jacobian of the shared parameters, which is never built."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 1 << 18
"""Columns of the Jacobian that are held together at a time, so that a block of 40 rows stays under 42 MB."""


def wide_dtype(device: torch.device) -> torch.dtype:
    """The dtype for K-sized arithmetic: float64, or float32 on a device without it."""
    return torch.float32 if device.type == "mps" else torch.float64


def gramian(gradients: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """Computes `JJᵀ` of K rows of gradients, block by block.

    Args:
        gradients: K rows, each one gradient a parameter, None where it is zero by structure.

    Returns:
        `[K, K]`, accumulated in float64 where the device has it.
    """
    some = next(g for row in gradients for g in row if g is not None)
    result = some.new_zeros((len(gradients),) * 2, dtype=wide_dtype(some.device))
    dtype = torch.promote_types(some.dtype, torch.float32)
    for columns in _blocks(gradients):
        block = some.new_zeros(len(gradients), sum(width for _, _, width in columns), dtype=dtype)
        targets, sources = [], []
        offset = 0
        for parameter, start, width in columns:
            for row, out in zip(gradients, block, strict=True):
                gradient = row[parameter]
                if gradient is not None:
                    targets.append(out[offset : offset + width])
                    sources.append(gradient.reshape(-1)[start : start + width])
            offset += width
        torch._foreach_copy_(targets, sources)
        result += block @ block.T
    return result


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
    """Computes `Σ_k w_k g_k` of every parameter.

    Args:
        gradients: K rows; every parameter has a gradient in at least one of them.
        weights: `[K]`.
    """
    combined: list[Tensor | None] = [None] * len(gradients[0])
    for row, weight in zip(gradients, weights.unbind(), strict=True):
        for index, gradient in enumerate(row):
            if gradient is not None:
                scale = weight.to(gradient.dtype)
                total = combined[index]
                combined[index] = gradient * scale if total is None else total.addcmul_(gradient, scale)
    return [total for total in combined if total is not None]
