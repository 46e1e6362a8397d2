"""The run folder: what a comparison writes, so that nothing finished is lost and what is there can be gone on with."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from equipoise.bench.errors import BenchError

LONG = 80
"""Of a path, as part of a file's name, so many characters stay."""


OWN = (
    r"(settings|costs)\.json|runs\.jsonl|table\.(csv|md)|report\.html|paper\.md"
    r"|(results|tradeoff|front|training|tuning|weights)\.png"
    r"|(errors|checkpoints)/.+-\d+-[0-9a-f]{16}(\.txt)?"
)
"""What a comparison writes into its folder, but for the study and what is called by a row's name alone."""


class FolderError(BenchError):
    """The run folder cannot be used; the message says why and what to do."""


class RunFolder:
    """A folder with `study.db` (unless the study is elsewhere) and what comes of it.

    That is `settings.json`, `runs.jsonl` (a record a line), `costs.json`, tables and pictures.
    Files are written beside their place and moved there.

    Args:
        path: it need not be there yet: `create` makes it.

    Raises:
        FolderError: there is something else in its place.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise FolderError(f"{path} is a file, and a folder is needed there: take another one with --out.")

    def create(self) -> None:
        """Makes the folder, if it is not there.

        Raises:
            FolderError: it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FolderError(f"The folder {self.path} cannot be made: {error.strerror}.") from error

    def write(self, name: str, content: bytes) -> Path:
        """Writes a file of the folder whole or not at all; returns its path."""
        place = self.path / name
        write_whole(place, lambda file: file.write(content))
        return place

    def write_json(self, name: str, value: Any) -> Path:
        """Writes a JSON file."""
        return self.write(name, (json.dumps(storable(value), indent=2, ensure_ascii=False) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """Returns what a JSON file holds, None if it is not there.

        Raises:
            FolderError: it is not JSON.
        """
        place = self.path / name
        if not place.exists():
            return None
        try:
            return json.loads(place.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FolderError(
                f"{place} is damaged: {error}. Take another folder (--out), or remove this one."
            ) from error

    def clear(self, rows: Iterable[str]) -> None:
        """Removes what a comparison of these rows has written, the study aside, and nothing else."""
        names = "|".join(re.escape(file_name(row)) for row in rows)
        own = re.compile(rf"{OWN}|predictions/({names})\.png|monitor/({names})-\d+\.jsonl")
        for path in [*self.path.glob("*"), *self.path.glob("*/*")]:
            if own.fullmatch(path.relative_to(self.path).as_posix()):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        for part in ("predictions", "monitor", "errors", "checkpoints"):
            with suppress(OSError):  # it is not there, or there is something else in it
                (self.path / part).rmdir()

    def write_runs(self, records: Iterable[Mapping[str, Any]]) -> Path:
        """Writes `runs.jsonl`, a record a line."""
        lines = [json.dumps(storable(record), ensure_ascii=False) + "\n" for record in records]
        return self.write("runs.jsonl", "".join(lines).encode())

    def runs(self) -> list[dict[str, Any]]:
        """Returns the records in `runs.jsonl`.

        Raises:
            FolderError: a line is not a record.
        """
        place = self.path / "runs.jsonl"
        records = []
        lines = place.read_text(encoding="utf-8").splitlines() if place.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                records.append(readable(json.loads(line)))
            except ValueError as error:
                raise FolderError(f"{place}, line {number} is damaged: the same comparison writes it anew.") from error
        return records


def write_whole(place: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file beside its place and moves it there: it is whole or not there. Makes its folder."""
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(place)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def file_name(method: str) -> str:
    """Returns a method's name as it may stand in a file's; with a digest where it is a path, of which there are others.

    Example:
        >>> file_name("replay:ema@sgd"), file_name("my_method.py:Inverse"), file_name("../methods/my.py:Inverse")
        ('replay-ema@sgd', 'my_method.py-Inverse', 'methods-my.py-Inverse-5b011e10')
    """
    plain = re.sub(r"[^\w.@-]", "-", method)
    if not re.search(r"[/\\]", method):
        return plain
    return f"{plain[-LONG:].lstrip('.-')}-{hashlib.sha256(method.encode()).hexdigest()[:8]}"


def storable(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, Mapping):
        return {key: storable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [storable(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def readable(value: Any) -> Any:
    """And null becomes NaN."""
    if isinstance(value, dict):
        return {key: readable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [readable(inner) for inner in value]
    return math.nan if value is None else value
