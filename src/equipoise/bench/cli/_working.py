"""What `worker` does: wait for a study, and train its runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import typer

from equipoise.bench.cli._console import console
from equipoise.bench.experiment.database import StorageError, hide_password, study_names
from equipoise.bench.experiment.execution import IDLE_SECONDS, StoppedError, serve
from equipoise.bench.experiment.progress import describe
from equipoise.bench.experiment.store import Store


def work(storage: str, study: str | None, checkpoints: Path | None, wait: bool, stopped: Callable[[], bool]) -> None:
    """Takes runs from a comparison's database until it is done.

    Args:
        storage: the database's URL.
        study: the study's name; None for the only one.
        checkpoints: where runs keep what they have; None for a folder named after the study.
        wait: go on until the comparison is done, not only until nothing waits.
        stopped: whether to stop.

    Raises:
        StorageError: the database or the study cannot be used.
    """
    try:
        store = _wait_for_study(storage, study, wait)
        console.print(
            f"Working on {store.name}. Ctrl-C gives the run that is under way back.", markup=False, highlight=False
        )
        folder = checkpoints or Path("checkpoints") / store.name
        tell = partial(console.print, markup=False, highlight=False)
        serve(store, folder, wait, lambda record: tell(describe(record)), stopped)
    except (KeyboardInterrupt, StoppedError):
        console.print("Interrupted. The run that was under way is in the queue again.")
        raise typer.Exit(130) from None


def _wait_for_study(storage: str, study: str | None, wait: bool) -> Store:
    """The study, as soon as it is there."""
    told = False
    while True:
        names = study_names(storage)
        name = names[0] if study is None and len(names) == 1 else study
        if study is None and len(names) > 1:
            raise StorageError(f"There are several studies, say which one with --study: {', '.join(names)}.")
        if name is not None and (name in names or not wait):
            return Store(storage, name)
        if not wait:
            raise StorageError(f"There is no study in {hide_password(storage)}.")
        if not told:
            console.print("Waiting for `equipoise compare` to begin.", markup=False)
            told = True
        time.sleep(IDLE_SECONDS)
