"""Aff-Wild2: action units, expression, and valence and arousal of faces in videos."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from equipoise._checks import check_choice
from equipoise.bench.problems.data._files import Reader, Sample, Source, Transform, read_image, read_lines

ACTION_UNITS = ("AU1", "AU2", "AU4", "AU6", "AU7", "AU10", "AU12", "AU15", "AU23", "AU24", "AU25", "AU26")
EXPRESSIONS = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise", "other")
SPLITS = {"train": ("Train_Set", "Training_Set"), "validation": ("Validation_Set",)}


@dataclass(frozen=True)
class _Set:
    """One of the three sets of annotations: a text file a video, a header and then a line a frame."""

    task: str
    folders: tuple[str, ...]
    values: int
    parse: Callable[[str], float]  # raises ValueError for what the set does not allow; NaN is missing


def _one_of(allowed: range) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = int(text)
        if value != -1 and value not in allowed:
            raise ValueError
        return math.nan if value == -1 else value

    return parse


def _affect(text: str) -> float:
    value = float(text)
    if value == -5:
        return math.nan
    if not -1 <= value <= 1:
        raise ValueError
    return value


SETS = (
    _Set("action_units", ("AU_Detection_Challenge", "AU_Set"), len(ACTION_UNITS), _one_of(range(2))),
    _Set(
        "expression",
        ("EXPR_Classification_Challenge", "EXPR_Recognition_Challenge", "EXPR_Set"),
        1,
        _one_of(range(len(EXPRESSIONS))),
    ),
    _Set("valence_arousal", ("VA_Estimation_Challenge", "VA_Set"), 2, _affect),
)
WIDTH = sum(part.values for part in SETS)


class AffWild2(Reader):
    """Frames of the cropped, aligned faces with what the three sets of annotations say about them.

    A sample has "input", uint8 `[3, H, W]` before the transform; "action_units", int64 `[12]`, each 1, 0 or −1 for
    missing; "expression", an int64 scalar, −1 for missing; "valence_arousal", float32 `[2]` in [−1, 1], NaN for
    missing. Line i of a file, the header not counted, is frame i. Values the sets mark as invalid (−1; −5 for
    valence and arousal) are missing for their task alone. Frames without any label are left out, and so are
    those without a picture: no face was found there.

    The three sets split the videos each in their own way. A video that any of them has for validation (or the
    other person in it, `_left` and `_right`) is not taken for training, whatever the others say.

    Args:
        root: the data folder.
        split: "train" or "validation"; the test set's annotations are not handed out.
        transform: applied to every sample.
        on_damaged: "error" raises at the first damaged line or image; "skip" reads everything once, leaves out
            what is damaged and says how much that was.

    Attributes:
        without_face: annotated frames that have no picture.
        held_out: videos not taken for training because another set validates on them.

    Raises:
        MissingDataError: a folder is not there.
        DamagedDataError: an annotation cannot be read, or an annotated video has no pictures at all, with
            on_damaged="error".

    Source: Kollias, "ABAW: Valence-Arousal Estimation, Expression Recognition, Action Unit Detection & Multi-Task
        Learning Challenges", CVPR workshops 2022.
    """

    source = Source(
        name="Aff-Wild2",
        layout="""\
  Annotations/                       (or “ABAW Annotations/”, or nothing in between)
    AU_Detection_Challenge/          (or AU_Set/)
      Train_Set/<video>.txt          (or Training_Set/)
      Validation_Set/<video>.txt
    EXPR_Classification_Challenge/   (or EXPR_Recognition_Challenge/, EXPR_Set/)
    VA_Estimation_Challenge/         (or VA_Set/)
  cropped_aligned/<video>/00001.jpg""",
        request="https://ibug.doc.ic.ac.uk/resources/aff-wild2/, a request by an academic with the signed agreement.",
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        transform: Transform | None = None,
        on_damaged: str = "error",
    ) -> None:
        super().__init__(transform, on_damaged)
        check_choice("split", split, list(SPLITS))
        base = Path(root)
        self._pictures = self.source.find(base, "cropped_aligned")
        files = {name: list(self._annotations(base, name)) for name in SPLITS}
        if split == "train":
            kept_back = {_source_video(path.stem) for _, path in files["validation"]}
            self.held_out = tuple(
                sorted({path.stem for _, path in files["train"] if _source_video(path.stem) in kept_back})
            )
        else:
            self.held_out = ()
        labels: dict[str, NDArray[np.float32]] = {}
        for part, path in files[split]:
            if path.stem not in self.held_out:
                self._add(labels, part, path)
        self.without_face = 0
        self._videos = sorted(labels)
        self._video, self._frame, self._labels = self._match(labels)
        self._finish(len(self._frame))

    def _annotations(self, base: Path, split: str) -> Iterator[tuple[_Set, Path]]:
        """The files of a split, one a set and video."""
        for part in SETS:
            places = [
                f"{above}{folder}/{name}"
                for above in ("Annotations/", "ABAW Annotations/", "")
                for folder in part.folders
                for name in SPLITS[split]
            ]
            for path in sorted(self.source.find(base, *places).glob("[!.]*.txt")):
                yield part, path

    def _add(self, labels: dict[str, NDArray[np.float32]], part: _Set, path: Path) -> None:
        """Reads a file into the columns of its set; a row a frame."""
        lines = read_lines(path)[1:]
        columns = sum(other.values for other in SETS[: SETS.index(part)])
        rows = labels.get(path.stem, np.empty((0, WIDTH), np.float32))
        if len(rows) < len(lines):
            extra = np.full((len(lines) - len(rows), WIDTH), np.nan, np.float32)
            rows = labels[path.stem] = np.concatenate([rows, extra])
        for frame, line in enumerate(lines):
            try:
                values = [part.parse(word) for word in line.split(",")]
                if len(values) != part.values:
                    raise ValueError
            except ValueError:
                self._report(
                    f"{path}, line {frame + 2}: expected {part.values} values of the set “{part.task}”, found {line!r}."
                )
                continue
            rows[frame, columns : columns + part.values] = values

    def _match(
        self, labels: dict[str, NDArray[np.float32]]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
        """Keeps the frames that have a label and a picture: video, frame from 1, and labels."""
        videos, frames, kept = [], [], []
        for number, video in enumerate(self._videos):
            rows = labels.pop(video)
            numbers = np.flatnonzero(~np.isnan(rows).all(1))
            try:
                pictures = {entry.name for entry in os.scandir(self._pictures / video)}
            except FileNotFoundError:
                self._report(f"{self._pictures / video} is missing, the pictures of an annotated video.")
                continue
            seen = np.array([f"{frame + 1:05d}.jpg" in pictures for frame in numbers], dtype=bool)
            self.without_face += int((~seen).sum())
            videos.append(np.full(seen.sum(), number, np.int32))
            frames.append((numbers[seen] + 1).astype(np.int32))
            kept.append(rows[numbers[seen]])
        if not kept:
            return np.empty(0, np.int32), np.empty(0, np.int32), np.empty((0, WIDTH), np.float32)
        return np.concatenate(videos), np.concatenate(frames), np.concatenate(kept)

    def _group(self, index: int) -> str:
        return _source_video(self._videos[self._video[index]])

    def _read(self, index: int) -> Sample:
        row = torch.from_numpy(self._labels[index])
        units, expression, affect = row[: len(ACTION_UNITS)], row[len(ACTION_UNITS)], row[-2:]
        path = self._pictures / self._videos[self._video[index]] / f"{self._frame[index]:05d}.jpg"
        return {
            "input": read_image(path),
            "action_units": units.nan_to_num(-1).long(),
            "expression": expression.nan_to_num(-1).long(),
            "valence_arousal": torch.where(affect.isnan().any(), torch.nan, affect),
        }


def _source_video(name: str) -> str:
    """The video that a face was cut from: two people in it have files of their own."""
    return name.removesuffix("_left").removesuffix("_right")
