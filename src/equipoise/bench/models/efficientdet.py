"""EfficientDet with dense heads: detection, segmentation, depth and more from one pyramid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.anchor_utils import AnchorGenerator

from equipoise.bench.models._base import MultiTaskNetwork, Representation, create_backbone
from equipoise.bench.models._dense import PyramidHead

STRIDES = (8, 16, 32, 64, 128)
RATIOS = (0.5, 1.0, 2.0)
SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
ANCHORS = len(RATIOS) * len(SCALES)
PRIOR = 0.01
"""Probability of an object that the class head starts with, so that background does not swamp the first steps."""


class EfficientDet(MultiTaskNetwork):
    """A backbone, a BiFPN over five scales, class and box heads, and a `PyramidHead` per dense task.

    The prediction of a dense task is `[B, outputs, H, W]`. That of the detection task is the logits
    `[B, A, classes]` of every anchor; beside it stand `"<task>.offsets"` `[B, A, 4]` and `"<task>.anchors"` `[A, 4]`.
    `equipoise.bench.models.boxes` has their loss (`detection_loss`) and turns them into boxes (`detect`).

    The representation is the BiFPN's five scales (strides 8 to 128, sides rounded up). Any size of images will do.

    Args:
        detection: task → number of classes, of one task; empty for none.
        dense: task → number of channels of its map.
        backbone: a name in timm of a model that gives features at strides 8, 16 and 32 (`features_only`). The AMTL
            paper takes EfficientNetV2-S.
        pretrained: start from timm's weights.
        width: channels of the BiFPN and of the heads.
        layers: of the BiFPN.
        depth: convolutions in the class and box heads.

    Raises:
        ValueError: two detection tasks or more, or a backbone without these strides.

    Source: Tan et al., "EfficientDet: Scalable and Efficient Object Detection", CVPR 2020; defaults are its D0's. Each
    backbone level is brought to the BiFPN's width once, where the authors do so once for every edge that leaves it.

    Example:
        >>> import torch
        >>> from equipoise.bench.models import EfficientDet
        >>> network = EfficientDet({"objects": 20}, {"depth": 1}, "test_efficientnet", width=16)
        >>> {name: tuple(value.shape) for name, value in network(torch.randn(2, 3, 64, 64)).items()}
        {'objects': (2, 774, 20), 'objects.offsets': (2, 774, 4), 'objects.anchors': (774, 4), 'depth': (2, 1, 64, 64)}
    """

    trunk: Pyramid

    def __init__(
        self,
        detection: Mapping[str, int],
        dense: Mapping[str, int],
        backbone: str = "tf_efficientnetv2_s",
        pretrained: bool = False,
        width: int = 64,
        layers: int = 3,
        depth: int = 3,
    ) -> None:
        super().__init__([*detection, *dense])
        if len(detection) > 1:
            raise ValueError(f"EfficientDet has one detection task, found {', '.join(map(repr, detection))}.")
        self.trunk = Pyramid(backbone, pretrained, width, layers)
        self.detectors = nn.ModuleList(DetectionHead(classes, width, depth) for classes in detection.values())
        self.heads = nn.ModuleList(PyramidHead([width] * len(STRIDES), outputs, width) for outputs in dense.values())
        self.anchors = AnchorGenerator(
            tuple(tuple(4 * stride * scale for scale in SCALES) for stride in STRIDES), (RATIOS,) * len(STRIDES)
        )

    def representation(self, images: Tensor) -> Representation:
        """Returns the BiFPN's five scales."""
        return tuple(self.trunk(images))

    def predict(self, representation: Representation, size: tuple[int, int]) -> dict[str, Tensor]:
        """Returns every task's prediction; for detection also the offsets and the anchors."""
        predictions = {}
        detections, dense = self.tasks[: len(self.detectors)], self.tasks[len(self.detectors) :]
        for task, detector in zip(detections, self.detectors, strict=True):
            logits, offsets = detector(representation)
            predictions[task] = logits
            predictions[f"{task}.offsets"] = offsets
            predictions[f"{task}.anchors"] = self._all_anchors(representation)
        for task, head in zip(dense, self.heads, strict=True):
            predictions[task] = head(representation, size)
        return predictions

    def _all_anchors(self, representation: Representation) -> Tensor:
        """The anchors `[A, 4]` of all scales, each centred on its cell."""
        device = representation[0].device
        self.anchors.set_cell_anchors(torch.float32, device)
        strides = [[torch.tensor(stride, device=device)] * 2 for stride in STRIDES]
        levels = self.anchors.grid_anchors([list(level.shape[-2:]) for level in representation], strides)
        return torch.cat([level + stride / 2 for level, stride in zip(levels, STRIDES, strict=True)])


class Pyramid(nn.Module):
    """A backbone and a BiFPN: five scales of one width."""

    def __init__(self, backbone: str, pretrained: bool, width: int, layers: int) -> None:
        super().__init__()
        model = create_backbone(backbone, pretrained, features_only=True)
        strides = model.feature_info.reduction()
        if missing := [stride for stride in STRIDES[:3] if stride not in strides]:
            raise ValueError(f"EfficientDet reads strides 8, 16 and 32; {backbone!r} has {strides}, {missing} missing.")
        self.backbone: nn.Module = model
        self.levels = [strides.index(stride) for stride in STRIDES[:3]]
        channels = [model.feature_info.channels()[level] for level in self.levels]
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(count, width, 1), nn.BatchNorm2d(width)) for count in [*channels, channels[-1]]
        )
        self.layers = nn.ModuleList(BiFPNLayer(width, len(STRIDES)) for _ in range(layers))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns `[B, width, ⌈H/s⌉, ⌈W/s⌉]` for the strides s = 8, 16, 32, 64, 128."""
        found = self.backbone(images)
        features = [found[level] for level in self.levels]
        scales = [lateral(level) for lateral, level in zip(self.laterals, [*features, features[-1]], strict=True)]
        scales[-1] = halve(scales[-1])
        scales.append(halve(scales[-1]))
        for layer in self.layers:
            scales = layer(scales)
        return scales


class BiFPNLayer(nn.Module):
    """One pass from the coarsest scale to the finest and back, each meeting fused with learned weights."""

    def __init__(self, width: int, scales: int) -> None:
        super().__init__()
        self.downward = nn.ModuleList(Fusion(2, width) for _ in range(scales - 1))
        self.upward = nn.ModuleList(Fusion(3, width) for _ in range(scales - 2))
        self.coarsest = Fusion(2, width)

    def forward(self, scales: Sequence[Tensor]) -> list[Tensor]:
        """Returns the fused scales, finest first as the given ones."""
        inner = [scales[-1]]
        for scale, fuse in zip(reversed(scales[:-1]), self.downward, strict=True):
            inner.append(fuse(scale, functional.interpolate(inner[-1], size=scale.shape[-2:], mode="nearest")))
        finest, *middle = reversed(inner[1:])
        fused = [finest]
        for scale, passed, fuse in zip(scales[1:-1], middle, self.upward, strict=True):
            fused.append(fuse(scale, passed, halve(fused[-1])))
        fused.append(self.coarsest(scales[-1], halve(fused[-1])))
        return fused


class Fusion(nn.Module):
    """Fast normalised fusion, `Σ_i w_i x_i / (ε + Σ_j w_j)` with learned `w ≥ 0`, and a separable convolution."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs))
        self.convolution = nn.Sequential(nn.SiLU(), separable(width, width, bias=False), nn.BatchNorm2d(width))

    def shares(self) -> Tensor:
        """Returns the weights as shares of 1 (less ε)."""
        weights = self.weights.relu()
        return weights / (weights.sum() + 1e-4)

    def forward(self, *scales: Tensor) -> Tensor:
        """Returns the fused scale."""
        total = scales[0] * self.shares()[0]
        for share, scale in zip(self.shares()[1:], scales[1:], strict=True):
            total = total + share * scale
        fused: Tensor = self.convolution(total)
        return fused


class DetectionHead(nn.Module):
    """Class logits `[B, A, classes]` and offsets `[B, A, 4]` from all scales."""

    def __init__(self, classes: int, width: int, depth: int) -> None:
        super().__init__()
        self.classes = Predictor(classes, width, depth, bias=-math.log((1 - PRIOR) / PRIOR))
        self.offsets = Predictor(4, width, depth, bias=0.0)

    def forward(self, scales: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns logits and offsets."""
        return self.classes(scales), self.offsets(scales)


class Predictor(nn.Module):
    """Separable convolutions that all scales share, with batch normalisation of each scale's own."""

    def __init__(self, outputs: int, width: int, depth: int, bias: float) -> None:
        super().__init__()
        self.outputs = outputs
        self.convolutions = nn.ModuleList(separable(width, width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.ModuleList(nn.BatchNorm2d(width) for _ in range(depth)) for _ in STRIDES)
        self.output = separable(width, ANCHORS * outputs)
        nn.init.constant_(self.output[-1].bias, bias)  # type: ignore[arg-type]

    def forward(self, scales: Sequence[Tensor]) -> Tensor:
        """Returns `[B, A, outputs]`, anchors in the order of torchvision's generator: by scale, row, column, shape."""
        found = []
        for features, norms in zip(scales, self.norms, strict=True):
            for layer, norm in zip(self.convolutions, cast("nn.ModuleList", norms), strict=True):
                features = functional.silu(norm(layer(features)))
            found.append(self.output(features).permute(0, 2, 3, 1).reshape(len(features), -1, self.outputs))
        return torch.cat(found, 1)


def separable(inputs: int, outputs: int, bias: bool = True) -> nn.Sequential:
    """A 3×3 convolution by channel, and a 1×1 convolution across them."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False), nn.Conv2d(inputs, outputs, 1, bias=bias)
    )


def halve(scale: Tensor) -> Tensor:
    """Halves the sides, rounding up, by a maximum over 3×3."""
    return functional.max_pool2d(scale, 3, stride=2, padding=1)
