"""Rendered rooms: name the class, tell the depth and the surface normal of every pixel. No download."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from equipoise.bench.problems._base import Batch, Predictions, Problem, Splits, Task, Tensors, Training
from equipoise.bench.problems._dense import (
    DeeplySupervised,
    DepthTask,
    NormalsTask,
    SegmentationTask,
    normals_as_colors,
)
from equipoise.bench.problems._registry import ProblemError, need_vision
from equipoise.bench.problems._rendering import CLASSES, THINGS
from equipoise.bench.problems._rendering.cache import load_pictures

HEIGHT, WIDTH = 96, 128
FIRST = {"train": 0, "validation": 100_000, "test": 200_000}
PICTURES = {"train": 600, "validation": 150, "test": 250}
QUICK = {"train": 160, "validation": 30, "test": 40}

HEADS = {"segmentation": len(CLASSES), "depth": 1, "normals": 3}
"""Task → channels of its map."""

NETWORKS = ("residual", "mtan", "pad-net", "mti-net")
"""Option `model`: an encoder and decoder of this file's; MTAN and PAD-Net on ResNet-18; MTI-Net on a small HRNet."""

SUPERVISED_TWICE = ("pad-net", "mti-net")
"""Those whose initial predictions are supervised beside the final ones."""

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
"""What pretrained backbones expect taken out."""

SCALES = (1.0, 1.2, 1.5)
"""A training picture is enlarged by one of these, as in the papers' NYUDv2."""

DEPTHS = (0.5, 6.0)
"""Metres that pictures of depth are coloured between."""


class Rooms(Problem):
    """Pictures of random furnished rooms, 96×128, with NYUDv2's three tasks.

    Every picture is of a room of its own, by ray casting: 13 classes, depth in metres along the optical axis,
    and normals in camera coordinates (x right, y down, z forward), all exact. As in NYUDv2, depth and normals are
    missing where a depth camera sees nothing: beside edges, on glass, on what shines or is seen at a grazing angle.
    The pictures are rendered once and kept in the user's cache folder.

    Args:
        seed: decides the rooms.
        model: the network, one of `NETWORKS`; all but the first need the extra `vision`.

    Raises:
        ProblemError: there is no such network.
    """

    name = "rooms"
    description = "rendered rooms: the class, the depth and the surface normal of every pixel"

    def __init__(self, seed: int = 0, model: str = NETWORKS[0]) -> None:
        if model not in NETWORKS:
            raise ProblemError(f"{self.name} does not take the model {model!r}: take one of {', '.join(NETWORKS)}.")
        self.seed = seed
        self.network = model
        self.tasks: Sequence[Task] = (SegmentationTask(len(CLASSES)), DepthTask(), NormalsTask())
        if model in SUPERVISED_TWICE:
            self.tasks = tuple(DeeplySupervised(task) for task in self.tasks)

    def data(self, quick: bool = False) -> Splits:
        """Returns 600, 150 and 250 pictures; 160, 30 and 40 if `quick`. Those for training are scaled and mirrored.

        Raises:
            ProblemError: the network needs the extra `vision`, which is missing.
        """
        if self.network != NETWORKS[0]:
            need_vision(self.name)
        return Splits(
            **{split: self._pictures(split, count) for split, count in (QUICK if quick else PICTURES).items()}
        )

    def model(self) -> nn.Module:
        """Returns a small residual encoder and decoder, with a convolutional head per task; or the one chosen."""
        if self.network == NETWORKS[0]:
            return RoomNetwork(HEADS)
        from equipoise.bench import models

        if self.network == "mti-net":
            return models.MTINet(HEADS, "hrnet_w18_small")
        return (models.MTAN if self.network == "mtan" else models.PADNet)(HEADS, "resnet18")

    def training(self, quick: bool = False) -> Training:
        """Returns 20 epochs at batch size 8 and learning rate 1e-3; 3 epochs if `quick`."""
        return Training(
            epochs=3 if quick else 20,
            batch_size=8,
            evaluation_batch_size=25,
            lr=1e-3,
            weight_decay=1e-4,
            schedule="poly",
        )

    def picture(self, predictions: Predictions, batch: Batch) -> Figure:
        """Draws the input, the truth and the prediction of every task for four pictures."""
        return draw(predictions, batch, [task.name for task in self.tasks])

    def _pictures(self, split: str, count: int) -> RoomPictures:
        indices = range(FIRST[split], FIRST[split] + count)
        pictures = load_pictures(indices, self.seed, HEIGHT, WIDTH)
        return RoomPictures(
            augmented=split == "train", **{name: torch.from_numpy(array) for name, array in pictures.items()}
        )


class RoomsMTAN(Rooms):
    """`rooms?model=mtan`: the network of the MAO paper's NYUDv2, from scratch.

    Args:
        seed: decides the rooms.
    """

    name = "rooms-mtan"
    description = "rooms with an MTAN on ResNet-18, from scratch"

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed, "mtan")


class RoomPictures(Tensors):
    """Rendered pictures as batches: inputs and labels, missing where a depth camera would see nothing.

    Args:
        augmented: enlarge and mirror what is asked for at random, drawn from PyTorch's default generator.
        **tensors: what `load_pictures` returns.
    """

    def __init__(self, augmented: bool, **tensors: Tensor) -> None:
        super().__init__(**tensors)
        self.augmented = augmented

    def __getitem__(self, index: int | Sequence[int]) -> dict[str, Any]:
        """Returns float `input` `[…, 3, H, W]` and the labels of every task."""
        batch = self.label(super().__getitem__(index))
        if not self.augmented:
            return batch
        if isinstance(index, int):
            return augment(batch)
        rows = [augment({name: value[row] for name, value in batch.items()}) for row in range(len(index))]
        return {name: torch.stack([row[name] for row in rows]) for name in batch}

    def label(self, pictures: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns input and labels of pictures; depth and normals are NaN where missing."""
        mean, deviation = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, DEVIATION))
        hole = pictures["hole"].unsqueeze(-3)
        return {
            "input": (pictures["image"] / 255 - mean) / deviation,
            "segmentation": pictures["class"].long(),
            "depth": pictures["depth"].unsqueeze(-3).masked_fill(hole, torch.nan),
            "normals": pictures["normal"].masked_fill(hole, torch.nan),
        }


def augment(sample: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns a sample enlarged by one of `SCALES`, cut at random to its size and mirrored at random, as for NYUDv2."""
    scale = SCALES[int(torch.randint(len(SCALES), ()))]
    height, width = (round(side / scale) for side in (HEIGHT, WIDTH))
    top, left = (int(torch.randint(side - part + 1, ())) for side, part in ((HEIGHT, height), (WIDTH, width)))
    mirrored = bool(torch.rand(()) < 0.5)
    if scale > 1:
        sample = enlarge(sample, scale, top, left)
    return {name: mirror(name, value) for name, value in sample.items()} if mirrored else sample


def enlarge(sample: dict[str, Tensor], scale: float, top: int, left: int) -> dict[str, Tensor]:
    """Returns what a window of a sample looks like at the size of the whole: nearer by the scale.

    Labels are those of the nearest pixels. Boxes are cut to the window, and those thinner than a pixel left out.

    Args:
        sample: of one picture.
        scale: how much larger.
        top: the window's first row.
        left: its first column.
    """
    height, width = (round(side / scale) for side in (HEIGHT, WIDTH))
    rows, columns = (
        start + ((torch.arange(side) + 0.5) * part / side).long()
        for start, side, part in ((top, HEIGHT, height), (left, WIDTH, width))
    )
    window = sample["input"][:, top : top + height, left : left + width]
    changed = {"input": _resize(window[None], (HEIGHT, WIDTH))[0]}
    for name in sample.keys() & {"segmentation", "depth", "normals"}:
        changed[name] = sample[name][..., rows[:, None], columns]
    if "depth" in changed:
        changed["depth"] = changed["depth"] / scale
    if "boxes" in sample:
        corner = torch.tensor([left, top, left, top])
        factor = torch.tensor([WIDTH / width, HEIGHT / height] * 2)
        limits = torch.tensor([WIDTH, HEIGHT] * 2, dtype=torch.float32)
        boxes = ((sample["boxes"] - corner) * factor).clamp(min=torch.zeros(4), max=limits)
        seen = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
        changed["boxes"], changed["objects"] = boxes, sample["objects"].masked_fill(~seen, -1)
    return sample | changed


def mirror(name: str, value: Tensor) -> Tensor:
    """Returns what is under a name in a batch, left and right exchanged; x changes its sign, in boxes its side."""
    if name == "boxes":
        left, top, right, bottom = value.unbind(-1)
        return torch.stack([WIDTH - right, top, WIDTH - left, bottom], -1)
    if name == "normals":
        return value.flip(-1) * torch.tensor([-1.0, 1.0, 1.0]).reshape(3, 1, 1)
    return value.flip(-1) if name in ("input", "segmentation", "depth") else value


class Block(nn.Module):
    """Two convolutions with a shortcut.

    Args:
        inputs: channels.
        outputs: channels.
        stride: of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Returns features at the stride."""
        summed: Tensor = self.layers(features) + self.shortcut(features)
        return functional.relu(summed)


class RoomNetwork(nn.Module):
    """A residual encoder to stride 16, a decoder back to stride 4, both shared, and a head per task.

    Args:
        outputs: task → channels.
    """

    def __init__(self, outputs: dict[str, int]) -> None:
        super().__init__()
        widths = (24, 32, 64, 96)
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 5, 2, 2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        self.encoder = nn.ModuleList(Block(*pair, stride=2) for pair in pairwise(widths))
        self.decoder = nn.ModuleList([Block(96 + 64, 64), Block(64 + 32, 48)])
        self.heads = nn.ModuleDict(
            {
                task: nn.Sequential(nn.Conv2d(48, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, channels, 1))
                for task, channels in outputs.items()
            }
        )

    def features(self, images: Tensor) -> Tensor:
        """Returns what the tasks share, `[B, 48, H/4, W/4]`."""
        stages = [self.stem(images)]
        for block in self.encoder:
            stages.append(block(stages[-1]))
        features: Tensor = stages.pop()
        for block in self.decoder:
            finer = stages.pop()
            features = block(torch.cat([_resize(features, finer.shape[-2:]), finer], 1))
        return features

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Takes `[B, 3, H, W]`; gives each task's `[B, channels, H, W]`."""
        return self.predict_dense(self.features(images), images)

    def predict_dense(self, features: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Runs the heads, and brings what they give to the images' size."""
        return {task: _resize(head(features), images.shape[-2:]) for task, head in self.heads.items()}


def _resize(features: Tensor, size: Sequence[int]) -> Tensor:
    resized: Tensor = functional.interpolate(features, list(size), mode="bilinear", align_corners=False)
    return resized


def draw(predictions: Predictions, batch: Batch, tasks: Sequence[str], rows: int = 4) -> Figure:
    """Draws the first pictures of a batch: the input, then truth and prediction of every task."""
    rows = min(rows, len(batch["input"]))
    figure = Figure(figsize=(2.1 * (1 + 2 * len(tasks)), 1.62 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, 1 + 2 * len(tasks), squeeze=False)
    mean, deviation = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, DEVIATION))
    for row, axes in enumerate(grid):
        image = (batch["input"][row].cpu() * deviation + mean).clamp(0, 1).movedim(0, -1).numpy()
        axes[0].imshow(image)
        for number, task in enumerate(tasks):
            _draw_task(axes[1 + 2 * number], task, batch[task][row], image)
            _draw_task(axes[2 + 2 * number], task, predictions[task][row], image)
    titles = ["input"] + [title for task in tasks for title in (f"{task}: truth", "prediction")]
    for axis, title in zip(grid[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    for axis in grid.flat:
        axis.set_axis_off()
    return figure


def _draw_task(axis: Axes, task: str, values: Any, image: NDArray[np.float32]) -> None:
    """Draws labels or what was predicted; missing labels stay blank."""
    if task == "detection":
        axis.imshow(image)
        for (left, top, right, bottom), label in zip(values["boxes"].tolist(), values["labels"].tolist(), strict=True):
            color = colormaps["tab10"](label)
            axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color))
            axis.text(left + 1, top + 1, THINGS[label], color=color, fontsize=6, va="top", clip_on=True)
    elif task == "segmentation":
        classes = (values.argmax(0) if values.dim() == 3 else values).cpu().numpy()
        axis.imshow(np.ma.masked_less(classes, 0), cmap="tab20", vmin=0, vmax=19, interpolation="nearest")
    elif task == "depth":
        axis.imshow(values[0].detach().cpu().numpy(), cmap="viridis", vmin=DEPTHS[0], vmax=DEPTHS[1])
    else:
        axis.imshow(normals_as_colors(values.detach().cpu()).numpy())
