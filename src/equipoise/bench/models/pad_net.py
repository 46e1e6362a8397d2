"""PAD-Net: a first prediction for every task, and features distilled between the tasks for the final ones."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from equipoise.bench.models._base import (
    MultiTaskNetwork,
    Representation,
    convolution,
    create_backbone,
    initialize_he,
    resize,
)
from equipoise.bench.models._distillation import Distillation, residual_blocks

STRIDE = 8


class PADNet(MultiTaskNetwork):
    """A ResNet, and per task a first prediction, distillation and a final one: predictions `[B, outputs, H, W]`.

    From what the ResNet gives, dilated to a stride of 8, every task gets features `F_k` (two residual blocks) and a
    first prediction (a 1×1 convolution of them). Distillation adds to a task's features those of each other one under
    a spatial attention mask, `F_k + Σ_{l≠k} σ(W_kl ∗ F_l) ⊙ (V_kl ∗ F_l)`, and a 3×3 and a 1×1 convolution of that
    make its final prediction.

    In training the first predictions, which are supervised too, are returned under `"<task>@8"` at their own size.

    The representation is what the ResNet gives. Because of distillation each task's final prediction also depends on
    the features of all others: the shared parameters are the ResNet's and those of the tasks' features.

    Args:
        heads: task → number of channels of its map.
        backbone: the name of a ResNet in timm.
        pretrained: start from timm's weights; the rest is drawn by He's method.
        width: channels of the tasks' features.

    Source: Xu et al., "PAD-Net: Multi-Tasks Guided Prediction-and-Distillation Network for Simultaneous Depth
    Estimation and Scene Parsing", CVPR 2018, its distillation module C. There each task's features are computed from
    its first prediction, after deconvolutions; here, as in Vandenhende et al., "Multi-Task Learning for Dense
    Prediction Tasks: A Survey", TPAMI 2021, they are those from which it is made.

    Example:
        >>> import torch
        >>> from equipoise.bench.models import PADNet
        >>> network = PADNet({"segmentation": 13, "depth": 1}, "test_resnet", width=16).eval()
        >>> {task: tuple(prediction.shape) for task, prediction in network(torch.randn(1, 3, 64, 48)).items()}
        {'segmentation': (1, 13, 64, 48), 'depth': (1, 1, 64, 48)}
    """

    def __init__(
        self, heads: Mapping[str, int], backbone: str = "resnet18", pretrained: bool = False, width: int = 128
    ) -> None:
        super().__init__(heads)
        model = create_backbone(backbone, pretrained, features_only=True, out_indices=(-1,), output_stride=STRIDE)
        self.trunk = model
        (channels,) = model.feature_info.channels()
        self.features = nn.ModuleList(residual_blocks(channels, width) for _ in heads)
        self.initial = nn.ModuleList(nn.Conv2d(width, outputs, 1) for outputs in heads.values())
        self.distillation = Distillation(width, len(heads))
        self.heads = nn.ModuleList(
            nn.Sequential(convolution(width, width, 3), nn.Conv2d(width, outputs, 1)) for outputs in heads.values()
        )
        initialize_he(self.features, self.initial, self.distillation, self.heads)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the ResNet and of the tasks' features."""
        return [*self.trunk.parameters(), *self.features.parameters()]

    def representation(self, images: Tensor) -> Representation:
        """Returns the ResNet's features."""
        return tuple(self.trunk(images))

    def predict(self, representation: Representation, size: tuple[int, int]) -> dict[str, Tensor]:
        """Returns `[B, outputs, H, W]` for every task; in training the first predictions as well."""
        features = [blocks(representation[0]) for blocks in self.features]
        predictions = {
            task: resize(head(distilled), size)
            for task, head, distilled in zip(self.tasks, self.heads, self.distillation(features), strict=True)
        }
        if self.training:
            for task, layer, own in zip(self.tasks, self.initial, features, strict=True):
                predictions[f"{task}@{STRIDE}"] = layer(own)
        return predictions
