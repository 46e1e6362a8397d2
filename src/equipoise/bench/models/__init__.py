"""Networks with several heads: those of the papers' problems on timm's backbones, and others on any trunk.

Each says which of its parameters are shared and what its representation is: see `MultiTaskNetwork`. A network is
imported when it is first asked for, so that those for tables do without the extra `vision`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise.bench.models._base import MultiTaskNetwork
    from equipoise.bench.models.cross_stitch import CrossStitch
    from equipoise.bench.models.deeplab import DeepLabV3
    from equipoise.bench.models.dselect_k import DSelectK
    from equipoise.bench.models.efficientdet import EfficientDet
    from equipoise.bench.models.emotic import EmoticNetwork
    from equipoise.bench.models.hard_sharing import DenseHardSharing, HardSharing
    from equipoise.bench.models.mmoe import MMoE
    from equipoise.bench.models.mtan import MTAN
    from equipoise.bench.models.mti_net import MTINet, initial_predictions
    from equipoise.bench.models.pad_net import PADNet
    from equipoise.bench.models.ple import CGC, PLE
    from equipoise.bench.models.shared_bottom import SharedBottom

_MODULES = {
    "CGC": "ple",
    "MTAN": "mtan",
    "PLE": "ple",
    "CrossStitch": "cross_stitch",
    "DSelectK": "dselect_k",
    "DeepLabV3": "deeplab",
    "DenseHardSharing": "hard_sharing",
    "EfficientDet": "efficientdet",
    "EmoticNetwork": "emotic",
    "HardSharing": "hard_sharing",
    "MMoE": "mmoe",
    "MTINet": "mti_net",
    "PADNet": "pad_net",
    "MultiTaskNetwork": "_base",
    "SharedBottom": "shared_bottom",
    "initial_predictions": "mti_net",
}

__all__ = [
    "CGC",
    "MTAN",
    "PLE",
    "CrossStitch",
    "DSelectK",
    "DeepLabV3",
    "DenseHardSharing",
    "EfficientDet",
    "EmoticNetwork",
    "HardSharing",
    "MMoE",
    "MTINet",
    "MultiTaskNetwork",
    "PADNet",
    "SharedBottom",
    "initial_predictions",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
