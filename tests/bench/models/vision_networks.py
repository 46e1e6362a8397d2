"""The package's networks, small enough for a CPU."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from equipoise.bench.models import (
    CGC,
    MTAN,
    PLE,
    CrossStitch,
    DeepLabV3,
    DenseHardSharing,
    DSelectK,
    EfficientDet,
    EmoticNetwork,
    HardSharing,
    MMoE,
    MTINet,
    MultiTaskNetwork,
    PADNet,
)
from equipoise.bench.models._base import create_backbone

FLAT = {"au": 12, "va": 2}
DENSE = {"segmentation": 5, "depth": 1, "normals": 3}


def on_a_backbone(network: Callable[..., MultiTaskNetwork], **options: int) -> MultiTaskNetwork:
    backbone = create_backbone("test_resnet", pretrained=False, num_classes=0)
    return network(FLAT, backbone, backbone.head_hidden_size, width=24, **options)


def stages() -> list[nn.Module]:
    """A ResNet's stem with its first stage, the others, and the last with its pooling."""
    model = create_backbone("test_resnet", pretrained=False, num_classes=0)
    stem = nn.Sequential(model.conv1, model.bn1, model.act1, model.maxpool)
    layers = [model.layer1, model.layer2, model.layer3, model.layer4]
    return [nn.Sequential(stem, layers[0]), *layers[1:3], nn.Sequential(layers[3], model.global_pool)]


def channels() -> list[int]:
    model = create_backbone("test_resnet", pretrained=False)
    return [stage["num_chs"] for stage in model.feature_info[-4:]]


@dataclass(frozen=True)
class Case:
    make: Callable[[], MultiTaskNetwork]
    outputs: dict[str, int]
    dense: bool = True
    two_images: bool = False


CASES = {
    "hard-sharing": Case(lambda: HardSharing(FLAT, "test_resnet"), FLAT, dense=False),
    "dense-hard-sharing": Case(lambda: DenseHardSharing(DENSE, "test_resnet", width=8), DENSE),
    "dense-hard-sharing-efficientnet": Case(lambda: DenseHardSharing(DENSE, "test_efficientnet", width=8), DENSE),
    "deeplab": Case(lambda: DeepLabV3(DENSE, "test_resnet"), DENSE),
    "mtan": Case(lambda: MTAN(DENSE, "resnet18"), DENSE),
    "mti-net": Case(lambda: MTINet(DENSE, "hrnet_w18_small"), DENSE),
    "efficientdet": Case(
        lambda: EfficientDet({"objects": 4}, {"depth": 1}, "test_efficientnet", width=8, layers=2, depth=2),
        {"objects": 4, "depth": 1},
    ),
    "pad-net": Case(lambda: PADNet(DENSE, "test_resnet", width=8), DENSE),
    "mmoe": Case(lambda: on_a_backbone(MMoE), FLAT, dense=False),
    "dselect-k": Case(lambda: on_a_backbone(DSelectK), FLAT, dense=False),
    "cgc": Case(lambda: on_a_backbone(CGC), FLAT, dense=False),
    "ple": Case(lambda: on_a_backbone(PLE, levels=3), FLAT, dense=False),
    "cross-stitch": Case(lambda: CrossStitch(FLAT, stages, channels()), FLAT, dense=False),
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
