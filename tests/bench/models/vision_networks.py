"""The package's networks, small enough for a CPU."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from equipoise.bench.models import (
    MTAN,
    DeepLabV3,
    DenseHardSharing,
    EfficientDet,
    EmoticNetwork,
    HardSharing,
    MTINet,
    MultiTaskNetwork,
)

DENSE = {"segmentation": 5, "depth": 1, "normals": 3}


@dataclass(frozen=True)
class Case:
    make: Callable[[], MultiTaskNetwork]
    outputs: dict[str, int]
    dense: bool = True
    two_images: bool = False


CASES = {
    "hard-sharing": Case(lambda: HardSharing({"au": 12, "va": 2}, "test_resnet"), {"au": 12, "va": 2}, dense=False),
    "dense-hard-sharing": Case(lambda: DenseHardSharing(DENSE, "test_resnet", width=8), DENSE),
    "dense-hard-sharing-efficientnet": Case(lambda: DenseHardSharing(DENSE, "test_efficientnet", width=8), DENSE),
    "deeplab": Case(lambda: DeepLabV3(DENSE, "test_resnet"), DENSE),
    "mtan": Case(lambda: MTAN(DENSE, "resnet18"), DENSE),
    "mti-net": Case(lambda: MTINet(DENSE, "hrnet_w18_small"), DENSE),
    "efficientdet": Case(
        lambda: EfficientDet({"objects": 4}, {"depth": 1}, "test_efficientnet", width=8, layers=2, depth=2),
        {"objects": 4, "depth": 1},
    ),
    "emotic": Case(
        lambda: EmoticNetwork({"categories": 26, "dimensions": 3}, "test_resnet", width=16),
        {"categories": 26, "dimensions": 3},
        dense=False,
        two_images=True,
    ),
}


def task_losses(network: MultiTaskNetwork, predictions: dict[str, Tensor]) -> dict[str, Tensor]:
    """A loss per task of all that is predicted for it: the task's entry, and those named after it."""
    losses = {}
    for task in network.tasks:
        own = [v for name, v in predictions.items() if name == task or name.startswith((f"{task}@", f"{task}."))]
        losses[task] = sum(value.square().mean() for value in own if value.requires_grad)
    return losses
