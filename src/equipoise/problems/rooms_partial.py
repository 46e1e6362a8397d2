"""Rendered rooms with boxes, classes and depth, each training picture labelled for some of them only."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MetricCollection

from equipoise.problems._base import Batch, Measure, Predictions, Splits, Task
from equipoise.problems._dense import DepthTask, SegmentationTask
from equipoise.problems._registry import ProblemError
from equipoise.problems._rendering import CLASSES, THINGS
from equipoise.problems.rooms import RoomNetwork, RoomPictures, Rooms, draw

SHARES = {"detection": 0.3857, "segmentation": 0.2656, "depth": 0.6443}
"""The shares of labelled images in VOC+NYU, as the paper prints them. It counts 15,215, 10,477 and 24,231 of 39,446
images; the last is 61.43 %, and the printed shares of boxes and depth are more than the whole by 3 %."""

STRIDE = 4
MOST_DETECTIONS = 40


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

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.tasks = (CenterDetectionTask(len(THINGS)), SegmentationTask(len(CLASSES)), DepthTask())

    def data(self, quick: bool = False) -> Splits:
        """Returns as many pictures as `rooms` has.

        Raises:
            ProblemError: torchvision is missing.
        """
        if importlib.util.find_spec("torchvision") is None:
            raise ProblemError("rooms-partial measures detections with torchvision: pip install 'equipoise[vision]'.")
        return super().data(quick)

    def model(self) -> nn.Module:
        """Returns the network of `rooms` with a head for boxes instead of normals."""
        return PartialNetwork()

    def picture(self, predictions: Predictions, batch: Batch) -> Figure:
        """Draws the input, the truth and the prediction of every task for four pictures."""
        found = [
            {name: value[one["scores"] > 0.3] for name, value in one.items()}
            for one in decode(predictions["detection"])
        ]
        return draw({**predictions, "detection": found}, batch, [task.name for task in self.tasks])

    def _pictures(self, split: str, count: int) -> RoomPictures:
        pictures = super()._pictures(split, count)
        labelled = (
            label_some(count, self.seed)
            if split == "train"
            else dict.fromkeys(SHARES, torch.ones(count, dtype=torch.bool))
        )
        return PartialPictures(
            pictures.mirrored, **pictures.tensors, **{f"has_{task}": has for task, has in labelled.items()}
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


class CenterDetectionTask(Task):
    """Boxes as points: a peak in the class's heat map at the box's middle, and its sides there.

    Predictions under "detection" are `[B, classes + 4, H/4, W/4]`: logits of the heat maps, and how far the box
    reaches left, up, right and down from the cell's middle, as the logarithm of cells. Labels are a list of mappings
    of `boxes` `[N, 4]` in pixels and `labels` `[N]`, None for a picture that is not labelled. The loss is the focal
    loss of the heat maps per box, plus the L1 loss of the logarithms.

    Measured by VOC's mean average precision, which is its accuracy.

    Args:
        classes: how many.

    Source: Zhou et al., "Objects as Points", 2019.
    """

    name = "detection"
    measures = (Measure("mAP", higher_is_better=True, unit="%", scale=100, digits=2),)

    def __init__(self, classes: int) -> None:
        self.classes = classes

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

    def metrics(self) -> MetricCollection:
        """Returns mean average precision by VOC's rule of 2012."""
        from equipoise.metrics.detection import VOCDetection  # needs torchvision, which the problem's list does not

        return MetricCollection({"mAP": VOCDetection(self.classes)})

    def update(self, metrics: MetricCollection, predictions: Predictions, batch: Batch) -> None:
        """Feeds the detections and boxes of labelled pictures."""
        rows, objects = _labelled(batch)
        if rows:
            metrics.update(decode(predictions["detection"][rows]), objects)


def _labelled(batch: Batch) -> tuple[list[int], list[dict[str, Tensor]]]:
    """The rows of a batch that have boxes (perhaps none: an empty list of them), and the boxes."""
    labels = batch.get("detection") or []
    found = [(row, objects) for row, objects in enumerate(labels) if objects is not None]
    return [row for row, _ in found], [objects for _, objects in found]


def aim(objects: dict[str, Tensor], classes: int, size: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
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


def decode(maps: Tensor) -> list[dict[str, Tensor]]:
    """Returns `boxes` in pixels, `scores` and `labels` for each picture: the highest peaks among their neighbours."""
    heat, sides = maps[:, :-4].float(), maps[:, -4:].float()
    height, width = maps.shape[-2:]
    scores = heat.sigmoid()
    scores = scores * (functional.max_pool2d(scores, 3, 1, 1) == scores)
    best, index = scores.flatten(1).topk(min(MOST_DETECTIONS, scores[0].numel()))
    labels, cell = index // (height * width), index % (height * width)
    middle = torch.stack([cell % width, cell // width], -1) + 0.5
    reach = sides.flatten(2).gather(2, cell[:, None].expand(-1, 4, -1)).exp().movedim(1, -1)
    boxes = torch.cat([middle - reach[..., :2], middle + reach[..., 2:]], -1) * STRIDE
    boxes = torch.stack([boxes[..., 0::2].clamp(0, width * STRIDE), boxes[..., 1::2].clamp(0, height * STRIDE)], -1)
    return [
        {"boxes": box.flatten(1), "scores": score, "labels": label}
        for box, score, label in zip(boxes, best, labels, strict=True)
    ]
