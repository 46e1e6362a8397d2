"""What is trained in a benchmark: a trunk, a head a task, one batch, squared losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import resnet18


class MultiTask(nn.Module):
    """A trunk `[N, …] → [N, F]` and one linear head a task."""

    def __init__(self, trunk: nn.Module, features: int, tasks: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleList(nn.Linear(features, 1) for _ in range(tasks))


@dataclass(frozen=True)
class Workload:
    """A model and the batch it is benchmarked on.

    Attributes:
        name: model and number of tasks.
        model: the network.
        inputs, targets: the batch; targets `[K, N]`.
    """

    name: str
    model: MultiTask
    inputs: Tensor
    targets: Tensor

    @property
    def tasks(self) -> list[str]:
        """The tasks' names."""
        return [f"task{index}" for index in range(len(self.targets))]

    def representation(self) -> Tensor:
        """Runs the trunk: `[N, F]`."""
        return self.model.trunk(self.inputs)

    def losses(self, representation: Tensor) -> dict[str, Tensor]:
        """Runs the heads; each loss has a scale of its own, over four decades."""
        scales = torch.logspace(-2, 2, len(self.targets)).tolist()
        return {
            task: scale * (head(representation).squeeze(1) - target).square().mean()
            for task, head, target, scale in zip(self.tasks, self.model.heads, self.targets, scales, strict=True)
        }


class Transformer(nn.Module):
    """A pre-norm transformer encoder over 64 tokens, averaged to one vector."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens `[N, 64]` to `[N, width]`."""
        return self.encoder(self.embedding(tokens)).mean(1)


Made = tuple[nn.Module, int, Tensor]
"""A trunk, the number of its features, and its inputs."""


def mlp(device: torch.device) -> Made:
    """Small layers and a small batch: what it costs to launch operations shows."""
    trunk = nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)
    )
    return trunk, 64, torch.randn(32, 32, device=device)


def wide_mlp(device: torch.device) -> Made:
    """8 layers of width 512 and 64 rows: large weights beside a small batch."""
    layers: list[nn.Module] = []
    for _ in range(8):
        layers += [nn.Linear(512, 512), nn.ReLU()]
    return nn.Sequential(*layers), 512, torch.randn(64, 512, device=device)


def convolutions(device: torch.device) -> Made:
    """8 convolutions of 128 channels with batch normalisation on 16 images of 16×16: a large batch beside weights."""
    layers: list[nn.Module] = []
    for index in range(8):
        layers += [nn.Conv2d(128 if index else 3, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU()]
    trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return trunk, 128, torch.randn(16, 3, 16, 16, device=device)


def resnet(device: torch.device, images: int) -> Made:
    """ResNet-18 with images of 64×64."""
    trunk = resnet18(num_classes=1)
    trunk.fc = nn.Identity()
    return trunk, 512, torch.randn(images, 3, 64, 64, device=device)


def transformer(device: torch.device, width: int, layers: int, sequences: int) -> Made:
    """A transformer with sequences of 64 tokens."""
    return Transformer(width, layers), width, torch.randint(1000, (sequences, 64), device=device)


TRUNKS: dict[str, Callable[[torch.device], Made]] = {
    "mlp": mlp,
    "mlp 8×512": wide_mlp,
    "convolutions": convolutions,
    "resnet18": partial(resnet, images=32),
    "resnet18, 8 images": partial(resnet, images=8),
    "resnet18, 64 images": partial(resnet, images=64),
    "transformer": partial(transformer, width=128, layers=4, sequences=8),
    "transformer 8×512": partial(transformer, width=512, layers=8, sequences=64),
}


def make_workload(name: str, tasks: int, device: torch.device) -> Workload:
    """Makes a model by name, the same each time."""
    torch.manual_seed(0)
    trunk, features, inputs = TRUNKS[name](device)
    model = MultiTask(trunk, features, tasks).to(device)
    return Workload(f"{name}, K={tasks}", model, inputs, torch.randn(tasks, len(inputs), device=device))
