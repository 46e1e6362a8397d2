"""Object detection: mean average precision by the rules of PASCAL VOC and of COCO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.detection import MeanAveragePrecision
from torchmetrics.utilities import dim_zero_cat
from torchvision.ops import box_iou

from equipoise._checks import check_choice
from equipoise.gradients.gramian import wide_dtype

Boxes = Mapping[str, Tensor]
"""An image's boxes: `boxes` `[N, 4]` as (left, top, right, bottom), `labels` `[N]`, and more by use."""


class VOCDetection(Metric):
    """Mean average precision of detections, by the rules of PASCAL VOC.

    In every image, each detection takes the box of its class that it overlaps most. With an overlap (intersection over
    union) of at least ½ it is right if it is that box's highest-scored detection and wrong if not; on a box marked
    difficult it does not count, and neither does the box. AP is, over the detections of a class in order of their
    score, by the rule of 2007 the mean of the best precision at a recall of at least 0, 0.1, …, 1, and by that of 2012
    the area under the precision made to fall with recall. The mean is over the classes that have a box; NaN if none.

    Boxes are continuous: VOC's pixel-inclusive corners `(x1, y1, x2, y2)` become `(x1 − 1, y1 − 1, x2, y2)`, and the
    overlap is then the devkit's. Detections with equal scores enter the curve together, so that their order, which is
    that of the ranks, does not matter; the devkit leaves it to its sort. The state is three numbers a detection.

    `update` takes a list of detections (`boxes`, `scores` `[N]`, `labels` `[N]`), one mapping an image, and a list of
    true boxes (`boxes`, `labels`, and, if any are, bool `difficult` `[N]`). Labels are 0, …, classes − 1.

    Args:
        classes: how many.
        rule: "2007" or "2012".

    Raises:
        ValueError: an unknown rule.

    Source: Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010, and the devkits of 2007
    and 2012.

    Example:
        >>> import torch
        >>> from equipoise.bench.metrics.detection import VOCDetection
        >>> metric = VOCDetection(classes=1)
        >>> box, label = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([0])
        >>> found = {"boxes": box, "labels": label, "scores": torch.tensor([0.9])}
        >>> metric.update([found], [{"boxes": box, "labels": label}])
        >>> metric.compute()
        tensor(1.)
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    scores: list[Tensor]
    labels: list[Tensor]
    right: list[Tensor]
    boxes: Tensor

    def __init__(self, classes: int, rule: Literal["2007", "2012"] = "2012") -> None:
        super().__init__()
        self.classes = classes
        self.rule = check_choice("rule", rule, ("2007", "2012"))
        for name in ("scores", "labels", "right"):  # float32: a rank without a detection sends that, empty
            self.add_state(name, [], dist_reduce_fx="cat")
        self.add_state("boxes", torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, detections: Sequence[Boxes], truth: Sequence[Boxes]) -> None:
        """Matches the detections of a batch's images with the true boxes.

        Raises:
            ValueError: the numbers of images differ.
        """
        check_same_images(detections, truth)
        for found, true in zip(detections, truth, strict=True):
            difficult = true.get("difficult", torch.zeros_like(true["labels"], dtype=torch.bool)).bool()
            self.boxes += torch.bincount(true["labels"][~difficult], minlength=self.classes)
            order = found["scores"].argsort(descending=True, stable=True)
            labels = found["labels"][order]
            right, counts = match(found["boxes"][order], labels, true["boxes"], true["labels"], difficult)
            self.scores.append(found["scores"][order][counts].detach().float())
            self.labels.append(labels[counts].float())
            self.right.append(right[counts].float())

    def compute(self) -> Tensor:
        """Returns the mean average precision, in [0, 1]."""
        if not self.boxes.any():
            return torch.full((), torch.nan, device=self.boxes.device)
        scores, labels, right = (dim_zero_cat(state) for state in (self.scores, self.labels, self.right))
        average = AVERAGES[self.rule]
        each = [
            average(*curve(scores[labels == label], right[labels == label], self.boxes[label]))
            for label in self.boxes.nonzero()[:, 0]
        ]
        return torch.stack(each).mean().float()


def match(
    boxes: Tensor, labels: Tensor, true_boxes: Tensor, true_labels: Tensor, difficult: Tensor
) -> tuple[Tensor, Tensor]:
    """Matches an image's detections, in falling order of their scores, with its true boxes by VOC's rules.

    Returns:
        Whether each detection is right, if it counts, and whether it counts, both bool `[N]`.
    """
    nothing = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    if len(true_boxes) == 0 or len(boxes) == 0:
        return nothing, ~nothing
    overlap = box_iou(boxes.float(), true_boxes.float())
    best, taken = torch.where(labels[:, None] == true_labels, overlap, -1.0).max(1)
    hit = best >= 0.5
    earlier = (taken[:, None] == taken).logical_and(hit).tril(-1).any(1)
    return hit & ~earlier, ~(hit & difficult[taken])


def curve(scores: Tensor, right: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Returns recall and precision after each group of detections with the same score, in falling order."""
    scores, order = scores.sort(descending=True)
    hits = right[order].cumsum(0, dtype=wide_dtype(right.device))
    last = torch.ones_like(scores, dtype=torch.bool)
    last[:-1] = scores[1:] != scores[:-1]
    precision = hits / torch.arange(1, len(hits) + 1, device=hits.device)
    return (hits / boxes)[last], precision[last]


def eleven_points(recall: Tensor, precision: Tensor) -> Tensor:
    """VOC 2007: the mean over recalls 0, 0.1, …, 1 of the best precision at that recall or a higher one."""
    if len(recall) == 0:
        return recall.new_zeros(())
    points = torch.arange(11, dtype=recall.dtype, device=recall.device)[:, None] / 10
    return torch.where(recall >= points, precision, 0).amax(1).mean()


def area(recall: Tensor, precision: Tensor) -> Tensor:
    """VOC 2012: the area under the precision made to fall with recall."""
    if len(recall) == 0:
        return recall.new_zeros(())
    envelope = precision.flip(0).cummax(0).values.flip(0)
    return (recall.diff(prepend=recall.new_zeros(1)) * envelope).sum()


AVERAGES = {"2007": eleven_points, "2012": area}


class COCODetection(Metric):
    """Mean average precision of detections, by COCO's rules: pycocotools through torchmetrics.

    `mAP` is the mean over the overlaps 0.5, 0.55, …, 0.95, `AP50` and `AP75` are those at one overlap; at most 100
    detections an image. −1, as COCO has it, without a true box. The state is six numbers a box and two an image:
    torchmetrics' own class needs the same number of images on every rank, and rounds the overlaps to float32.

    `update` takes what `VOCDetection.update` takes; true boxes marked in `iscrowd` `[N]` are COCO's crowd regions.
    `difficult` is none of COCO's rules, and ignored.

    Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, and the COCO API.

    Example:
        >>> import torch
        >>> from equipoise.bench.metrics.detection import COCODetection
        >>> metric = COCODetection()
        >>> box, label = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([0])
        >>> found = {"boxes": box, "labels": label, "scores": torch.tensor([0.9])}
        >>> metric.update([found], [{"boxes": box, "labels": label}])
        >>> round(metric.compute()["mAP"].item(), 3)
        1.0
    """

    full_state_update = False
    is_differentiable = False

    found: list[Tensor]
    true: list[Tensor]
    sizes: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("found", "true", "sizes"):  # flat float32: a rank without an image sends that, empty
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, detections: Sequence[Boxes], truth: Sequence[Boxes]) -> None:
        """Adds a batch's images.

        Raises:
            ValueError: the numbers of images differ.
        """
        check_same_images(detections, truth)
        for found, true in zip(detections, truth, strict=True):
            crowd = true.get("iscrowd", torch.zeros_like(true["labels"]))
            self.found.append(_rows(found["boxes"], found["scores"], found["labels"]))
            self.true.append(_rows(true["boxes"], crowd, true["labels"]))
            self.sizes.append(found["boxes"].new_tensor([len(found["boxes"]), len(true["boxes"])], dtype=torch.float32))

    def compute(self) -> dict[str, Tensor]:
        """Returns `mAP`, `AP50` and `AP75`, in [0, 1]."""
        metric = MeanAveragePrecision(
            backend="pycocotools",
            iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),  # to the last bit, as COCO's own
            rec_thresholds=np.linspace(0, 1, 101).tolist(),
            sync_on_compute=False,
        )
        metric.warn_on_many_detections = False
        sizes = dim_zero_cat(self.sizes).reshape(-1, 2).long()
        found, true = (
            torch.split(dim_zero_cat(state).reshape(-1, 6), size.tolist())
            for state, size in zip((self.found, self.true), sizes.T, strict=True)
        )
        metric.update(
            [{"boxes": rows[:, :4], "scores": rows[:, 4], "labels": rows[:, 5].long()} for rows in found],
            [{"boxes": rows[:, :4], "iscrowd": rows[:, 4].long(), "labels": rows[:, 5].long()} for rows in true],
        )
        values = metric.compute()
        return {"mAP": values["map"], "AP50": values["map_50"], "AP75": values["map_75"]}


def check_same_images(detections: Sequence[Boxes], truth: Sequence[Boxes]) -> None:
    """Checks that there are detections and true boxes of the same number of images.

    Raises:
        ValueError: there are not.
    """
    if len(detections) != len(truth):
        raise ValueError(
            f"Found detections of {len(detections)} images and true boxes of {len(truth)}: pass both of every image."
        )


def _rows(boxes: Tensor, number: Tensor, labels: Tensor) -> Tensor:
    """Six numbers a box, flat."""
    columns = torch.stack([number.detach().float(), labels.float()], 1)
    return torch.cat([boxes.detach().float(), columns], 1).flatten()
