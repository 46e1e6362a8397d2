"""What every network of this package is: a trunk that the tasks share, and what each task adds to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from equipoise._checks import check_tasks

Representation = tuple[Tensor, ...]
"""All that the tasks read of the trunk: one tensor, or one a scale or stage."""


class MultiTaskNetwork(nn.Module, ABC):
    """A network whose `forward` takes images `[B, 3, H, W]` and returns a mapping from task to prediction.

    Networks whose predictions are no maps take whatever their trunk takes, and do without the images' size.

    It is `predict(representation(images), size)`: the trunk, and what follows it. For probes, `last_shared_layer()` is
    what GradNorm and IMTL take their gradients on; for MGDA-UB, hand the representation to `Balancer.backward`
    (aliases of it, since some networks compute one of its tensors from another):

        representation = tuple(tensor.view_as(tensor) for tensor in network.representation(images))
        predictions = network.predict(representation, images.shape[-2:])
        balancer.backward(losses, representation=representation)

    Attributes:
        tasks: the tasks' names, in the order of the constructor's mapping.
        trunk: everything before the representation.
    """

    trunk: nn.Module

    def __init__(self, tasks: Iterable[str]) -> None:
        super().__init__()
        self.tasks = check_tasks(tasks)

    @abstractmethod
    def representation(self, images: Tensor) -> Representation:
        """Returns what the trunk gives for the images."""

    @abstractmethod
    def predict(self, representation: Representation, size: tuple[int, int]) -> dict[str, Tensor]:
        """Returns the predictions from a representation; `size` is the images' height and width."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns task → prediction, and what more the network documents, under names of its own."""
        height, width = images.shape[-2:]
        return self.predict(self.representation(images), (height, width))

    def shared_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters that more than one task's predictions depend on: at least the trunk's."""
        return list(self.trunk.parameters())

    def last_shared_layer(self) -> nn.Module:
        """Returns the trunk's last module, as registered, with a weight matrix or kernel; all tasks depend on it."""
        modules = self.trunk.modules()
        return [module for module in modules if any(p.dim() > 1 for p in module.parameters(recurse=False))][-1]


def create_backbone(name: str, pretrained: bool, **options: Any) -> Any:
    """Returns timm's model of that name; `options` are those of `timm.create_model`."""
    import timm  # only here, since networks for tables do without

    return timm.create_model(name, pretrained=pretrained, **options)


def resize(features: Tensor, size: Iterable[int]) -> Tensor:
    """Resizes maps `[B, C, h, w]` to a height and width, bilinearly."""
    return functional.interpolate(features, size=tuple(size), mode="bilinear", align_corners=False)


def convolution(inputs: int, outputs: int, kernel: int, activation: bool = True, **options: Any) -> nn.Sequential:
    """A convolution that keeps the size, with batch normalisation and, unless told otherwise, ReLU."""
    layers = [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if activation else nn.Sequential(*layers)


def initialize_he(*modules: nn.Module) -> None:
    """Draws the kernels of all convolutions as He et al. (ICCV 2015) do, by the fan-in; biases become 0."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
