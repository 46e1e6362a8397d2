"""Readers for the papers' data sets in their official layouts, and transforms that move image and labels together.

Every reader is a `torch.utils.data.Dataset` of mappings: the network's input under "input", uint8 unless said
otherwise, and each task's label under the task's name. Missing labels are −1 where labels are integers (classes,
yes or no) and NaN where they are numbers; "detection" is None. `collate` makes batches of them. Nothing is downloaded,
and nothing is unpickled.
"""

from equipoise.bench.problems.data._augmentation import (
    DepthMap,
    DropHiddenBoxes,
    Letterbox,
    NormalMap,
    OnImage,
    PixelLabels,
    RandomScaleCrop,
    SegmentationMap,
    augmentation,
    collate,
    preparation,
)
from equipoise.bench.problems.data._files import DamagedDataError, MissingDataError, Reader, Sample, Source
from equipoise.bench.problems.data._normals import normals_from_depth
from equipoise.bench.problems.data.affectnet import AffectNet
from equipoise.bench.problems.data.affwild2 import AffWild2
from equipoise.bench.problems.data.celeba import CelebA
from equipoise.bench.problems.data.emotic import Emotic
from equipoise.bench.problems.data.nyuv2 import NYUDMT, NYUv2, NYUv2Arrays
from equipoise.bench.problems.data.pascal_voc import NYUDepthPairs, PascalVOC, voc_with_nyu_depth

READERS: tuple[type[Reader], ...] = (
    CelebA,
    AffWild2,
    AffectNet,
    Emotic,
    NYUv2,
    NYUv2Arrays,
    NYUDMT,
    PascalVOC,
    NYUDepthPairs,
)
"""Every reader; its `source` says which files it reads and where to request them."""

__all__ = [
    "NYUDMT",
    "READERS",
    "AffWild2",
    "AffectNet",
    "CelebA",
    "DamagedDataError",
    "DepthMap",
    "DropHiddenBoxes",
    "Emotic",
    "Letterbox",
    "MissingDataError",
    "NYUDepthPairs",
    "NYUv2",
    "NYUv2Arrays",
    "NormalMap",
    "OnImage",
    "PascalVOC",
    "PixelLabels",
    "RandomScaleCrop",
    "Reader",
    "Sample",
    "SegmentationMap",
    "Source",
    "augmentation",
    "collate",
    "normals_from_depth",
    "preparation",
    "voc_with_nyu_depth",
]
