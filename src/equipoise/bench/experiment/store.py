"""The study that holds a comparison's runs: a queue for workers, and the records of what they did."""

from __future__ import annotations

import base64
import functools
import os
import socket
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import InterfaceError, OperationalError

from equipoise.bench.experiment.database import (
    SQLITE_PATIENCE,
    StorageError,
    clear_errors,
    hide_password,
    lock_from_the_start,
    sqlite_path,
    sqlite_url,
    study_names,
)
from equipoise.bench.experiment.definition import Definition
from equipoise.bench.experiment.folder import storable
from equipoise.bench.experiment.trial import Record, value_of
from equipoise.bench.experiment.view import View

Given = ParamSpec("Given")
Found = TypeVar("Found")

HEARTBEAT_SECONDS = 2
GRACE_SECONDS = 60
"""A worker tells every so often that it is alive; one that has not for longer than this has lost its run."""

COORDINATOR = "coordinator:"
"""The study's attributes with this before a process's name say when that comparison was last there."""


@dataclass(frozen=True)
class Claim:
    """A run that a worker has taken from the queue."""

    trial_id: int
    definition: Definition


def _patiently(method: Callable[Given, Found]) -> Callable[Given, Found]:
    """Has a method of a store try again while its server is away, for as long as a worker may be away.

    What is done twice, because the answer was lost, counts once.
    """

    @functools.wraps(method)
    def insistent(*arguments: Given.args, **options: Given.kwargs) -> Found:
        deadline, pause = time.monotonic() + GRACE_SECONDS, 0.1
        while True:
            try:
                return method(*arguments, **options)
            except StorageError as error:
                cause = error.__cause__
                away = isinstance(getattr(cause, "__cause__", None) or cause, (OperationalError, InterfaceError))
                store = arguments[0]
                assert isinstance(store, Store)
                if not away or sqlite_path(store.url) is not None or time.monotonic() > deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    return insistent


class Store:
    """A study in a database.

    Every method but `epoch` raises `StorageError` if that cannot be reached; on a server most try again for
    `GRACE_SECONDS` first.

    Every run is an Optuna trial, enqueued with its definition as a user attribute. A worker takes it by setting it to
    RUNNING, which the database lets one of them do, tells that it is alive, and leaves the record as another user
    attribute before it sets the trial to COMPLETE. A trial that was given to somebody else meanwhile can no longer be
    completed, so nothing is counted twice; of several complete trials of one run the first counts.

    Args:
        url: the database, as SQLAlchemy writes it.
        name: the study's.
        create: make the study, if it is not there.

    Raises:
        StorageError: the database cannot be reached or used, or the study is not there.
    """

    def __init__(self, url: str, name: str, create: bool = False) -> None:
        self.url, self.name = url, name
        self._decoded: dict[int, Record] = {}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sqlite = sqlite_path(url)
        options = {"connect_args": {"timeout": SQLITE_PATIENCE}} if sqlite else {"pool_pre_ping": True}
        with clear_errors(url):
            if not create and name not in study_names(url):
                raise StorageError(f"There is no study {name!r} in {hide_password(url)}.")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                self._storage = RDBStorage(
                    url, options, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=GRACE_SECONDS
                )
            if sqlite is not None:
                lock_from_the_start(self._storage)
            self._make_study()

    def _make_study(self) -> None:
        self._study = optuna.create_study(
            storage=self._storage, study_name=self.name, direction="maximize", load_if_exists=True
        )
        self._id = self._storage.get_study_id_from_name(self.name)

    # What the comparison says about itself.

    @_patiently
    def get(self, name: str) -> Any:
        """Returns what was `set`, None if nothing was."""
        with clear_errors(self.url):
            return self._storage.get_study_user_attrs(self._id).get(name)

    @_patiently
    def set(self, name: str, value: Any) -> None:
        """Keeps a value that JSON can hold with the study."""
        self._put(name, value)

    def _put(self, name: str, value: Any) -> None:
        with clear_errors(self.url):
            self._study.set_user_attr(name, value)

    # The coordinator's part.

    @contextmanager
    def coordinate(self) -> Iterator[None]:
        """Holds the study for one comparison at a time.

        Raises:
            StorageError: another one works on it.
        """
        name, ended = worker_name(os.getpid()), threading.Event()
        self._put(COORDINATOR + name, time.time())  # first: of two that begin together none goes unseen
        with clear_errors(self.url):
            attributes = self._storage.get_study_user_attrs(self._id)
        for key, seen in attributes.items():
            other = key.removeprefix(COORDINATOR)
            if key == other or other == name or seen is None:
                continue
            if time.time() - seen < GRACE_SECONDS and _lives(other):
                self._put(COORDINATOR + name, None)
                raise StorageError(
                    f"Another `equipoise compare` ({other}) works on study {self.name!r} in {hide_password(self.url)}: "
                    "wait for its end, or take another folder with --out."
                )

        def beat() -> None:
            while not ended.wait(HEARTBEAT_SECONDS):
                with suppress(StorageError):
                    self._put(COORDINATOR + name, time.time())

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with suppress(StorageError):  # it counts as gone soon
                self._put(COORDINATOR + name, None)

    def begin_anew(self) -> None:
        """Puts a new study in the place of this one; workers that wait for runs go on with it."""
        with clear_errors(self.url):
            optuna.delete_study(study_name=self.name, storage=self._storage)
            self._make_study()
        self._decoded.clear()

    @_patiently
    def enqueue(self, definitions: Sequence[Definition]) -> None:
        """Puts runs into the queue."""
        with clear_errors(self.url):
            for definition in definitions:
                trial = definition.trial
                shown = {"method": trial.method, "seed": trial.seed, "lr": trial.lr}
                self._study.enqueue_trial(shown, {"run": definition.to_json()})

    @_patiently
    def view(self) -> View:
        """Returns what the study holds now."""
        with clear_errors(self.url):
            return View(self._study.get_trials(deepcopy=False), self._decoded)

    @_patiently
    def tidy(self) -> None:
        """Takes runs from workers that no longer answer, and trials that are there twice out of the queue.

        A study in an SQLite file is this machine's: there, processes that are gone are known at once.
        """
        if sqlite_path(self.url) is not None:
            for worker in {trial.user_attrs.get("worker") for trial in self._running()}:
                if worker is not None and not _lives(worker):
                    self.abandon(worker)
        with clear_errors(self.url), warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(self._study)
        view = self.view()
        for trial in view.surplus:
            self._settle(self._id_of(trial), TrialState.PRUNED)

    def abandon(self, worker: str) -> None:
        """Takes its run from a worker that is known to have died."""
        for trial in self._running():
            if trial.user_attrs.get("worker") == worker:
                self._settle(self._id_of(trial), TrialState.FAIL)

    def _running(self) -> list[FrozenTrial]:
        with clear_errors(self.url):
            return self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    # The workers' part.

    @_patiently
    def claim(self, worker: str) -> Claim | None:
        """Takes the first run of the queue, for nobody else to take; None if the queue is empty.

        Raises:
            StorageError: the run was written by another version.
        """
        with clear_errors(self.url):
            self._id = self._storage.get_study_id_from_name(self.name)  # it may have been begun anew
            for trial in self._storage.get_all_trials(self._id, deepcopy=False, states=(TrialState.WAITING,)):
                definition = Definition.from_json(trial.user_attrs["run"])
                trial_id = self._id_of(trial)
                self._storage.record_heartbeat(trial_id)  # first: one that has none, or an old one, would be taken away
                try:
                    if self._storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                        self._storage.set_trial_user_attr(trial_id, "worker", worker)
                        return Claim(trial_id, definition)
                except UpdateFinishedTrialError:
                    continue
            return None

    def alive(self, claim: Claim) -> bool:
        """Tells that a run is being worked on; returns whether it still is this worker's."""
        with clear_errors(self.url):
            self._storage.record_heartbeat(claim.trial_id)
            return self._storage.get_trial(claim.trial_id).state is TrialState.RUNNING

    def epoch(self, claim: Claim, epoch: int, score: float) -> None:
        """Tells the score of a run's finished epoch; that it was told is not needed for anything."""
        with suppress(UpdateFinishedTrialError, StorageInternalError):
            self._storage.set_trial_intermediate_value(claim.trial_id, epoch, score)

    @_patiently
    def finish(self, claim: Claim, record: Mapping[str, Any], files: Mapping[str, bytes]) -> bool:
        """Leaves a run's record and files; returns whether they count, which they do not if it was given away."""
        try:
            with clear_errors(self.url):
                for name, content in files.items():
                    packed = base64.b64encode(zlib.compress(content)).decode()
                    self._storage.set_trial_user_attr(claim.trial_id, f"file:{name}", packed)
                self._storage.set_trial_user_attr(claim.trial_id, "record", storable(record))
        except UpdateFinishedTrialError:
            return False
        if record["status"] == "failed":
            return self._settle(claim.trial_id, TrialState.FAIL)
        return self._settle(claim.trial_id, TrialState.COMPLETE, [value_of(record)])

    def give_back(self, claim: Claim) -> None:
        """Puts a run that is not finished back into the queue."""
        with suppress(UpdateFinishedTrialError):
            with clear_errors(self.url):  # first: whoever takes it is not this worker, even before it says so
                self._storage.set_trial_user_attr(claim.trial_id, "worker", None)
            self._settle(claim.trial_id, TrialState.WAITING)

    def _settle(self, trial_id: int, state: TrialState, values: list[float] | None = None) -> bool:
        try:
            with clear_errors(self.url):
                return self._storage.set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            return False

    def _id_of(self, trial: FrozenTrial) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)


def read_records(file: Path) -> dict[str, Record] | None:
    """Returns the records, by their runs' keys, of the one study in an SQLite file; None if there is none.

    Nothing is written there.

    Raises:
        StorageError: it cannot be read.
    """
    names = study_names(sqlite_url(file))
    if len(names) != 1:
        return None
    with clear_errors(sqlite_url(file)):
        storage = RDBStorage(
            f"sqlite:///file:{quote(str(file.absolute()))}?mode=ro&uri=true",
            {"connect_args": {"timeout": SQLITE_PATIENCE}},
            skip_compatibility_check=True,
            skip_table_creation=True,
        )
        trials = storage.get_all_trials(storage.get_study_id_from_name(names[0]))
        storage.engine.dispose()
    return View(trials, {}).records()


def worker_name(process: int) -> str:
    """Returns what a worker process of this machine calls itself."""
    return f"{socket.gethostname()}:{process}"


def _lives(worker: str) -> bool:
    """Whether a worker may be there still: if it is of this machine, whether there is such a process."""
    host, _, process = worker.rpartition(":")
    if host != socket.gethostname():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
