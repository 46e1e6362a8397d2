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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, event, inspect, text
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError, SQLAlchemyError

from equipoise.bench.experiment.folder import readable, storable
from equipoise.bench.experiment.training import Record, Trial
from equipoise.bench.experiment.tuning import Run, value_of

Given = ParamSpec("Given")
Found = TypeVar("Found")

FORMAT = 1
"""Version of what a run's definition and record look like in the study."""

HEARTBEAT_SECONDS = 2
GRACE_SECONDS = 60
"""A worker tells every so often that it is alive; one that has not for longer than this has lost its run."""

MAX_DEATHS = 3
"""A run that so many workers died of is not tried again."""

COORDINATOR = "coordinator:"
"""The study's attributes with this before a process's name say when that comparison was last there."""

SQLITE_PATIENCE = 120
"""Seconds for which a process waits for others to let go of the SQLite file."""


class StorageError(Exception):
    """The study cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Definition:
    """All that a worker has to know of a run.

    Attributes:
        problem: as `load_problem` takes it.
        quick: less data.
        trial: how it is trained.
        picture: whether a picture of predictions is wanted.
        monitor_every: steps between samples of the balance monitor; 0 for none.
        source: what `source_of` says about the problem.
    """

    problem: str
    quick: bool
    trial: Trial
    picture: bool = False
    monitor_every: int = 0
    source: str = ""

    @property
    def run(self) -> Run:
        """Which run it is."""
        return Run(self.trial.method, self.trial.seed, self.trial.lr)

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON holds it."""
        trial = {name: value for name, value in asdict(self.trial).items() if value is not None}
        return {"format": FORMAT, **asdict(self), "trial": storable(trial)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Definition:
        """Returns what `to_json` gave as a definition again.

        Raises:
            StorageError: it is of another version.
        """
        fields = dict(value)
        if fields.pop("format", None) != FORMAT:
            raise StorageError(
                "The study was made by another version of equipoise: install the same one everywhere, "
                "or begin another study."
            )
        return cls(**{**fields, "trial": Trial(**readable(fields["trial"]))})


@dataclass(frozen=True)
class Claim:
    """A run that a worker has taken from the queue."""

    trial_id: int
    definition: Definition


def sqlite_url(path: Path) -> str:
    """Returns the URL of an SQLite file."""
    return URL.create("sqlite", database=str(path.absolute())).render_as_string(hide_password=False)


def sqlite_path(url: str) -> Path | None:
    """Returns the SQLite file that a URL names; None if it names something else."""
    parsed = _parse(url)
    return Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database else None


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
        with _clear_errors(url):
            if not create and name not in study_names(url):
                raise StorageError(f"There is no study {name!r} in {hide_password(url)}.")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                self._storage = RDBStorage(
                    url, options, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=GRACE_SECONDS
                )
            if sqlite is not None:
                _lock_from_the_start(self._storage)
            self._study = optuna.create_study(
                storage=self._storage, study_name=name, direction="maximize", load_if_exists=True
            )
            self._id = self._storage.get_study_id_from_name(name)

    # What the comparison says about itself.

    @_patiently
    def get(self, name: str) -> Any:
        """Returns what was `set`, None if nothing was."""
        with _clear_errors(self.url):
            return self._storage.get_study_user_attrs(self._id).get(name)

    @_patiently
    def set(self, name: str, value: Any) -> None:
        """Keeps a value that JSON can hold with the study."""
        self._put(name, value)

    def _put(self, name: str, value: Any) -> None:
        with _clear_errors(self.url):
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
        with _clear_errors(self.url):
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

    @_patiently
    def enqueue(self, definitions: Sequence[Definition]) -> None:
        """Puts runs into the queue."""
        with _clear_errors(self.url):
            for definition in definitions:
                self._study.enqueue_trial(asdict(definition.run), {"run": definition.to_json()})

    @_patiently
    def view(self) -> View:
        """Returns what the study holds now."""
        with _clear_errors(self.url):
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
        with _clear_errors(self.url), warnings.catch_warnings():
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
        with _clear_errors(self.url):
            return self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    # The workers' part.

    @_patiently
    def claim(self, worker: str) -> Claim | None:
        """Takes the first run of the queue, for nobody else to take; None if the queue is empty.

        Raises:
            StorageError: the run was written by another version.
        """
        with _clear_errors(self.url):
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
        with _clear_errors(self.url):
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
            with _clear_errors(self.url):
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
            with _clear_errors(self.url):  # first: whoever takes it is not this worker, even before it says so
                self._storage.set_trial_user_attr(claim.trial_id, "worker", None)
            self._settle(claim.trial_id, TrialState.WAITING)

    def _settle(self, trial_id: int, state: TrialState, values: list[float] | None = None) -> bool:
        try:
            with _clear_errors(self.url):
                return self._storage.set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            return False

    def _id_of(self, trial: FrozenTrial) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)


class View:
    """What a study held at a moment.

    Args:
        trials: all of them.
        decoded: records that were read before, by the trial's number.

    Attributes:
        trials: all of them, by number.
        surplus: those in the queue whose run is done or stands before them.
        epochs: epochs that runs which are not finished have behind them.
        queued: runs that wait or are worked on.
    """

    def __init__(self, trials: Iterable[FrozenTrial], decoded: dict[int, Record]) -> None:
        self._decoded = decoded
        self.trials = sorted(trials, key=lambda trial: trial.number)
        self.surplus: list[FrozenTrial] = []
        self.queued: set[Run] = set()
        self.epochs = 0
        done = {run_of(trial) for trial in self.trials if trial.state is TrialState.COMPLETE}
        for trial in self.trials:
            run = run_of(trial)
            if trial.state is TrialState.WAITING and run in done | self.queued:
                self.surplus.append(trial)
            elif trial.state in (TrialState.WAITING, TrialState.RUNNING):
                self.queued.add(run)
                self.epochs += len(trial.intermediate_values)

    @property
    def failures(self) -> frozenset[int]:
        """The numbers of the trials that failed."""
        return frozenset(trial.number for trial in self.trials if trial.state is TrialState.FAIL)

    def records(self, forgiven: Collection[int] = ()) -> dict[Run, Record]:
        """Returns every run's record.

        Args:
            forgiven: numbers of trials whose failure does not count: their runs are to be tried again.
        """
        found: dict[Run, Record] = {}
        deaths: dict[Run, int] = {}
        for trial in self.trials:
            run = run_of(trial)
            if trial.state is TrialState.COMPLETE:
                if run not in found or found[run]["status"] == "failed":
                    found[run] = self._record(trial)
            elif trial.state is TrialState.FAIL and trial.number not in forgiven:
                if "record" in trial.user_attrs and self._record(trial)["status"] == "failed":
                    found.setdefault(run, self._record(trial))
                else:  # with another record it died before that counted
                    deaths[run] = deaths.get(run, 0) + 1
        for run, count in deaths.items():
            if count >= MAX_DEATHS:
                message = f"{count} workers died while they trained it"
                found.setdefault(run, asdict(run) | {"status": "failed", "message": message})
        return found

    def _record(self, trial: FrozenTrial) -> Record:
        if trial.number not in self._decoded:
            self._decoded[trial.number] = readable(trial.user_attrs["record"])
        return self._decoded[trial.number]

    def files(self, run: Run) -> dict[str, bytes]:
        """Returns the files that a run left, by name."""
        for trial in self.trials:
            if trial.state is TrialState.COMPLETE and run_of(trial) == run:
                return {
                    name.removeprefix("file:"): zlib.decompress(base64.b64decode(packed))
                    for name, packed in trial.user_attrs.items()
                    if name.startswith("file:")
                }
        return {}


def run_of(trial: FrozenTrial) -> Run:
    """Returns the run that a trial is of."""
    definition = trial.user_attrs["run"]["trial"]
    return Run(definition["method"], definition["seed"], definition["lr"])


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


def hide_password(url: str) -> str:
    """Returns a database's URL as it may be shown."""
    return _parse(url).render_as_string(hide_password=True)


def _parse(url: str) -> URL:
    cause: Exception | None = None
    try:
        parsed = make_url(url)
        on_disk = parsed.database not in (None, "", ":memory:")
        if {"sqlite": on_disk, "postgresql": True}.get(parsed.get_backend_name(), False):
            return parsed
    except (ArgumentError, ValueError) as error:  # a port that is no number
        cause = error
    raise StorageError(
        f"--storage {url!r} is no database that can be used: "
        "write sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE."
    ) from cause


def study_names(url: str) -> list[str]:
    """Returns the names of a database's studies.

    It is asked without Optuna, which would make its tables, perhaps while the coordinator makes them.

    Raises:
        StorageError: the database cannot be reached.
    """
    path = sqlite_path(url)
    if path is not None and not path.exists():
        return []
    with _clear_errors(url):
        engine = create_engine(url)
        try:
            with engine.connect() as connection:
                if not inspect(connection).has_table("studies"):
                    return []
                rows = connection.execute(text("SELECT study_name FROM studies ORDER BY study_id"))
                return [name for (name,) in rows]
        finally:
            engine.dispose()


@contextmanager
def _clear_errors(url: str) -> Iterator[None]:
    """Says in one line what a database has against being used."""
    try:
        yield
    except UpdateFinishedTrialError:  # says what has happened to a run, not to the database
        raise
    except ModuleNotFoundError as error:
        raise StorageError(
            f"{hide_password(url)} needs the package {error.name}: "
            'for PostgreSQL, pip install "equipoise[postgres]" and write postgresql+psycopg://…'
        ) from error
    except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", cause)).strip().splitlines()[0]
        raise StorageError(f"{hide_password(url)} cannot be used: {reason}") from error


def _lock_from_the_start(storage: RDBStorage) -> None:
    """Has every transaction on SQLite take the file's lock when it begins.

    SQLite has no SELECT … FOR UPDATE: two workers would otherwise both find a run waiting, and both take it.
    """

    @event.listens_for(storage.engine, "connect")
    def leave_transactions_to_us(connection: Any, _: object) -> None:
        connection.isolation_level = None

    @event.listens_for(storage.engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    storage.engine.dispose()  # connections made before
