"""In which order each task meets the others."""

from __future__ import annotations

import torch
from torch import Tensor


def random_orders(count: int, generator: torch.Generator | None) -> Tensor:
    """Draws for each of `count` tasks an order of the other ones, on the CPU: their indices, `[K, K − 1]`."""
    draw = torch.rand(count, count, dtype=torch.float64, device="cpu", generator=generator)
    return draw.fill_diagonal_(torch.inf).argsort(1)[:, :-1]  # a task itself comes last
