"""A head that predicts a map from features at several scales."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from equipoise.bench.models._base import convolution, initialize_he, resize


class PyramidHead(nn.Module):
    """Brings every scale to one width, sums them at the finest, and predicts `[B, outputs, H, W]`.

    Args:
        channels: those of the features, finest first.
        outputs: channels of the prediction.
        width: channels in between.

    Source: after Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019, with one bilinear step in place of
    repeated convolutions and upsampling.
    """

    def __init__(self, channels: Sequence[int], outputs: int, width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.fuse = nn.Sequential(convolution(width, width, 3), convolution(width, width, 3))
        self.output = nn.Conv2d(width, outputs, 1)
        initialize_he(self)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Returns the prediction at the images' size."""
        finest = features[0].shape[-2:]
        scales = [resize(layer(scale), finest) for layer, scale in zip(self.laterals, features, strict=True)]
        total = scales[0]
        for scale in scales[1:]:
            total = total + scale
        return resize(self.output(self.fuse(total)), size)
