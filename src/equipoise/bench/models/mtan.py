"""MTAN: every task selects from a shared network's features by attention."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, cast

import timm
import torch
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from equipoise.bench.models._base import (
    MultiTaskNetwork,
    Representation,
    convolution,
    create_backbone,
    initialize_he,
    resize,
)

STAGES = ("layer1", "layer2", "layer3", "layer4")


class MTAN(MultiTaskNetwork):
    """A ResNet, and per task an attention module on each of its four stages: predictions `[B, outputs, H, W]`.

    With `u_i` a stage's features before its last block and `p_i` those after it, the task's features are
    `â_i = σ(h_i([u_i; f_{i−1}(â_{i−1})])) ⊙ p_i`: a mask in [0, 1], found from what the task selected in the stage
    before, multiplied with the shared features. `h_i` (two 1×1 convolutions with batch normalisation) is the task's
    own; `f_i`, a residual bottleneck that leads one stage's features to the next, is shared by the tasks. `â_4` goes to
    the task's DeepLabV3 head.

    The ResNet is dilated to a stride of 8. The representation is `u_1, p_1, …, u_4, p_4`; the `f_i` lie beyond it and
    are shared all the same. In training it needs two images or more, as `DeepLabV3` does.

    Args:
        heads: task → number of channels of its map.
        backbone: the name of a ResNet in timm with two blocks or more in every stage. The MAO paper takes ResNet-18.
        pretrained: start from timm's weights; the rest is drawn by He's method, as the MAO paper does from scratch.

    Raises:
        ValueError: the backbone is no such ResNet.

    Source: Liu et al., "End-to-End Multi-Task Learning with Attention", CVPR 2019; on a ResNet as in Vandenhende et
    al., "Multi-Task Learning for Dense Prediction Tasks: A Survey", TPAMI 2021. Where a stage halves an odd size, the
    pooling between stages rounds up, as the ResNet does.

    Example:
        >>> import torch
        >>> from equipoise.bench.models import MTAN
        >>> network = MTAN({"segmentation": 13, "depth": 1}, "resnet18").eval()
        >>> {task: tuple(prediction.shape) for task, prediction in network(torch.randn(1, 3, 64, 48)).items()}
        {'segmentation': (1, 13, 64, 48), 'depth': (1, 1, 64, 48)}
    """

    def __init__(self, heads: Mapping[str, int], backbone: str = "resnet18", pretrained: bool = False) -> None:
        super().__init__(heads)
        if not timm.is_model(backbone) or timm.model_entrypoint(backbone).__module__ != ResNet.__module__:
            raise ValueError(f"MTAN needs the name of a ResNet in timm, such as 'resnet18'; found {backbone!r}.")
        model = create_backbone(backbone, pretrained, num_classes=0, output_stride=8)
        self.trunk = model
        blocks = [len(getattr(model, name)) for name in STAGES]
        if min(blocks) < 2:
            raise ValueError(
                f"MTAN reads every stage before and after its last block, so a stage needs two or more; {backbone!r} "
                f"has {blocks}. Take a deeper ResNet, such as 'resnet18'."
            )
        stages = model.feature_info[1:]
        channels = [stage["num_chs"] for stage in stages]
        self.halves = [after["reduction"] > before["reduction"] for before, after in pairwise(stages)]
        selected = [0, *channels[1:]]  # what a stage gets from the one before, led to its own width
        self.encoders = nn.ModuleList(_bottleneck(before, after) for before, after in pairwise(channels))
        self.attention = nn.ModuleList(  # by task, then by stage
            nn.ModuleList(Attention(count, previous) for count, previous in zip(channels, selected, strict=True))
            for _ in heads
        )
        self.heads = nn.ModuleList(DeepLabHead(channels[-1], outputs) for outputs in heads.values())
        initialize_he(self.encoders, self.attention, self.heads)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the ResNet and of the bottlenecks between the tasks' features."""
        return [*self.trunk.parameters(), *self.encoders.parameters()]

    def representation(self, images: Tensor) -> Representation:
        """Returns the features of each stage before and after its last block."""
        trunk: Any = self.trunk
        features = trunk.maxpool(trunk.act1(trunk.bn1(trunk.conv1(images))))
        found = []
        for name in STAGES:
            stage = getattr(trunk, name)
            before = stage[:-1](features)
            features = stage[-1](before)
            found += [before, features]
        return tuple(found)

    def predict(self, representation: Representation, size: tuple[int, int]) -> dict[str, Tensor]:
        """Returns `[B, outputs, H, W]` for every task."""
        befores, afters = representation[::2], representation[1::2]
        predictions = {}
        for task, stages, head in zip(self.tasks, self.attention, self.heads, strict=True):
            attention, selected = cast("nn.ModuleList", stages), None
            for index, (before, after) in enumerate(zip(befores, afters, strict=True)):
                if selected is not None:
                    selected = self.encoders[index - 1](selected)
                    if self.halves[index - 1]:
                        selected = functional.max_pool2d(selected, 2, ceil_mode=True)
                    before = torch.cat([before, selected], 1)
                selected = attention[index](before, after)
            predictions[task] = resize(head(selected), size)
        return predictions


class Attention(nn.Module):
    """A task's attention on one stage: a mask in [0, 1] for the shared features.

    Args:
        channels: of the stage's features.
        previous: of what comes from the stage before.
    """

    def __init__(self, channels: int, previous: int) -> None:
        super().__init__()
        self.mask = nn.Sequential(
            convolution(channels + previous, channels // 4, 1),
            convolution(channels // 4, channels, 1, activation=False),
            nn.Sigmoid(),
        )

    def forward(self, inputs: Tensor, features: Tensor) -> Tensor:
        """Returns the selected features."""
        mask: Tensor = self.mask(inputs)
        return mask * features


def _bottleneck(inputs: int, outputs: int) -> Bottleneck:
    """A residual bottleneck from one stage's width to the next one's."""
    return Bottleneck(
        inputs,
        outputs // Bottleneck.expansion,
        downsample=convolution(inputs, outputs, 1, activation=False),
    )
