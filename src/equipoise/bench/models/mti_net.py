"""MTI-Net: initial predictions at four scales, distilled between the tasks at every scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from timm.layers.squeeze_excite import SEModule
from timm.models.resnet import BasicBlock
from torch import Tensor, nn
from torch.nn import functional

from equipoise.bench.models._base import (
    MultiTaskNetwork,
    Representation,
    convolution,
    create_backbone,
    initialize_he,
    resize,
)
from equipoise.bench.models._distillation import Distillation, residual_blocks

STRIDES = (4, 8, 16, 32)


class MTINet(MultiTaskNetwork):
    """HRNet, and four steps between the tasks: predictions `[B, outputs, H, W]`.

    1. From the coarsest scale to the finest, every task gets features (two residual blocks) and an initial prediction.
    2. Feature propagation: what the tasks found at a scale goes, mixed by attention over tasks, into the features from
       which they predict at the next finer one.
    3. Distillation: at every scale a task adds to its features those of each other task under a spatial attention mask.
    4. Aggregation: a task's four scales are concatenated at the finest, and predict.

    In training the initial predictions, which are supervised too, are returned under `"<task>@<stride>"` at their own
    size, strides 4, 8, 16 and 32; `initial_predictions` brings them to the labels' size. Images whose sides are not
    multiples of 32 are padded with zeros at the right and bottom, and predictions cut.

    The representation is HRNet's four scales. Because of distillation each task's final prediction also depends on the
    features of all others: the shared parameters are HRNet's and those of steps 1 and 2, less the layers of one output
    each.

    Args:
        heads: task → number of channels of its map.
        backbone: the name of an HRNet in timm. The MAO paper takes HRNet-18.
        pretrained: start from timm's weights; the rest is drawn by He's method, as the MAO paper does from scratch.

    Source: Vandenhende et al., "MTI-Net: Multi-Scale Task Interaction Networks for Multi-Task Learning", ECCV 2020.
    The attention over tasks is a softmax over the tasks' values of one and the same channel; the authors' code
    reshapes the concatenated features so that channels of one task fall into the softmax together.

    Example:
        >>> import torch
        >>> from equipoise.bench.models import MTINet
        >>> network = MTINet({"segmentation": 13, "depth": 1}, "hrnet_w18_small").eval()
        >>> {task: tuple(prediction.shape) for task, prediction in network(torch.randn(1, 3, 64, 48)).items()}
        {'segmentation': (1, 13, 64, 48), 'depth': (1, 1, 64, 48)}
    """

    def __init__(self, heads: Mapping[str, int], backbone: str = "hrnet_w18", pretrained: bool = False) -> None:
        super().__init__(heads)
        model = create_backbone(backbone, pretrained, features_only=True, feature_location="", out_indices=(1, 2, 3, 4))
        self.trunk = model
        channels = model.feature_info.channels()
        tasks = len(self.tasks)
        self.features = nn.ModuleList(  # by scale, then by task
            nn.ModuleList(residual_blocks(count + coarser, count) for _ in self.tasks)
            for count, coarser in zip(channels, [*channels[1:], 0], strict=True)
        )
        self.initial = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(count, outputs, 1) for outputs in heads.values()) for count in channels
        )
        self.propagation = nn.ModuleList(Propagation(count, tasks) for count in channels[1:])
        self.distillation = nn.ModuleList(Distillation(count, tasks) for count in channels)
        self.heads = nn.ModuleList(
            nn.Sequential(convolution(sum(channels), sum(channels), 1), nn.Conv2d(sum(channels), outputs, 1))
            for outputs in heads.values()
        )
        initialize_he(self.features, self.initial, self.propagation, self.distillation, self.heads)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of HRNet, of the tasks' features and of their propagation."""
        modules = (self.trunk, self.features, self.propagation)
        return [parameter for module in modules for parameter in module.parameters()]

    def representation(self, images: Tensor) -> Representation:
        """Returns HRNet's features at strides 4, 8, 16 and 32 of the padded images."""
        bottom, right = (-side % STRIDES[-1] for side in images.shape[-2:])
        return tuple(self.trunk(functional.pad(images, (0, right, 0, bottom))))

    def predict(self, representation: Representation, size: tuple[int, int]) -> dict[str, Tensor]:
        """Returns `[B, outputs, H, W]` for every task; in training the initial predictions as well."""
        scales = self._task_features(representation)
        predictions = {}
        finest = representation[0].shape[-2:]
        padded = [side * STRIDES[0] for side in finest]
        distilled = [distill(features) for distill, features in zip(self.distillation, scales, strict=True)]
        for index, (task, head) in enumerate(zip(self.tasks, self.heads, strict=True)):
            pyramid = torch.cat([resize(features[index], finest) for features in distilled], 1)
            predictions[task] = resize(head(pyramid), padded)[..., : size[0], : size[1]]
        if self.training:
            for stride, layers, features in zip(STRIDES, self.initial, scales, strict=True):
                for task, layer, inputs in zip(self.tasks, cast("nn.ModuleList", layers), features, strict=True):
                    predictions[f"{task}@{stride}"] = layer(inputs)
        return predictions

    def _task_features(self, representation: Representation) -> list[list[Tensor]]:
        """Every task's features at each scale, finest first."""
        scales: list[list[Tensor]] = []
        coarser: list[Tensor] = []
        for index in reversed(range(len(representation))):
            shared = representation[index]
            inputs = [torch.cat([shared, resize(extra, shared.shape[-2:])], 1) for extra in coarser]
            features = [
                blocks(inputs[task] if inputs else shared)
                for task, blocks in enumerate(cast("nn.ModuleList", self.features[index]))
            ]
            scales.insert(0, features)
            coarser = self.propagation[index - 1](features) if index else []
        return scales


class Propagation(nn.Module):
    """Mixes the tasks' features of one scale for the next finer one.

    An attention mask, a softmax over the tasks, weighs their features; what is left of them in one task's width goes,
    gated by squeeze and excitation, to every task, and is added to its own features.

    Args:
        channels: of each task's features.
        tasks: how many.
    """

    def __init__(self, channels: int, tasks: int) -> None:
        super().__init__()
        self.tasks = tasks
        total = channels * tasks
        self.attend = nn.Sequential(residual_blocks(total, total // 4), nn.Conv2d(total // 4, total, 1))
        self.reduce = BasicBlock(total, channels, downsample=convolution(total, channels, 1, activation=False))
        self.gates = nn.ModuleList(SEModule(channels) for _ in range(tasks))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Returns what each task hands on, in its own width."""
        together = torch.cat(list(features), 1)
        weights: Tensor = self.attend(together).unflatten(1, (self.tasks, -1)).softmax(1)
        mixed = self.reduce(weights.flatten(1, 2) * together)
        return [own + gate(mixed) for own, gate in zip(features, self.gates, strict=True)]


def initial_predictions(predictions: Mapping[str, Tensor], task: str, size: tuple[int, int]) -> list[Tensor]:
    """Returns a task's initial predictions at the labels' size, finest scale first; none in evaluation.

    Args:
        predictions: what `MTINet` returned.
        task: the task's name.
        size: height and width of the labels.
    """
    found = []
    for stride in STRIDES:
        if (prediction := predictions.get(f"{task}@{stride}")) is not None:
            height, width = prediction.shape[-2:]
            found.append(resize(prediction, (height * stride, width * stride))[..., : size[0], : size[1]])
    return found
