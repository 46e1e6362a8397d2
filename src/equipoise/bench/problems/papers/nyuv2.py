"""NYUv2 as the MAO and the AMTL paper have it: classes, depth and normals of indoor pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import nn

from equipoise.bench.models import MTAN, DeepLabV3, MTINet
from equipoise.bench.problems._base import Batch, Measure, Predictions, Task, Training
from equipoise.bench.problems._dense import DeeplySupervised, DepthTask, NormalsTask, SegmentationTask
from equipoise.bench.problems.data import NYUDMT, NYUv2, Reader, Source, augmentation
from equipoise.bench.problems.data._files import Transform
from equipoise.bench.problems.data._samples import write_nyud_mt
from equipoise.bench.problems.papers._base import PaperProblem
from equipoise.bench.problems.rooms import draw

CLASSES = 40
HEADS = {"segmentation": CLASSES, "depth": 1, "normals": 3}


class NYUDv2(PaperProblem):
    """Forty classes, depth and normals at 480×640, from the archive NYUD_MT or the authors' own file.

    Of the 795 training pictures a tenth is held out for selection: whole rooms, or whole runs of neighbours of NYUD_MT,
    which does not name the rooms. Results are on the 654.

    Args:
        data, pretrained, smoke, on_damaged, loading: see `PaperProblem`.
    """

    source = Source(
        name="NYUDv2",
        layout=f"either, as archive NYUD_MT:\n{NYUDMT.source.layout}\nor, as one file:\n{NYUv2.source.layout}",
        request=f"{NYUDMT.source.request}; or {NYUv2.source.request}",
    )
    size = (480, 640)
    smoke_size = (32, 48)
    held_out = 0.1
    tasks: Sequence[Task] = (SegmentationTask(CLASSES), DepthTask(), NormalsTask())

    @classmethod
    def write_samples(cls, folder: Path) -> None:
        """Writes eleven pictures as NYUD_MT."""
        write_nyud_mt(folder, images=(8, 3))

    def read(self, root: Path, split: str, transform: Transform | None) -> Reader:
        """Returns a split, from whichever form lies in the folder."""
        if (root / "nyu_depth_v2_labeled.mat").exists():
            return NYUv2(root, split, CLASSES, transform, self.on_damaged)
        if not (root / "gt_sets").exists():
            raise self.source.missing(f"{root} has neither gt_sets nor nyu_depth_v2_labeled.mat")
        return NYUDMT(root, split, transform, self.on_damaged)

    def picture(self, predictions: Predictions, batch: Batch) -> Figure:
        """Draws the input, the truth and the prediction of every task for four pictures."""
        return draw(predictions, batch, [task.name for task in self.tasks])


class NYUDv2MTAN(NYUDv2):
    """NYUDv2 by MTAN on ResNet-18.

    As the MAO paper says: cross-entropy, L1 and cosine losses, batches of 4, learning rate 1e-4 for all methods with
    polynomial decay (power 0.9), weight decay 1e-4, 100 epochs from ImageNet's weights or 170 from scratch. Its
    augmentation is that of Xu et al. (2018): scaled by 1, 1.2 or 1.5, cropped and mirrored at random.

    Args:
        data, pretrained, smoke, on_damaged, loading: see `PaperProblem`.

    Source: Hervella et al., "Multi-Adaptive Optimization for multi-task learning with deep neural networks", Neural
    Networks 2024.
    """

    name = "nyudv2-mtan"
    description = "NYUDv2: classes, depth and normals by MTAN on ResNet-18 (MAO paper)"

    def train_transform(self, size: tuple[int, int]) -> Any:
        """Returns random scale, crop and mirroring."""
        return augmentation(size, scales=(1.0, 1.2, 1.5))

    def network(self) -> nn.Module:
        """Returns the MTAN."""
        return MTAN(HEADS, "resnet18.tv_in1k", self.pretrained)

    def protocol(self) -> Training:
        """Returns 100 or 170 epochs of batches of 4."""
        return Training(
            epochs=100 if self.pretrained else 170,
            batch_size=4,
            evaluation_batch_size=8,
            lr=1e-4,
            weight_decay=1e-4,
            schedule="poly",
        )


class NYUDv2MTINet(NYUDv2MTAN):
    """NYUDv2 by MTI-Net on HRNet-18, whose initial predictions are supervised too, otherwise as `NYUDv2MTAN`.

    Args:
        data, pretrained, smoke, on_damaged, loading: see `PaperProblem`.
    """

    name = "nyudv2-mtinet"
    description = "NYUDv2: classes, depth and normals by MTI-Net on HRNet-18 (MAO paper)"
    tasks = tuple(DeeplySupervised(task) for task in NYUDv2.tasks)

    def network(self) -> nn.Module:
        """Returns the MTI-Net."""
        return MTINet(HEADS, "hrnet_w18", self.pretrained)


class DepthShare(DepthTask):
    """Depth, reported as the share of pixels within a factor of 1.25."""

    measures = (Measure("δ<1.25", higher_is_better=True, unit="%", scale=100, digits=2),)


class NormalsShare(NormalsTask):
    """Normals, reported as the share of pixels within 11.25°."""

    measures = (Measure("<11.25°", higher_is_better=True, unit="%", scale=100, digits=2),)


class NYUv2AMTL(NYUDv2):
    """NYUv2 by DeepLabV3 on a ResNet-50 dilated to stride 8.

    As methods and authors' configuration say: cross-entropy with label smoothing 0.1, L1 and cosine losses, Adam,
    batches of 8, 100 epochs, learning rate 4e-4 with polynomial decay, weight decay 5e-6 (decoupled here). Scales are
    those of the authors' code, drawn between ¾ and 1½ for every picture, and mirroring; its colour distortion is a
    variation of brightness, contrast and saturation by up to 0.4. Pretrained on ImageNet.

    Args:
        data, pretrained, smoke, on_damaged, loading: see `PaperProblem`.

    Source: Yun & Cho, "Achievement-based Training Progress Balancing for Multi-Task Learning", ICCV 2023, and the
    authors' configuration of DeepLabV3.
    """

    name = "nyuv2-amtl"
    description = "NYUv2: classes, depth and normals by DeepLabV3 on ResNet-50 (AMTL paper)"
    tasks = (SegmentationTask(CLASSES, label_smoothing=0.1), DepthShare(), NormalsShare())

    def train_transform(self, size: tuple[int, int]) -> Any:
        """Returns random scale, crop, mirroring and colours."""
        return augmentation(size, scales=(0.75, 1.5), continuous=True, colour=0.4)

    def network(self) -> nn.Module:
        """Returns the DeepLabV3."""
        return DeepLabV3(HEADS, "resnet50.tv_in1k", self.pretrained)

    def protocol(self) -> Training:
        """Returns 100 epochs of batches of 8."""
        return Training(epochs=100, batch_size=8, evaluation_batch_size=8, lr=4e-4, weight_decay=5e-6, schedule="poly")
