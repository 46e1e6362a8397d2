"""Small networks of four tasks, one for each way in which the graphs of tasks run through what they share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TASKS = ("a", "b", "c", "d")
SCALES = {"a": 1.0, "b": 4.0, "c": 0.3, "d": 2.0}
TARGETS = {"a": 1.0, "b": -1.0, "c": 0.5, "d": -2.0}


class Network(nn.Module):
    """A trunk, and a linear head a task."""

    width = 6

    def __init__(self) -> None:
        super().__init__()
        self.trunk = self.make_trunk()
        self.heads = nn.ModuleDict({task: nn.Linear(self.width, 2) for task in TASKS})

    def make_trunk(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh())

    def inputs(self, step: int) -> Tensor:
        x = torch.randn(5, *self.shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        return x.to(next(self.parameters()).dtype)

    shape: tuple[int, ...] = (4,)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """What each task's head is given `[5, width]`."""
        return dict.fromkeys(TASKS, self.trunk(x))

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        return {task: self.heads[task](z) for task, z in self.features(x).items()}

    def losses(self, step: int) -> dict[str, Tensor]:
        """Positive losses at different scales, whose gradients conflict."""
        x = self.inputs(step)
        aim = x.flatten(1).sum(1, keepdim=True).tanh()
        return {
            task: SCALES[task] * (output - TARGETS[task] * aim).square().mean() + 0.1
            for task, output in self.outputs(x).items()
        }


class Convolution(Network):
    shape = (2, 6, 6)

    def make_trunk(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Tanh(), nn.AvgPool2d(2)
        )

    def features(self, x: Tensor) -> dict[str, Tensor]:
        return dict.fromkeys(TASKS, self.trunk(x).flatten(1))


class Transformer(Network):
    shape = (3, 8)
    width = 8

    def make_trunk(self) -> nn.Module:
        return nn.TransformerEncoderLayer(8, 2, dim_feedforward=12, dropout=0.1, batch_first=True)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        return dict.fromkeys(TASKS, self.trunk(x).mean(1))


class Recurrent(Network):
    shape = (3, 4)

    def make_trunk(self) -> nn.Module:
        return nn.LSTM(4, 6, batch_first=True)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        return dict.fromkeys(TASKS, self.trunk(x)[0][:, -1])


class PartlyShared(Network):
    """Tasks a, b and c share a branch; d starts at the trunk, and at the branch's first layer as well."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.bend = nn.Linear(6, 6), nn.Linear(6, 6)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x)
        first = self.branch(z).tanh()
        return dict.fromkeys("abc", self.bend(first).tanh()) | {"d": z + first}


class Tied(Network):
    """Heads a and b read their scores off the trunk's own embedding."""

    def make_trunk(self) -> nn.Module:
        return nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 6), nn.Tanh())

    def features(self, x: Tensor) -> dict[str, Tensor]:
        return dict.fromkeys(TASKS, self.trunk((x[:, 0].abs() * 3).long()))

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        features, scores = self.features(x), self.trunk[0].weight[:2].T
        return {task: self.heads[task](z) + (z @ scores if task in "ab" else 0) for task, z in features.items()}


class ForwardATask(Network):
    """Every task has inputs of its own, which go through the trunk by themselves."""

    def features(self, x: Tensor) -> dict[str, Tensor]:
        return {task: self.trunk(x.roll(index, 1) * (index + 1)) for index, task in enumerate(TASKS)}


ARCHITECTURES: dict[str, type[Network]] = {
    "mlp": Network,
    "convolution": Convolution,
    "transformer": Transformer,
    "lstm": Recurrent,
    "partly shared": PartlyShared,
    "tied": Tied,
    "forward a task": ForwardATask,
}


def make(name: str, dtype: torch.dtype = torch.float64) -> Network:
    """A new network, the same each time."""
    torch.manual_seed(1)
    return ARCHITECTURES[name]().to(dtype)
