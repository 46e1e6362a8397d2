"""Networks of the papers' problems, on timm's backbones.

Each says which of its parameters are shared and what its representation is: see `MultiTaskNetwork`.
"""

from equipoise.bench.models._base import MultiTaskNetwork
from equipoise.bench.models.deeplab import DeepLabV3
from equipoise.bench.models.efficientdet import EfficientDet
from equipoise.bench.models.emotic import EmoticNetwork
from equipoise.bench.models.hard_sharing import DenseHardSharing, HardSharing
from equipoise.bench.models.mtan import MTAN
from equipoise.bench.models.mti_net import MTINet, initial_predictions

__all__ = [
    "MTAN",
    "DeepLabV3",
    "DenseHardSharing",
    "EfficientDet",
    "EmoticNetwork",
    "HardSharing",
    "MTINet",
    "MultiTaskNetwork",
    "initial_predictions",
]
