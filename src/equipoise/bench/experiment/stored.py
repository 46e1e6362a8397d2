"""What a run folder holds of a comparison, before anything is done with it."""

from __future__ import annotations

from pathlib import Path

from equipoise.bench.experiment.folder import FolderError, RunFolder
from equipoise.bench.experiment.settings import Settings
from equipoise.bench.experiment.store import read_records

DATABASE = "study.db"
"""The study's file in the run folder, unless it is elsewhere."""


def stored_settings(folder: RunFolder) -> Settings | None:
    """Returns the settings of the comparison that a folder holds; None if there is none.

    Raises:
        FolderError: its `settings.json` is something else's.
        SettingsError: it is of another version of equipoise.
    """
    found = folder.read_json("settings.json")
    if found is None:
        return None
    try:
        settings = dict(found["settings"])
    except (TypeError, KeyError, ValueError) as error:
        raise FolderError(
            f"{folder.path / 'settings.json'} is not a comparison's: take another folder (--out), or remove this one."
        ) from error
    return Settings.from_json(settings)


def holds_other_results(path: Path, problem: str) -> bool:
    """Returns whether a folder has runs of another problem that have come to their end."""
    folder = RunFolder(path)
    settings = stored_settings(folder)
    if settings is None or settings.problem == problem:
        return False
    records = read_records(path / DATABASE)
    ended = folder.runs() if records is None else records.values()
    return any(record["status"] in ("finished", "diverged") for record in ended)
