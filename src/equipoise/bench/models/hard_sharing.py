"""Hard parameter sharing: one backbone, and a small head for every task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from equipoise.bench.models._base import MultiTaskNetwork, Representation, create_backbone
from equipoise.bench.models._dense import PyramidHead
from equipoise.bench.models.shared_bottom import SharedBottom


class HardSharing(SharedBottom):
    """A timm backbone with a linear head per task: predictions `[B, outputs]`.

    The heads of tasks with one output each are together one dense layer, as in the EMA paper's CelebA network
    (ResNet-18, 40 of them); its networks for AffWild2 and AffectNet are this with ResNet-50. The representation is the
    pooled features `[B, features]`.

    Args:
        heads: task → number of outputs.
        backbone: a name in timm.
        pretrained: start from timm's weights.
        **options: for `timm.create_model`.

    Source: Caruana, "Multitask Learning", Machine Learning 1997.

    Example:
        >>> import torch
        >>> from equipoise.bench.models import HardSharing
        >>> network = HardSharing({"smiling": 1, "age": 5}, "test_resnet")
        >>> {task: tuple(prediction.shape) for task, prediction in network(torch.randn(2, 3, 64, 64)).items()}
        {'smiling': (2, 1), 'age': (2, 5)}
    """

    def __init__(
        self, heads: Mapping[str, int], backbone: str = "resnet18", pretrained: bool = False, **options: Any
    ) -> None:
        model = create_backbone(backbone, pretrained, num_classes=0, **options)
        super().__init__(heads, model, model.head_hidden_size)


class DenseHardSharing(MultiTaskNetwork):
    """A timm backbone with a `PyramidHead` per task: predictions `[B, outputs, H, W]`.

    The representation is the backbone's features at strides 4 and more, finest first.

    Args:
        heads: task → number of channels of its map.
        backbone: a name in timm of a model that gives features by scale (`features_only`).
        pretrained: start from timm's weights.
        width: channels within the heads.
        **options: for `timm.create_model`.

    Example:
        >>> import torch
        >>> from equipoise.bench.models import DenseHardSharing
        >>> network = DenseHardSharing({"segmentation": 13, "depth": 1}, "test_resnet", width=16)
        >>> {task: tuple(prediction.shape) for task, prediction in network(torch.randn(2, 3, 64, 48)).items()}
        {'segmentation': (2, 13, 64, 48), 'depth': (2, 1, 64, 48)}
    """

    def __init__(
        self,
        heads: Mapping[str, int],
        backbone: str = "resnet18",
        pretrained: bool = False,
        width: int = 128,
        **options: Any,
    ) -> None:
        super().__init__(heads)
        model = create_backbone(backbone, pretrained, features_only=True, **options)
        self.trunk = model
        self._first = next(index for index, stride in enumerate(model.feature_info.reduction()) if stride >= 4)
        channels = model.feature_info.channels()[self._first :]
        self.heads = nn.ModuleList(PyramidHead(channels, outputs, width) for outputs in heads.values())

    def representation(self, images: Tensor) -> Representation:
        """Returns the features by scale, finest first."""
        return tuple(self.trunk(images)[self._first :])

    def predict(self, representation: Representation, size: tuple[int, int]) -> dict[str, Tensor]:
        """Returns `[B, outputs, H, W]` for every task."""
        return {task: head(representation, size) for task, head in zip(self.tasks, self.heads, strict=True)}
