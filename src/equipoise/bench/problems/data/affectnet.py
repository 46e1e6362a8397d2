"""AffectNet: expression, and valence and arousal of faces in photographs."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torchvision.transforms.v2 import functional

from equipoise._checks import check_choice
from equipoise.bench.problems.data._files import (
    DamagedDataError,
    Reader,
    Sample,
    Source,
    Transform,
    decoding,
    read_array,
    read_image,
)

EXPRESSIONS = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
UNUSED = ("8", "9", "10")  # none, uncertain, no face
COLUMNS = (
    "subDirectory_filePath",
    "face_x",
    "face_y",
    "face_width",
    "face_height",
    "facial_landmarks",
    "expression",
    "valence",
    "arousal",
)
ENDINGS = (".jpg", ".jpeg", ".png")
SPLITS = {"train": ("training.csv", "train_set"), "validation": ("validation.csv", "val_set")}


class _Face(NamedTuple):
    """A line of the CSV form."""

    image: str
    box: tuple[int, int, int, int]  # left, top, width, height
    expression: int
    valence: float
    arousal: float


class AffectNet(Reader):
    """The manually annotated images, in whichever of the two forms is in the folder.

    A sample has "input", uint8 `[3, H, W]` before the transform, in the CSV form cut to the annotated face;
    "expression", an int64 scalar, −1 for missing; "valence_arousal", float32 `[2]` in [−1, 1], NaN for missing.
    −2 for valence or arousal, and the expressions “none”, “uncertain” and “no face”, are missing. In the CSV
    form, images with no label at all are left out.

    Args:
        root: the data folder.
        split: "train" or "validation"; a test set was never handed out.
        transform: applied to every sample.
        on_damaged: "error" raises at the first damaged line or image; "skip" reads everything once, leaves out
            what is damaged and says how much that was.

    Attributes:
        unlabelled: lines of the CSV form that have no label.

    Raises:
        MissingDataError: a file is not there.
        DamagedDataError: an annotation cannot be read, with on_damaged="error".

    Source: Mollahosseini et al., "AffectNet: A Database for Facial Expression, Valence, and Arousal Computing in the
        Wild", IEEE Transactions on Affective Computing 2019.
    """

    source = Source(
        name="AffectNet",
        layout="""\
  either, as CSV:
    training.csv, validation.csv         (or in Manually_Annotated_file_lists/)
    Manually_Annotated_Images/<n>/<image>.jpg
                                         (or Manually_Annotated/…, or Manually_Annotated_compressed/…)
  or, a file an image:
    train_set/images/<n>.jpg,  train_set/annotations/<n>_exp.npy, <n>_val.npy, <n>_aro.npy
    val_set/images/<n>.jpg,    val_set/annotations/…""",
        request="http://mohammadmahoor.com/affectnet/, a request by a professor or head of a laboratory.",
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        transform: Transform | None = None,
        on_damaged: str = "error",
    ) -> None:
        super().__init__(transform, on_damaged)
        table, folder = SPLITS[check_choice("split", split, list(SPLITS))]
        base = Path(root)
        place = self.source.find(base, table, f"Manually_Annotated_file_lists/{table}", folder)
        self.unlabelled = 0
        self._faces: list[_Face] | None = None
        if place.is_dir():
            self._images = self.source.find(base, f"{folder}/images")
            self._annotations = self.source.find(base, f"{folder}/annotations")
            self._names = sorted(
                entry.name for entry in os.scandir(self._images) if Path(entry.name).suffix.lower() in ENDINGS
            )
            self._finish(len(self._names))
        else:
            self._images = self.source.find(
                base,
                "Manually_Annotated_Images",
                "Manually_Annotated/Manually_Annotated_Images",
                "Manually_Annotated_compressed/Manually_Annotated_Images",
                "Manually_Annotated_compressed",
                "Manually_Annotated",
            )
            self._faces = self._read_table(place)
            self._finish(len(self._faces))

    def _read_table(self, path: Path) -> list[_Face]:
        faces = []
        with decoding(path, "CSV file"), path.open(newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if number == 1 and row[:1] == [COLUMNS[0]]:  # the official training.csv has a header
                    continue
                try:
                    face = _parse(row)
                except ValueError as error:
                    self._report(f"{path}, line {number}: {error}.")
                    continue
                if face is None:
                    self.unlabelled += 1
                else:
                    faces.append(face)
        return faces

    def _read(self, index: int) -> Sample:
        if self._faces is None:
            return self._read_files(self._names[index])
        face = self._faces[index]
        left, top, width, height = face.box
        path = self._images / face.image
        image = read_image(path)
        right, bottom = min(left + width, image.shape[2]), min(top + height, image.shape[1])
        left, top = max(left, 0), max(top, 0)
        if left >= right or top >= bottom:
            raise DamagedDataError(
                f"{path} has its face at left, top, width, height = {face.box}, outside the picture of "
                f"{image.shape[2]}×{image.shape[1]}."
            )
        return {
            "input": functional.crop(image, top, left, bottom - top, right - left),
            "expression": torch.tensor(face.expression),
            "valence_arousal": torch.tensor([face.valence, face.arousal]),
        }

    def _read_files(self, name: str) -> Sample:
        texts = []
        for ending in ("exp", "val", "aro"):
            path = self._annotations / f"{Path(name).stem}_{ending}.npy"
            array = read_array(path, kinds="iufU")  # a single number, stored as text
            if array.size != 1:
                raise DamagedDataError(f"{path} has {array.size} values, expected one.")
            texts.append(str(array.reshape(())[()]))
        with decoding(self._annotations / f"{Path(name).stem}_*.npy", "annotation"):
            expression, valence, arousal = _parse_labels(*texts)
        return {
            "input": read_image(self._images / name),
            "expression": torch.tensor(expression),
            "valence_arousal": torch.tensor([valence, arousal]),
        }


def _parse(row: list[str]) -> _Face | None:
    """Reads a line; None if it has no label, whatever else it says.

    Raises:
        ValueError: it is not as it should be; the message says how.
    """
    if len(row) != len(COLUMNS):
        raise ValueError(f"expected {len(COLUMNS)} values ({', '.join(COLUMNS)}), found {len(row)}")
    values = dict(zip(COLUMNS, row, strict=True))
    expression, valence, arousal = _parse_labels(values["expression"], values["valence"], values["arousal"])
    if expression == -1 and math.isnan(valence):
        return None
    image = values[COLUMNS[0]]
    if not image or Path(image).is_absolute() or ".." in Path(image).parts:
        raise ValueError(f"expected an image's name below the image folder, found {image!r}")
    left, top, width, height = (int(float(values[name])) for name in COLUMNS[1:5])
    return _Face(image, (left, top, width, height), expression, valence, arousal)


def _parse_labels(expression: str, valence: str, arousal: str) -> tuple[int, float, float]:
    """Reads labels that are stored as text.

    Raises:
        ValueError: one is no number or out of range.
    """
    allowed = [str(index) for index in range(len(EXPRESSIONS))]
    if expression not in allowed and expression not in UNUSED:
        raise ValueError(f"expected an expression from 0 to 10, found {expression!r}")
    numbers = []
    for name, text in (("valence", valence), ("arousal", arousal)):
        number = float(text)
        if number != -2 and not -1 <= number <= 1:
            raise ValueError(f"expected {name} in [-1, 1] or -2, found {text!r}")
        numbers.append(number)
    missing = -2 in numbers
    affect = [math.nan if missing else number for number in numbers]
    return allowed.index(expression) if expression in allowed else -1, affect[0], affect[1]
