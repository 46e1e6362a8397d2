"""What the mixtures of experts share: experts, gates and the weighted sum."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def perceptron(inputs: int, *widths: int) -> nn.Sequential:
    """Returns dense layers of these widths, with ReLU after each."""
    layers: list[nn.Module] = []
    for before, after in zip((inputs, *widths), widths, strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers)


def experts(count: int, inputs: int, width: int) -> nn.ModuleList:
    """Returns so many dense layers with ReLU, `[B, inputs]` → `[B, width]`."""
    return nn.ModuleList(perceptron(inputs, width) for _ in range(count))


class Gate(nn.Module):
    """`softmax(W x)`: what share of each expert a reader takes, `[B, inputs]` → `[B, experts]`.

    Args:
        inputs: features.
        experts: how many it chooses from.
    """

    def __init__(self, inputs: int, experts: int) -> None:
        super().__init__()
        self.scores = nn.Linear(inputs, experts, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the shares, which sum to 1."""
        scores: Tensor = self.scores(inputs)
        return scores.softmax(1)


def run(modules: Iterable[nn.Module], inputs: Tensor) -> list[Tensor]:
    """Returns what each module gives for the same input."""
    return [module(inputs) for module in modules]


def mix(shares: Tensor, outputs: list[Tensor]) -> Tensor:
    """Returns `Σ_i shares_i outputs_i`, `[B, width]`, of shares `[B, experts]` and an output `[B, width]` an expert."""
    return torch.einsum("be,ebw->bw", shares, torch.stack(outputs))
