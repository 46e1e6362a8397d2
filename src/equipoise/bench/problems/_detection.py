"""Object detection as a task: boxes from peaks of heat maps, or from anchors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import MetricCollection

from equipoise.bench.problems._base import Batch, Measure, Predictions, Task

Objects = Mapping[str, Tensor]
"""A picture's `boxes` `[N, 4]` (left, top, right, bottom in pixels) and `labels` `[N]`; if detected, `scores` `[N]`."""

STRIDE = 4
"""Pixels a cell of the heat maps."""

MOST_DETECTIONS = 40


class DetectionTask(Task):
    """Boxes of objects, measured by VOC's mean average precision, which is its accuracy.

    Labels under "detection" are a list with a picture's `boxes` `[N, 4]` and `labels` `[N]`, or None if the picture is
    not labelled. Metrics need torchvision.

    Args:
        classes: how many.
    """

    name = "detection"
    measures = (Measure("mAP", higher_is_better=True, unit="%", scale=100, digits=2),)

    def __init__(self, classes: int) -> None:
        self.classes = classes

    @abstractmethod
    def detect(self, predictions: Predictions, size: tuple[int, int]) -> list[Objects]:
        """Returns what was detected in every picture of a batch of pictures of that height and width."""

    def labels(self, batch: Batch) -> int:
        """Returns the number of boxes, by which the losses are divided; pictures without any count as one box.

        Anchors that have a box are about as many times more in every picture.
        """
        rows, objects = _labelled(batch)
        return max(1, sum(len(one["boxes"]) for one in objects)) if rows else 0

    def metrics(self) -> MetricCollection:
        """Returns mean average precision by VOC's rule of 2012."""
        from equipoise.bench.metrics.detection import VOCDetection  # torchvision; the rest does without

        return MetricCollection({"mAP": VOCDetection(self.classes)})

    def update(self, metrics: MetricCollection, predictions: Predictions, batch: Batch) -> None:
        """Feeds the detections and boxes of labelled pictures."""
        rows, objects = _labelled(batch)
        if rows:
            found = self.detect(predictions, batch["input"].shape[-2:])
            metrics.update([found[row] for row in rows], objects)


class CenterDetectionTask(DetectionTask):
    """Boxes as points: a peak in the class's heat map at the box's middle, and its sides there.

    Predictions under "detection" are `[B, classes + 4, H/4, W/4]`: logits of the heat maps, and how far the box
    reaches left, up, right and down from the cell's middle, as the logarithm of cells. The loss is the focal
    loss of the heat maps per box, plus the L1 loss of the logarithms.

    Args:
        classes: how many.

    Source: Zhou et al., "Objects as Points", 2019.
    """

    def loss(self, predictions: Predictions, batch: Batch) -> Tensor | None:
        """Returns the mean loss over labelled pictures."""
        rows, objects = _labelled(batch)
        if not rows:
            return None
        maps = predictions["detection"][rows]
        heat, sides = maps[:, : self.classes], maps[:, self.classes :]
        target, places, reaches = zip(*(aim(one, self.classes, maps.shape[-2:]) for one in objects), strict=True)
        wanted = torch.stack(target)
        peak = wanted == 1
        surprise = torch.where(peak, functional.softplus(-heat), functional.softplus(heat))
        doubt = torch.where(peak, torch.sigmoid(-heat), torch.sigmoid(heat)) ** 2
        count = max(1, sum(len(place) for place in places))
        focal = (surprise * doubt * torch.where(peak, 1, (1 - wanted) ** 4)).sum() / count
        found = torch.cat([side[:, place[:, 1], place[:, 0]].T for side, place in zip(sides, places, strict=True)])
        return focal + (found - torch.cat(reaches)).abs().sum() / (4 * count)

    def detect(self, predictions: Predictions, size: tuple[int, int]) -> list[Objects]:
        """Returns the highest peaks among their neighbours, with the boxes there."""
        maps = predictions[self.name].float()
        heat, sides = maps[:, : self.classes], maps[:, self.classes :]
        height, width = maps.shape[-2:]
        scores = heat.sigmoid()
        scores = scores * (functional.max_pool2d(scores, 3, 1, 1) == scores)
        best, index = scores.flatten(1).topk(min(MOST_DETECTIONS, scores[0].numel()))
        labels, cell = index // (height * width), index % (height * width)
        middle = torch.stack([cell % width, cell // width], -1) + 0.5
        reach = sides.flatten(2).gather(2, cell[:, None].expand(-1, 4, -1)).exp().movedim(1, -1)
        boxes = torch.cat([middle - reach[..., :2], middle + reach[..., 2:]], -1) * STRIDE
        boxes = torch.stack([boxes[..., 0::2].clamp(0, size[1]), boxes[..., 1::2].clamp(0, size[0])], -1)
        return [
            {"boxes": box.flatten(1), "scores": score, "labels": label}
            for box, score, label in zip(boxes, best, labels, strict=True)
        ]


class AnchorDetectionTask(DetectionTask):
    """Boxes by anchors, as `equipoise.bench.models.EfficientDet` predicts them; its loss is that network's.

    Predictions under "detection" are logits `[B, A, classes]`, with "detection.offsets" `[B, A, 4]` and
    "detection.anchors" `[A, 4]` beside them.
    """

    def loss(self, predictions: Predictions, batch: Batch) -> Tensor | None:
        """Returns the loss over labelled pictures."""
        from equipoise.bench.models.boxes import detection_loss

        rows, objects = _labelled(batch)
        if not rows:
            return None
        logits, offsets, anchors = self._read(predictions)
        return detection_loss(logits[rows], offsets[rows], anchors, objects)

    def detect(self, predictions: Predictions, size: tuple[int, int]) -> list[Objects]:
        """Returns the boxes that remain after non-maximum suppression."""
        from equipoise.bench.models.boxes import detect

        return list(detect(*self._read(predictions), size))

    def _read(self, predictions: Predictions) -> tuple[Tensor, Tensor, Tensor]:
        name = self.name
        return predictions[name], predictions[f"{name}.offsets"], predictions[f"{name}.anchors"]


def _labelled(batch: Batch) -> tuple[list[int], list[Objects]]:
    """The rows of a batch that have boxes (perhaps none: an empty list of them), and the boxes."""
    labels = batch.get("detection") or []
    found = [(row, objects) for row, objects in enumerate(labels) if objects is not None]
    return [row for row, _ in found], [objects for _, objects in found]


def aim(objects: Objects, classes: int, size: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what is wanted for a picture's boxes.

    Args:
        objects: `boxes` `[N, 4]` in pixels and `labels` `[N]`.
        classes: how many.
        size: height and width of the maps.

    Returns:
        Heat maps `[classes, h, w]`, 1 at the cell of each box's middle and falling off with a tenth of its
        sides; the cells `[N, 2]` (x, y); and the logarithms `[N, 4]`.
    """
    boxes, labels = objects["boxes"] / STRIDE, objects["labels"]
    height, width = size
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    place = torch.minimum(middle.floor().long(), torch.tensor([width - 1, height - 1], device=boxes.device))
    spread = ((boxes[:, 2:] - boxes[:, :2]) / 10).clamp(min=0.5)
    columns = torch.arange(width, device=boxes.device) - place[:, :1]
    rows = torch.arange(height, device=boxes.device) - place[:, 1:]
    falling = torch.exp(
        -((columns / spread[:, :1]) ** 2)[:, None, :] / 2 - ((rows / spread[:, 1:]) ** 2)[:, :, None] / 2
    )
    heat = torch.zeros(classes, height, width, device=boxes.device)
    heat = heat.scatter_reduce(0, labels[:, None, None].expand_as(falling), falling, "amax")
    cell = place + 0.5
    reach = torch.cat([cell - boxes[:, :2], boxes[:, 2:] - cell], 1)
    return heat, place, reach.clamp(min=0.1).log()
