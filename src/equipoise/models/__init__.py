"""Networks of the papers' problems, on timm's backbones.

Each says which of its parameters are shared and what its representation is: see `MultiTaskNetwork`.
"""

from equipoise.models._base import MultiTaskNetwork
from equipoise.models.deeplab import DeepLabV3
from equipoise.models.efficientdet import EfficientDet
from equipoise.models.emotic import EmoticNetwork
from equipoise.models.hard_sharing import DenseHardSharing, HardSharing
from equipoise.models.mtan import MTAN
from equipoise.models.mti_net import MTINet, initial_predictions

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
