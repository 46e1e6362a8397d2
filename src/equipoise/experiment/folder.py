"""The run folder: what a comparison writes, so that nothing finished is lost and what is there can be gone on with."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class FolderError(Exception):
    """The run folder cannot be used; the message says why and what to do."""


class RunFolder:
    """A folder with `settings.json`, `runs.jsonl` (a line per finished run), `costs.json`, tables and pictures.

    Whole files are written beside their place and moved there, lines are appended in one write and forced to the
    disk; a last line that was cut off by a crash is dropped when the folder is opened.

    Args:
        path: created if it is not there.

    Raises:
        FolderError: the path is not a folder, or cannot be made or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs_path = path / "runs.jsonl"
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._drop_cut_line()
        except OSError as error:
            raise FolderError(f"The folder {path} cannot be used: {error.strerror}.") from error

    def write(self, name: str, content: bytes) -> Path:
        """Writes a file of the folder whole or not at all; returns its path."""
        place = self.path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(place)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return place

    def write_json(self, name: str, value: Any) -> Path:
        """Writes a JSON file."""
        return self.write(name, (json.dumps(_storable(value), indent=2, ensure_ascii=False) + "\n").encode())

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

    def add_run(self, record: Mapping[str, Any]) -> None:
        """Appends a run's record."""
        line = json.dumps(_storable(record), ensure_ascii=False) + "\n"
        handle = os.open(self.runs_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())
            os.fsync(handle)
        finally:
            os.close(handle)

    def runs(self) -> list[dict[str, Any]]:
        """Returns the records; of several for the same method and seed, the last.

        Raises:
            FolderError: a line is not a record.
        """
        found: dict[tuple[str, int], dict[str, Any]] = {}
        if self.runs_path.exists():
            for number, line in enumerate(self.runs_path.read_text(encoding="utf-8").splitlines(), 1):
                try:
                    record = _readable(json.loads(line))
                    found[record["method"], record["seed"]] = record
                except (ValueError, KeyError, TypeError) as error:
                    raise FolderError(
                        f"{self.runs_path}, line {number} is damaged: remove it to train that run again."
                    ) from error
        return list(found.values())

    def _drop_cut_line(self) -> None:
        if self.runs_path.exists():
            content = self.runs_path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(self.runs_path, whole)


def _storable(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, Mapping):
        return {key: _storable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _readable(value: Any) -> Any:
    """And null becomes NaN."""
    if isinstance(value, dict):
        return {key: _readable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_readable(inner) for inner in value]
    return math.nan if value is None else value
