"""EMOTIC: the apparent emotions of people in photographs of everyday scenes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from equipoise._checks import check_choice
from equipoise.bench.problems.data._files import (
    DamagedDataError,
    Reader,
    Sample,
    Source,
    Transform,
    read_image,
    read_mat,
)

CATEGORIES = (
    "Affection",
    "Anger",
    "Annoyance",
    "Anticipation",
    "Aversion",
    "Confidence",
    "Disapproval",
    "Disconnection",
    "Disquietment",
    "Doubt/Confusion",
    "Embarrassment",
    "Engagement",
    "Esteem",
    "Excitement",
    "Fatigue",
    "Fear",
    "Happiness",
    "Pain",
    "Peace",
    "Pleasure",
    "Sadness",
    "Sensitivity",
    "Suffering",
    "Surprise",
    "Sympathy",
    "Yearning",
)
DIMENSIONS = ("valence", "arousal", "dominance")
SPLITS = {"train": "train", "validation": "val", "test": "test"}


class _Person(NamedTuple):
    image: str
    box: tuple[float, float, float, float]
    categories: NDArray[np.int64]
    dimensions: NDArray[np.float32]


class Emotic(Reader):
    """One sample a person: the whole image and the person cut out of it.

    "input" is a mapping of "image" and "person", both uint8 `[3, H, W]` before the transform; "box" is the person's
    box `[1, 4]` (left, top, right, bottom) and moves with "image". Labels as two tasks: "categories", int64
    `[26]` of 0 and 1, all −1 where not annotated; "dimensions", float32 `[3]` (valence, arousal, dominance, from 1
    to 10), NaN where not annotated. As 26 tasks: an int64 scalar under each category's name. For validation and
    test, the labels are those combined over the annotators.

    Args:
        root: the data folder.
        split: "train", "validation" or "test".
        separate: 26 tasks, one a category, instead of two.
        transform: applied to every sample.
        on_damaged: "error" raises at the first damaged annotation or image; "skip" reads everything once, leaves
            out what is damaged and says how much that was.

    Raises:
        MissingDataError: a file is not there.
        DamagedDataError: an annotation cannot be read, with on_damaged="error".

    Source: Kosti et al., "Context Based Emotion Recognition using EMOTIC Dataset", TPAMI 2020.
    """

    source = Source(
        name="EMOTIC",
        layout="""\
  Annotations/Annotations.mat      (or Annotations.mat)
  emotic/<folder>/<image>.jpg      (or cvpr_emotic/…; folders mscoco/images, framesdb/images, emodb_small/images,
                                    ade20k/images)""",
        request="https://github.com/rkosti/emotic, the access request form (non-commercial research).",
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        separate: bool = False,
        transform: Transform | None = None,
        on_damaged: str = "error",
    ) -> None:
        super().__init__(transform, on_damaged)
        variable = SPLITS[check_choice("split", split, list(SPLITS))]
        base = Path(root)
        annotations = self.source.find(base, "Annotations/Annotations.mat", "Annotations.mat")
        self._images = self.source.find(base, "emotic", "cvpr_emotic")
        self.separate = separate
        self._people = self._read_people(annotations, variable)
        self._finish(len(self._people))

    def _read_people(self, path: Path, variable: str) -> list[_Person]:
        variables = read_mat(path)
        if variable not in variables:
            raise DamagedDataError(f"{self.source.name}: {path} has no variable {variable!r}.")
        people = []
        for number, entry in enumerate(variables[variable].flat, 1):
            try:
                image = f"{_text(entry['folder'])}/{_text(entry['filename'])}"
                if ".." in Path(image).parts or Path(image).is_absolute():
                    raise ValueError(f"the image {image!r} lies outside the image folder")
                people += [_person(image, person) for person in entry["person"].flat]
            except (ValueError, KeyError, IndexError, TypeError) as error:
                self._report(f"{path}, image {number} of {variable!r}: {error}.")
        return people

    def _read(self, index: int) -> Sample:
        person = self._people[index]
        path = self._images / person.image
        image = read_image(path)
        height, width = image.shape[1:]
        limits = np.array([width, height, width, height])
        left, top, right, bottom = (int(edge) for edge in np.clip(person.box, 0, limits))
        if left >= right or top >= bottom:
            raise DamagedDataError(
                f"{path} has a person at left, top, right, bottom = {person.box}, outside the picture of "
                f"{width}×{height}."
            )
        categories = torch.from_numpy(person.categories)
        labels: dict[str, Tensor] = (
            dict(zip(CATEGORIES, categories.unbind(), strict=True))
            if self.separate
            else {"categories": categories, "dimensions": torch.from_numpy(person.dimensions)}
        )
        box = tv_tensors.BoundingBoxes(
            [[left, top, right, bottom]], format="XYXY", canvas_size=(height, width), dtype=torch.float32
        )
        cut = functional.crop(image, top, left, bottom - top, right - left)
        return {"input": {"image": image, "person": cut}, "box": box, **labels}


def _person(image: str, person: Any) -> _Person:
    """Reads one person's struct: combined over annotators where it is, else the one annotator's.

    Raises:
        ValueError: a category is unknown or a value is not of the right shape.
    """
    fields = person.dtype.names or ()
    box = np.asarray(person["body_bbox"], dtype=float).ravel()
    if box.shape != (4,) or not np.isfinite(box).all():
        raise ValueError(f"expected a box of four numbers, found {box.tolist()}")
    if "combined_categories" in fields:
        names, affect = person["combined_categories"], person["combined_continuous"]
    else:
        names = person["annotations_categories"]["categories"].ravel()[0]
        affect = person["annotations_continuous"]
    cells = np.asarray(names).ravel()
    categories = np.full(len(CATEGORIES), 0 if cells.size else -1, np.int64)
    for name in map(_text, cells):
        if name not in CATEGORIES:
            raise ValueError(f"unknown category {name!r}")
        categories[CATEGORIES.index(name)] = 1
    dimensions = np.full(len(DIMENSIONS), np.nan, np.float32)
    if affect.size:
        for position, name in enumerate(DIMENSIONS):
            value = np.asarray(affect[name].ravel()[0], dtype=float).ravel()
            dimensions[position] = value[0] if value.size else np.nan
    return _Person(image, (box[0], box[1], box[2], box[3]), categories, dimensions)


def _text(cell: Any) -> str:
    """The string in a MATLAB char array or a cell with one."""
    while isinstance(cell, np.ndarray):
        cell = cell.ravel()[0]
    return str(cell)
