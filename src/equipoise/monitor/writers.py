"""Where a monitor's samples go: a file, TensorBoard, a Lightning logger."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from equipoise.monitor.recording import Record, Recording, read_monitor


class Writer(Protocol):
    """Takes every sample as it is made."""

    def write(self, recording: Recording, record: Record) -> None:
        """Takes a sample of the recording, or metrics."""


def as_writers(given: Any, recording: Recording) -> list[Writer]:
    """Makes writers of what the person gives: one or several paths, SummaryWriters or Lightning loggers.

    Raises:
        TypeError: something is none of these.
        ValueError: a path is of a file that is another's.
    """
    several = isinstance(given, Iterable) and not isinstance(given, str | PathLike)
    return [_as_writer(target, recording) for target in (given if several else [given])]


def _as_writer(target: Any, recording: Recording) -> Writer:
    if isinstance(target, str | PathLike):
        return JsonLines(Path(target), recording)
    if hasattr(target, "log_metrics"):
        return LightningLogger(target)
    if hasattr(target, "add_scalar"):
        return TensorBoard(target)
    raise TypeError(
        f"writers takes paths, TensorBoard's SummaryWriters and Lightning's loggers, found {type(target).__name__}."
    )


class JsonLines:
    """A file: a line that says what was recorded, then one a sample, in JSON.

    It is opened for every sample, so that a run that is killed loses none but the one being written, and a run that is
    resumed appends to it.

    Raises:
        ValueError: there is a file already, of another recording.
    """

    def __init__(self, path: Path, recording: Recording) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        complete = content[: content.rfind(b"\n") + 1]
        if not complete:
            path.write_text(json.dumps(recording.header) + "\n")
            return
        if read_monitor(path).header != recording.header:
            raise ValueError(f"{path} is of another recording (other tasks, layers or every): give another path.")
        os.truncate(path, len(complete))

    def write(self, recording: Recording, record: Record) -> None:
        """Appends a line. What is not finite becomes null, which JSON has in place of NaN and infinity."""
        line = json.dumps(_finite(record), allow_nan=False) + "\n"
        with self.path.open("a") as file:
            file.write(line)


class TensorBoard:
    """A `torch.utils.tensorboard.SummaryWriter`."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def write(self, recording: Recording, record: Record) -> None:
        """Adds a scalar for every number."""
        for tag, value in scalars(recording, record).items():
            self.writer.add_scalar(tag, value, record["step"])


class LightningLogger:
    """Any `lightning.pytorch.loggers.Logger`, or one of Fabric's."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def write(self, recording: Recording, record: Record) -> None:
        """Logs all numbers together."""
        self.logger.log_metrics(scalars(recording, record), step=record["step"])


def scalars(recording: Recording, record: Record) -> dict[str, float]:
    """Returns tag → number.

    The tags are `weight/<task>`, `gradient/<task>/<layer>`, `contribution/…`, `cosine/<task>/<task>`, `metric/<task>`.
    """
    if "metrics" in record:
        return {f"metric/{task}": value for task, value in record["metrics"].items()}
    found = {f"weight/{task}": weight for task, weight in record["weights"].items()}
    for quantity in ("gradient", "contribution"):
        for task, numbers in record[quantity].items():
            found |= {
                f"{quantity}/{task}/{layer}": number for layer, number in zip(recording.layers, numbers, strict=True)
            }
    for index, task in enumerate(recording.tasks):
        for other, cosine in zip(recording.tasks[:index], record["cosines"][index], strict=False):
            found[f"cosine/{other}/{task}"] = cosine
    return {tag: number for tag, number in found.items() if number is not None}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
