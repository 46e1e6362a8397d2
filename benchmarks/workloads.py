"""What is trained in a benchmark: a trunk, a head a task, one batch, squared losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    """A small pre-norm transformer encoder over 64 tokens, averaged to one vector."""

    def __init__(self, width: int = 128, layers: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens `[N, 64]` to `[N, width]`."""
        return self.encoder(self.embedding(tokens)).mean(1)


def mlp(device: torch.device) -> tuple[nn.Module, int, Tensor]:
    """Small layers and a small batch: what it costs to launch operations shows."""
    trunk = nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)
    )
    return trunk, 64, torch.randn(32, 32, device=device)


def resnet(device: torch.device) -> tuple[nn.Module, int, Tensor]:
    """ResNet-18, 64×64 images, 32 of them (64 on a GPU)."""
    trunk = resnet18(num_classes=1)
    trunk.fc = nn.Identity()
    return trunk, 512, torch.randn(64 if device.type == "cuda" else 32, 3, 64, 64, device=device)


def transformer(device: torch.device) -> tuple[nn.Module, int, Tensor]:
    """A small transformer, 8 sequences of 64 tokens (64 sequences on a GPU)."""
    return Transformer(), 128, torch.randint(1000, (64 if device.type == "cuda" else 8, 64), device=device)


TRUNKS: dict[str, Callable[[torch.device], tuple[nn.Module, int, Tensor]]] = {
    "mlp": mlp,
    "resnet18": resnet,
    "transformer": transformer,
}


def make_workload(name: str, tasks: int, device: torch.device) -> Workload:
    """Makes a model by name, the same each time."""
    torch.manual_seed(0)
    trunk, features, inputs = TRUNKS[name](device)
    model = MultiTask(trunk, features, tasks).to(device)
    return Workload(f"{name}, K={tasks}", model, inputs, torch.randn(tasks, len(inputs), device=device))
