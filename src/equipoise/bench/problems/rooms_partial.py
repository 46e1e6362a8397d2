"""Rendered rooms with boxes, classes and depth, each training picture labelled for some of them only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from equipoise.bench.problems._base import Batch, Predictions, Splits
from equipoise.bench.problems._dense import DepthTask, SegmentationTask
from equipoise.bench.problems._detection import AnchorDetectionTask, CenterDetectionTask, DetectionTask
from equipoise.bench.problems._registry import need_vision
from equipoise.bench.problems._rendering import CLASSES, THINGS
from equipoise.bench.problems.rooms import RoomNetwork, RoomPictures, Rooms, draw

SHARES = {"detection": 0.3857, "segmentation": 0.2656, "depth": 0.6443}
"""The shares of labelled images in VOC+NYU, as the paper prints them. It counts 15,215, 10,477 and 24,231 of 39,446
images; the last is 61.43 %, and the printed shares of boxes and depth are more than the whole by 3 %."""

SURE = 0.3
"""The score from which a detection is drawn."""


class RoomsPartial(Rooms):
    """`rooms` with the tasks and the missing labels of the AMTL paper's VOC+NYU: detection, segmentation and depth.

    Of the training pictures 38.57 % have boxes, 26.56 %, all of them among these, classes too, and 64.43 % depth; each
    has some label, and few have both boxes and depth. A batch in which no picture is labelled for a task leaves it out.
    Validation and test pictures are labelled for everything.

    Args:
        seed: decides the rooms and which pictures are labelled for what.
    """

    name = "rooms-partial"
    description = "rendered rooms: boxes, the class and the depth of every pixel, each picture labelled for some only"
    detection: DetectionTask = CenterDetectionTask(len(THINGS))

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.tasks = (self.detection, SegmentationTask(len(CLASSES)), DepthTask())

    def data(self, quick: bool = False) -> Splits:
        """Returns as many pictures as `rooms` has.

        Raises:
            ProblemError: the extra `vision` is missing; detections are measured with torchvision.
        """
        need_vision(self.name)
        return super().data(quick)

    def model(self) -> nn.Module:
        """Returns the network of `rooms` with a head for boxes instead of normals."""
        return PartialNetwork()

    def picture(self, predictions: Predictions, batch: Batch) -> Figure:
        """Draws the input, the truth and the prediction of every task for four pictures."""
        found = self.detection.detect(predictions, batch["input"].shape[-2:])
        sure = [{name: value[one["scores"] > SURE] for name, value in one.items()} for one in found]
        return draw({**predictions, "detection": sure}, batch, [task.name for task in self.tasks])

    def _pictures(self, split: str, count: int) -> RoomPictures:
        pictures = super()._pictures(split, count)
        labelled = (
            label_some(count, self.seed)
            if split == "train"
            else dict.fromkeys(SHARES, torch.ones(count, dtype=torch.bool))
        )
        return PartialPictures(
            pictures.augmented, **pictures.tensors, **{f"has_{task}": has for task, has in labelled.items()}
        )


class RoomsEfficientDet(RoomsPartial):
    """`rooms-partial` with the network of the AMTL paper's VOC+NYU, on a smaller backbone of the same family.

    Args:
        seed: decides the rooms and which pictures are labelled for what.
    """

    name = "rooms-efficientdet"
    description = "rooms-partial with an EfficientDet on EfficientNetV2-B0, from scratch"
    detection = AnchorDetectionTask(len(THINGS))

    def model(self) -> nn.Module:
        """Returns the EfficientDet."""
        from equipoise.bench.models import EfficientDet

        return EfficientDet(
            {"detection": len(THINGS)}, {"segmentation": len(CLASSES), "depth": 1}, "tf_efficientnetv2_b0"
        )


def label_some(count: int, seed: int) -> dict[str, Tensor]:
    """Returns which of `count` pictures are labelled for each task, bool `[count]`, in the proportions of `SHARES`."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    numbers = {task: round(share * count) for task, share in SHARES.items()}
    labelled = {task: torch.zeros(count, dtype=torch.bool) for task in SHARES}
    labelled["detection"][order[: numbers["detection"]]] = True
    labelled["segmentation"][order[: numbers["segmentation"]]] = True
    labelled["depth"][order[count - numbers["depth"] :]] = True
    return labelled


class PartialPictures(RoomPictures):
    """Rendered pictures as batches, without the labels that they are not to have.

    What is missing is −1 in `segmentation` and NaN in `depth`; `detection` is a list with None, or a mapping of
    `boxes` and `labels`, per picture. A task that no picture of a batch is labelled for is left out.
    """

    def __getitem__(self, index: int | Sequence[int]) -> dict[str, Any]:
        """Returns `input` and the labels there are."""
        batch = super().__getitem__([index] if isinstance(index, int) else index)
        has = {task: batch.pop(f"has_{task}") for task in SHARES}
        boxes, labels = batch.pop("boxes"), batch.pop("objects")
        batch["detection"] = [
            {"boxes": box[label >= 0], "labels": label[label >= 0]} if labelled else None
            for box, label, labelled in zip(boxes, labels, has["detection"].tolist(), strict=True)
        ]
        batch["segmentation"] = batch["segmentation"].masked_fill(~has["segmentation"].reshape(-1, 1, 1), -1)
        batch["depth"] = batch["depth"].masked_fill(~has["depth"].reshape(-1, 1, 1, 1), torch.nan)
        kept = {name: value for name, value in batch.items() if name not in has or has[name].any()}
        return {name: value[0] for name, value in kept.items()} if isinstance(index, int) else kept

    def label(self, pictures: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns input, labels and which of them are to be kept."""
        batch = super().label(pictures)
        del batch["normals"]
        batch["boxes"], batch["objects"] = pictures["boxes"], pictures["labels"]
        return batch | {f"has_{task}": pictures[f"has_{task}"] for task in SHARES}


class PartialNetwork(RoomNetwork):
    """The network of `rooms` with a head for boxes: a heat map per class, and a box, at every fourth pixel."""

    def __init__(self) -> None:
        super().__init__({"segmentation": len(CLASSES), "depth": 1})
        self.detection = nn.Sequential(nn.Conv2d(48, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, len(THINGS) + 4, 1))
        last = self.detection[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.constant_(last.bias[: len(THINGS)], -4.0)  # boxes are rare: at the start the heat maps say so

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Takes `[B, 3, H, W]`; gives maps of that size, and `[B, classes + 4, H/4, W/4]` for detection."""
        features = self.features(images)
        return {"detection": self.detection(features), **self.predict_dense(features, images)}
