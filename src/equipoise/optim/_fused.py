"""Which parameters PyTorch's fused kernels take."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


def can_fuse(parameters: Iterable[Tensor]) -> bool:
    """Whether the fused kernel of `torch.optim.AdamW` takes all of the parameters."""
    return all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)
