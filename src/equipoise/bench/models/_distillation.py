"""What PAD-Net and MTI-Net share: tasks' features, and their distillation between the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from equipoise.bench.models._base import convolution


class Distillation(nn.Module):
    """Adds to a task's features at one scale those of every other task, `F_k + Σ_{l≠k} σ(W_kl F_l) ⊙ (V_kl F_l)`.

    Args:
        channels: of each task's features.
        tasks: how many.

    Source: Xu et al., "PAD-Net", CVPR 2018.
    """

    def __init__(self, channels: int, tasks: int) -> None:
        super().__init__()
        self.links = nn.ModuleList(
            nn.ModuleList(SpatialAttention(channels) for _ in range(tasks - 1)) for _ in range(tasks)
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Returns every task's distilled features."""
        distilled = []
        for index, (own, links) in enumerate(zip(features, self.links, strict=True)):
            others = [other for position, other in enumerate(features) if position != index]
            for link, other in zip(cast("nn.ModuleList", links), others, strict=True):
                own = own + link(other)
            distilled.append(own)
        return distilled


class SpatialAttention(nn.Module):
    """`σ(W F) ⊙ (V F)` with 3×3 convolutions `W` and `V`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mask = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.Sigmoid())
        self.message = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Returns what the features tell another task."""
        mask: Tensor = self.mask(features)
        message: Tensor = self.message(features)
        return mask * message


def residual_blocks(inputs: int, outputs: int) -> nn.Sequential:
    """Returns two residual blocks, the first of which changes the width."""
    first = BasicBlock(inputs, outputs, downsample=convolution(inputs, outputs, 1, activation=False))
    return nn.Sequential(first, BasicBlock(outputs, outputs))
