"""Hard parameter sharing on any trunk: what all tasks read, and a linear head for every task."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from equipoise.bench.models._base import MultiTaskNetwork, Representation


class SharedBottom(MultiTaskNetwork):
    """A trunk with a linear head per task: predictions `[B, outputs]`.

    The representation is what the trunk gives, `[B, features]`. The name is that of the recommenders' papers; elsewhere
    it is called hard parameter sharing.

    Args:
        heads: task → number of outputs.
        trunk: takes what the network takes; gives `[B, features]`.
        features: how many.

    Source: Caruana, "Multitask Learning", Machine Learning 1997.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from equipoise.bench.models import SharedBottom
        >>> network = SharedBottom({"visits": 1, "plan": 3}, nn.Sequential(nn.Linear(7, 16), nn.ReLU()), 16)
        >>> {task: tuple(prediction.shape) for task, prediction in network(torch.randn(2, 7)).items()}
        {'visits': (2, 1), 'plan': (2, 3)}
    """

    def __init__(self, heads: Mapping[str, int], trunk: nn.Module, features: int) -> None:
        super().__init__(heads)
        self.trunk = trunk
        self.heads = nn.ModuleList(nn.Linear(features, outputs) for outputs in heads.values())

    def representation(self, images: Tensor) -> Representation:
        """Returns the trunk's features `[B, features]`."""
        return (self.trunk(images),)

    def predict(self, representation: Representation, size: tuple[int, int]) -> dict[str, Tensor]:
        """Returns `[B, outputs]` for every task."""
        return {task: head(representation[0]) for task, head in zip(self.tasks, self.heads, strict=True)}
