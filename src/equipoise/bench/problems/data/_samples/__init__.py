"""Small data sets with made-up content in the official layouts, for trying things out where there is no data.

Each function writes one into a folder and returns what was written: for every split, the samples that its reader
should give, before any transform, in its order. Pictures stored as JPEG are only nearly what they were.
"""

from equipoise.bench.problems.data._samples.nyu import (
    write_nyu_depth_pairs,
    write_nyud_mt,
    write_nyuv2,
    write_nyuv2_arrays,
)
from equipoise.bench.problems.data._samples.people import (
    write_affectnet,
    write_affwild2,
    write_celeba,
    write_emotic,
)
from equipoise.bench.problems.data._samples.voc import write_pascal_voc

__all__ = [
    "write_affectnet",
    "write_affwild2",
    "write_celeba",
    "write_emotic",
    "write_nyu_depth_pairs",
    "write_nyud_mt",
    "write_nyuv2",
    "write_nyuv2_arrays",
    "write_pascal_voc",
]
