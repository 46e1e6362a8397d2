"""PASCAL VOC 2007 and 2012 (detection, segmentation) with NYU depth pairs: each image labelled for some tasks."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from torch.utils.data import ConcatDataset
from torchvision import tv_tensors

from equipoise._checks import check_choice
from equipoise.bench.problems.data._augmentation import DepthMap, SegmentationMap
from equipoise.bench.problems.data._files import (
    DamagedDataError,
    Reader,
    Sample,
    Source,
    Transform,
    check_pixels,
    decoding,
    read_image,
    read_lines,
    read_map,
)
from equipoise.bench.problems.data.nyuv2 import room_of

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

SEGMENTATION_FOLDERS = ("SegmentationClass", "SegmentationClassAug")
BORDER = 255
"""What the pixels of an object's border are labelled; no class."""


class _Picture(NamedTuple):
    folder: Path
    name: str
    detection: bool
    segmentation: Path | None


class PascalVOC(Reader):
    """The pictures of both years with what each is labelled for.

    A sample has "input", uint8 `[3, H, W]` before the transform; "detection", a mapping of "boxes" (float32
    `[objects, 4]`: left, top, right, bottom in pixels from 0), "labels" (int64 `[objects]`, from 0 in the order of
    `CLASSES`) and "difficult" (bool `[objects]`: not counted in evaluation), or None if the picture is not labelled for
    it; "segmentation", int64 `[H, W]`, 0 the background, then `CLASSES`, −1 the borders, or everywhere if the picture
    is not labelled for it.

    For training: the trainval sets of 2007 and 2012, all labelled for detection and some for segmentation, without
    the pictures of 2012's segmentation val set, some of which are 2007's under another name (`2007_000033` is
    2007's `000033`). For testing: 2007's test set, for detection, and 2012's segmentation val set, for segmentation.

    Args:
        root: the folder of VOC2007 and VOC2012, or of the VOCdevkit with them.
        split: "train" or "test".
        segmentation: where the labels for training are: "SegmentationClass", or "SegmentationClassAug", which has
            five times as many (the AMTL paper's 10,477).
        transform: applied to every sample.
        on_damaged: "error" raises at the first damaged file; "skip" reads everything once, leaves out what is
            damaged and says how much that was.

    Raises:
        MissingDataError: a folder or list is not there.
        DamagedDataError: a file is damaged, with on_damaged="error".

    Source: Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2015.
    """

    source = Source(
        name="PASCAL VOC",
        layout="""\
  VOC2007/, VOC2012/                   (or in VOCdevkit/), each with
    ImageSets/Main/trainval.txt        (2007 also Main/test.txt; 2012 also Segmentation/val.txt)
    JPEGImages/<name>.jpg
    Annotations/<name>.xml
    SegmentationClass/<name>.png
  VOC2012/SegmentationClassAug/<name>.png   only for segmentation="SegmentationClassAug\"""",
        request="http://host.robots.ox.ac.uk/pascal/VOC/, 2007 trainval and test, 2012 trainval; SegmentationClassAug "
        "are the Semantic Boundaries Dataset's labels (http://home.bharathh.info/pubs/codes/SBD/) as PNG files.",
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        segmentation: str = "SegmentationClass",
        transform: Transform | None = None,
        on_damaged: str = "error",
    ) -> None:
        super().__init__(transform, on_damaged)
        check_choice("split", split, ("train", "test"))
        check_choice("segmentation", segmentation, SEGMENTATION_FOLDERS)
        base = Path(root)
        old, new = (self.source.find(base, f"VOC{year}", f"VOCdevkit/VOC{year}") for year in (2007, 2012))
        held_out = self._list(new, "Segmentation/val")
        if split == "train":
            self.source.find(new, segmentation)
            taken = set(held_out)
            renamed = {name.removeprefix("2007_") for name in held_out if name.startswith("2007_")}
            self._pictures = [
                *self._labelled(old, [n for n in self._list(old, "Main/trainval") if n not in renamed], segmentation),
                *self._labelled(new, [n for n in self._list(new, "Main/trainval") if n not in taken], segmentation),
            ]
        else:
            masks = self.source.find(new, "SegmentationClass")
            self._pictures = [
                *(_Picture(old, name, True, None) for name in self._list(old, "Main/test")),
                *(_Picture(new, name, False, masks / f"{name}.png") for name in held_out),
            ]
        self._finish(len(self._pictures))

    def _list(self, folder: Path, name: str) -> list[str]:
        path = self.source.find(folder, f"ImageSets/{name}.txt")
        return [line.split()[0] for line in read_lines(path) if line.strip()]

    def _labelled(self, folder: Path, names: list[str], segmentation: str) -> list[_Picture]:
        masks = folder / segmentation
        there = {entry.name for entry in os.scandir(masks)} if masks.is_dir() else set()
        return [
            _Picture(folder, name, True, masks / f"{name}.png" if f"{name}.png" in there else None) for name in names
        ]

    def _read(self, index: int) -> Sample:
        picture = self._pictures[index]
        image = read_image(picture.folder / "JPEGImages" / f"{picture.name}.jpg")
        size = (image.shape[1], image.shape[2])
        annotation = picture.folder / "Annotations" / f"{picture.name}.xml"
        return {
            "input": image,
            "detection": _read_objects(annotation, size) if picture.detection else None,
            "segmentation": (
                _unlabelled_classes(size) if picture.segmentation is None else _read_classes(picture.segmentation, size)
            ),
        }


class NYUDepthPairs(Reader):
    """Pictures with depth, 24,231 for training and 654 for testing.

    A sample has "input", uint8 `[3, 480, 640]` before the transform, and "depth", float32 `[1, H, W]` in metres, NaN
    where unknown.

    Args:
        root: the data folder.
        split: "train" or "test".
        transform: applied to every sample.
        on_damaged: "error" raises at the first damaged file; "skip" reads everything once, leaves out what is
            damaged and says how much that was.

    Raises:
        MissingDataError: a folder or list is not there.
        DamagedDataError: a line or a file is damaged, with on_damaged="error".

    Source: Lee et al., "From Big to Small: Multi-Scale Local Planar Guidance for Monocular Depth Estimation", 2019.
    """

    source = Source(
        name="NYU depth pairs",
        layout="""\
  nyudepthv2_train_files_with_gt.txt   a line: image, depth map, focal length
  nyudepthv2_test_files_with_gt.txt
  sync/<scene>/rgb_00045.jpg, sync/<scene>/sync_depth_00045.png
  official_splits/test/<scene>/rgb_00045.jpg, …/sync_depth_00045.png""",
        request="https://github.com/cleinc/bts, section on NYU Depth V2: sync.zip, test set and lists of files.",
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        transform: Transform | None = None,
        on_damaged: str = "error",
    ) -> None:
        super().__init__(transform, on_damaged)
        check_choice("split", split, ("train", "test"))
        base = Path(root)
        table = self.source.find(base, f"nyudepthv2_{split}_files_with_gt.txt")
        self._folder = self.source.find(base, "sync" if split == "train" else "official_splits/test")
        self._pairs: list[tuple[str, str]] = []
        for number, line in enumerate(read_lines(table), 1):
            words = [word.lstrip("/") for word in line.split()]
            if len(words) != 3 or any(".." in Path(word).parts for word in words):
                self._report(f"{table}, line {number}: expected an image, a depth map and a number, found {line!r}.")
            else:
                self._pairs.append((words[0], words[1]))
        self._finish(len(self._pairs))

    def _group(self, index: int) -> str:
        return room_of(Path(self._pairs[index][0]).parent.as_posix())

    def _read(self, index: int) -> Sample:
        picture, depth = (self._folder / name for name in self._pairs[index])
        image, millimetres = read_image(picture), read_map(depth)
        check_pixels(depth, millimetres, (image.shape[1], image.shape[2]))
        metres = torch.from_numpy(millimetres.astype(np.float32) / 1000)[None]
        return {"input": image, "depth": DepthMap(torch.where(metres > 0, metres, torch.nan))}


def voc_with_nyu_depth(
    voc: str | os.PathLike[str],
    nyu: str | os.PathLike[str],
    split: str,
    segmentation: str = "SegmentationClassAug",
    transform: Transform | None = None,
    on_damaged: str = "error",
) -> ConcatDataset[Sample]:
    """Returns `PascalVOC` and `NYUDepthPairs` as one data set: each sample is labelled for one or two of three tasks.

    The AMTL paper has 39,446 pictures for training, 15,215 with boxes, 10,477 with classes (some with both), 24,231
    with depth. Here there are fewer with boxes, as `PascalVOC` also leaves out 2007's own pictures of 2012's
    segmentation val set. Batches need `equipoise.bench.problems.data.collate`.

    Args:
        voc: as for `PascalVOC`.
        nyu: as for `NYUDepthPairs`.
        split: "train" or "test".
        segmentation: as for `PascalVOC`.
        transform: applied to every sample; has to bring the pictures to one size.
        on_damaged: as for both.

    Raises:
        MissingDataError: a folder or list is not there.
        DamagedDataError: a line or a file is damaged, with on_damaged="error".

    Source: Yun & Cho, "Achievement-based Training Progress Balancing for Multi-Task Learning", ICCV 2023.
    """
    steps = _WithAllTasks(transform)
    return ConcatDataset(
        [
            PascalVOC(voc, split, segmentation, transform=steps, on_damaged=on_damaged),
            NYUDepthPairs(nyu, split, transform=steps, on_damaged=on_damaged),
        ]
    )


class _WithAllTasks:
    """Marks what the sample's source does not label as missing, then applies the transform."""

    def __init__(self, transform: Transform | None) -> None:
        self.transform = transform

    def __call__(self, sample: Sample) -> Sample:
        size = sample["input"].shape[-2:]
        complete = {
            "input": sample["input"],
            "detection": sample.get("detection"),
            "segmentation": sample.get("segmentation", _unlabelled_classes(size)),
            "depth": sample.get("depth", DepthMap(torch.full((1, *size), torch.nan))),
        }
        return complete if self.transform is None else self.transform(complete)


def _unlabelled_classes(size: tuple[int, int]) -> SegmentationMap:
    return SegmentationMap(torch.full(size, -1))


def _read_classes(path: Path, size: tuple[int, int]) -> SegmentationMap:
    """Reads a label map.

    Raises:
        DamagedDataError: it is damaged, of another size than its picture, or has other classes.
    """
    labels = read_map(path)
    check_pixels(path, labels, size)
    values = labels.astype(np.int64)
    values[values == BORDER] = -1
    if values.max() > len(CLASSES):
        raise DamagedDataError(f"{path} must have classes 0 to {len(CLASSES)} or {BORDER}, found {values.max()}.")
    return SegmentationMap(values)


def _read_objects(path: Path, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Reads an annotation file.

    Raises:
        DamagedDataError: it is missing, no such file, or has a document type (and so could define entities).
    """
    with decoding(path, "XML annotation"):
        text = path.read_bytes().decode("utf-8")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise DamagedDataError(f"{path} has a document type, which VOC's annotations do not; it is not parsed.")
        objects = ElementTree.fromstring(text).findall("object")
        boxes = [_read_box(element, size) for element in objects]
        labels = [CLASSES.index((element.findtext("name") or "").strip()) for element in objects]
        difficult = [(element.findtext("difficult") or "0").strip() == "1" for element in objects]
    return {
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor(boxes).reshape(-1, 4), format="XYXY", canvas_size=size, dtype=torch.float32
        ),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "difficult": torch.tensor(difficult, dtype=torch.bool),
    }


def _read_box(element: ElementTree.Element, size: tuple[int, int]) -> list[float]:
    """Left, top, right, bottom, clipped to the picture. The file counts pixels from 1 and includes the last one.

    Raises:
        ValueError: an edge is missing or is no number, or nothing of the box lies in the picture.
    """
    left, top, right, bottom = (
        float(element.findtext(f"bndbox/{edge}") or math.nan) for edge in ("xmin", "ymin", "xmax", "ymax")
    )
    box = [max(left - 1, 0.0), max(top - 1, 0.0), min(right, size[1]), min(bottom, size[0])]
    if not (box[0] < box[2] and box[1] < box[3]):  # also if one is NaN
        raise ValueError(
            f"the box {left:g}, {top:g}, {right:g}, {bottom:g} does not lie in the picture of {size[1]}×{size[0]}"
        )
    return box
