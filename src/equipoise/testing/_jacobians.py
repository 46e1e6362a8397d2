"""Jacobians to try aggregators on, in float64: `SAMPLES` names them, `sample` makes one of K rows."""

import itertools

import torch
from torch import Tensor

SAMPLES = (
    "random",
    "shared direction",
    "conflicting",
    "low rank",
    "zero rows",
    "duplicate rows",
    "scaled duplicates",
    "opposite rows",
    "wildly scaled",
    "tiny",
    "huge",
)
COUNTS = (1, 2, 3, 5, 40)

CASES = list(itertools.product(SAMPLES, COUNTS))
FULL_RANK = [case for case in CASES if case[0] in ("random", "shared direction", "conflicting")]


def sample(name: str, count: int, seed: int = 0) -> Tensor:
    """Returns a Jacobian `[count, 100]` of one of `SAMPLES`, the same for the same seed."""
    generator = torch.Generator().manual_seed(1000 * SAMPLES.index(name) + 10 * count + seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows = normal(count, 100)
    half = (count + 1) // 2
    if name == "shared direction":  # badly conditioned: nearly parallel, over four decades
        scales = torch.logspace(-2, 2, count, dtype=torch.float64)
        return (normal(1, 100) + 0.1 * rows) * scales[:, None]
    if name == "conflicting":
        signs = 1.0 - 2.0 * (torch.arange(count) % 3 == 0)
        return rows + 0.7 * signs[:, None] * normal(1, 100)
    if name == "low rank":
        return normal(count, max(1, count // 2)) @ normal(max(1, count // 2), 100)
    if name == "zero rows":
        rows[::2] = 0
        return rows
    if name == "duplicate rows":
        return torch.cat((rows[:half], rows[: count - half]))
    if name == "scaled duplicates":
        return torch.cat((rows[:half], 3 * rows[: count - half]))
    if name == "opposite rows":
        return torch.cat((rows[:half], -rows[: count - half]))
    if name == "wildly scaled":
        exponents = torch.linspace(-12, 12, count)[torch.randperm(count, generator=generator)]
        return rows * 10 ** exponents[:, None].double()
    return rows * {"random": 1.0, "tiny": 1e-12, "huge": 1e12}[name]
