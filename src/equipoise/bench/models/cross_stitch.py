"""Cross-stitch networks: every task has its own network, and they exchange features after each stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, cast

import torch
from torch import Tensor, nn

from equipoise.bench.models._base import MultiTaskNetwork, Representation

OWN = 0.9
"""What a task has of its own features at the start."""


class CrossStitch(MultiTaskNetwork):
    """A tower of stages per task, stitched after each stage: predictions `[B, outputs]`.

    After a stage task `k` goes on with `x_k ← Σ_l α_kl ⊙ x_l`, where `α_kl` holds a weight for each channel. They start
    at 0.9 for the task's own features and at 0.1 in all for those of the others. A linear head reads what follows the
    last stage.

    The representation is what the towers give before they are stitched for the last time; the last weights lie beyond
    it and are shared all the same.

    Args:
        heads: task → number of outputs.
        stages: returns a tower's stages, fresh at each call; the first takes what the network takes, and the last gives
            `[B, features]`.
        channels: of what each stage gives.

    Source: Misra et al., "Cross-stitch Networks for Multi-task Learning", CVPR 2016, for two tasks or more. There the
    towers start from networks that were trained for a task each, and the weights learn a hundred times to a thousand
    times as fast; here all start at random and learn alike.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from equipoise.bench.models import CrossStitch
        >>> def stages():
        ...     return [nn.Sequential(nn.Linear(7, 16), nn.ReLU()), nn.Sequential(nn.Linear(16, 8), nn.ReLU())]
        >>> network = CrossStitch({"visits": 1, "plan": 3}, stages, channels=(16, 8))
        >>> {task: tuple(prediction.shape) for task, prediction in network(torch.randn(2, 7)).items()}
        {'visits': (2, 1), 'plan': (2, 3)}
    """

    def __init__(
        self, heads: Mapping[str, int], stages: Callable[[], Sequence[nn.Module]], channels: Sequence[int]
    ) -> None:
        super().__init__(heads)
        units = [Stitch(len(heads), count) for count in channels]
        self.trunk = Towers([stages() for _ in heads], units[:-1])
        self.stitch = units[-1]
        self.heads = nn.ModuleList(nn.Linear(channels[-1], outputs) for outputs in heads.values())

    def shared_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the towers and all weights between them."""
        return [*self.trunk.parameters(), *self.stitch.parameters()]

    def last_shared_layer(self) -> nn.Module:
        """Returns the last stage of every tower."""
        trunk: Any = self.trunk
        return cast("nn.Module", trunk.stages[-1])

    def representation(self, images: Tensor) -> Representation:
        """Returns what each tower gives, `[B, features]`."""
        return tuple(self.trunk(images))

    def predict(self, representation: Representation, size: tuple[int, int]) -> dict[str, Tensor]:
        """Returns `[B, outputs]` for every task."""
        mixed = self.stitch(representation)
        return {task: head(features) for task, head, features in zip(self.tasks, self.heads, mixed, strict=True)}


class Towers(nn.Module):
    """The tasks' towers, stitched after every stage but the last.

    Args:
        towers: each task's stages.
        units: what stitches after each stage but the last.
    """

    def __init__(self, towers: Sequence[Sequence[nn.Module]], units: Sequence[Stitch]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.ModuleList(stage) for stage in zip(*towers, strict=True))  # by stage, then task
        self.units = nn.ModuleList(units)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Returns what each tower's last stage gives."""
        features = [inputs for _ in cast("nn.ModuleList", self.stages[0])]
        for stage, unit in zip_longest(self.stages, self.units):
            features = [module(own) for module, own in zip(cast("nn.ModuleList", stage), features, strict=True)]
            if unit is not None:
                features = unit(features)
        return features


class Stitch(nn.Module):
    """`x_k ← Σ_l α_kl ⊙ x_l`, with a weight a channel.

    Args:
        tasks: how many.
        channels: of each task's features, in their second dimension.
    """

    def __init__(self, tasks: int, channels: int) -> None:
        super().__init__()
        others = (1 - OWN) / max(tasks - 1, 1)
        start = torch.where(torch.eye(tasks, dtype=torch.bool), OWN, others)
        self.weights = nn.Parameter(start[:, :, None].repeat(1, 1, channels))  # [to, from, channels]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Returns every task's mixture."""
        together = torch.stack(list(features))  # [K, B, C, …]
        return list(torch.einsum("klc,lbc...->kbc...", self.weights, together))
