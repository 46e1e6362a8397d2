"""DeepLabV3 with a head per task."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from equipoise.bench.models._base import MultiTaskNetwork, Representation, create_backbone, resize


class DeepLabV3(MultiTaskNetwork):
    """A ResNet whose last stages are dilated, and per task an atrous spatial pyramid: predictions `[B, outputs, H, W]`.

    The AMTL paper's network for NYUv2. Dilated to a stride of 8, where the pyramid's rates are 12, 24 and 36; the
    heads are torchvision's. The representation is the last stage's features `[B, 2048, ⌈H/8⌉, ⌈W/8⌉]`. A head pools
    the whole image under batch normalisation: in training it needs two images or more.

    Args:
        heads: task → number of channels of its map.
        backbone: the name of a ResNet in timm.
        pretrained: start from timm's weights.

    Source: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017.

    Example:
        >>> import torch
        >>> from equipoise.bench.models import DeepLabV3
        >>> network = DeepLabV3({"segmentation": 13, "normals": 3}, "test_resnet")
        >>> {task: tuple(prediction.shape) for task, prediction in network(torch.randn(2, 3, 64, 48)).items()}
        {'segmentation': (2, 13, 64, 48), 'normals': (2, 3, 64, 48)}
    """

    def __init__(self, heads: Mapping[str, int], backbone: str = "resnet50", pretrained: bool = False) -> None:
        super().__init__(heads)
        model = create_backbone(backbone, pretrained, features_only=True, out_indices=(-1,), output_stride=8)
        self.trunk = model
        (features,) = model.feature_info.channels()
        self.heads = nn.ModuleList(DeepLabHead(features, outputs) for outputs in heads.values())

    def representation(self, images: Tensor) -> Representation:
        """Returns the last stage's features."""
        return tuple(self.trunk(images))

    def predict(self, representation: Representation, size: tuple[int, int]) -> dict[str, Tensor]:
        """Returns `[B, outputs, H, W]` for every task."""
        return {task: resize(head(representation[0]), size) for task, head in zip(self.tasks, self.heads, strict=True)}
