"""PASCAL VOC with NYU depth as the AMTL paper has them: each picture labelled for some tasks only."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent
from typing import Any

from torch import nn
from torch.utils.data import ConcatDataset

from equipoise.bench.models import EfficientDet
from equipoise.bench.problems._base import Training
from equipoise.bench.problems._dense import SegmentationTask
from equipoise.bench.problems._detection import AnchorDetectionTask
from equipoise.bench.problems.data import (
    NYUDepthPairs,
    PascalVOC,
    Sample,
    Source,
    augmentation,
    preparation,
    voc_with_nyu_depth,
)
from equipoise.bench.problems.data._files import Transform
from equipoise.bench.problems.data._samples import write_nyu_depth_pairs, write_pascal_voc
from equipoise.bench.problems.data.pascal_voc import CLASSES
from equipoise.bench.problems.papers._base import PaperProblem
from equipoise.bench.problems.papers.nyuv2 import DepthShare


class VOCWithNYUDepth(PaperProblem):
    """Detection, segmentation and depth by EfficientDet on EfficientNetV2-S; 39,446 pictures, each labelled for some.

    The paper gives network, data and measures; the authors' configuration adds 640×640, batches of 32, 200 epochs,
    AdamW with a learning rate of 1e-4 and a weight decay of 5e-5. Chosen here: the authors' warm-up, plateau schedule
    and moving average of the weights are a cosine schedule; the losses are EfficientDet's; scales between ¾ and 1½,
    mirroring and colours as in `NYUv2AMTL`; a twentieth of the training pictures (of depth: whole rooms) for
    selection. Detection is measured by VOC's rule of 2012.

    The data folder has the folders `VOC` and `NYU`, as in the authors' code.

    Args:
        data, pretrained, smoke, on_damaged, loading: see `PaperProblem`.

    Source: Yun & Cho, "Achievement-based Training Progress Balancing for Multi-Task Learning", ICCV 2023, and the
    authors' configuration.
    """

    name = "voc-nyu"
    description = "VOC 2007+2012 and NYU depth, partly labelled: boxes, classes, depth by EfficientDet (AMTL paper)"
    source = Source(
        name="VOC and NYU",
        layout=f"  VOC/ with\n{indent(PascalVOC.source.layout, '  ')}\n  NYU/ with\n"
        f"{indent(NYUDepthPairs.source.layout, '  ')}",
        request=f"{PascalVOC.source.request} {NYUDepthPairs.source.request}",
    )
    size = (640, 640)
    smoke_size = (128, 128)
    held_out = 0.05
    tasks = (AnchorDetectionTask(len(CLASSES)), SegmentationTask(1 + len(CLASSES)), DepthShare())

    @classmethod
    def write_samples(cls, folder: Path) -> None:
        """Writes some pictures of each."""
        for part, write in (("VOC", write_pascal_voc), ("NYU", write_nyu_depth_pairs)):
            (folder / part).mkdir()
            write(folder / part)

    def read(self, root: Path, split: str, transform: Transform | None) -> ConcatDataset[Sample]:
        """Returns a split of both together."""
        for part in ("VOC", "NYU"):
            self.source.find(root, part)
        return voc_with_nyu_depth(root / "VOC", root / "NYU", split, "SegmentationClassAug", transform, self.on_damaged)

    def train_transform(self, size: tuple[int, int]) -> Any:
        """Returns random scale, crop, mirroring and colours."""
        return augmentation(size, scales=(0.75, 1.5), continuous=True, colour=0.4, letterbox=True)

    def test_transform(self, size: tuple[int, int]) -> Any:
        """Returns resizing."""
        return preparation(size, letterbox=True)

    def network(self) -> nn.Module:
        """Returns the EfficientDet."""
        return EfficientDet(
            {"detection": len(CLASSES)},
            {"segmentation": 1 + len(CLASSES), "depth": 1},
            "tf_efficientnetv2_s",
            self.pretrained,
        )

    def protocol(self) -> Training:
        """Returns 200 epochs of batches of 32."""
        return Training(
            epochs=200, batch_size=32, evaluation_batch_size=16, lr=1e-4, weight_decay=5e-5, schedule="cosine"
        )
