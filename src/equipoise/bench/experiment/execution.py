"""Workers: they take runs from a study and train them, in this process, in several, or on any machine."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import multiprocessing
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

from equipoise.bench.errors import BenchError
from equipoise.bench.experiment.database import StorageError
from equipoise.bench.experiment.folder import file_name
from equipoise.bench.experiment.processes import GUARD, UNGUARDED, GuardError, begin_process, start_process
from equipoise.bench.experiment.ranks import in_record, train_on_ranks
from equipoise.bench.experiment.rows import parts_of, source_of
from equipoise.bench.experiment.store import HEARTBEAT_SECONDS, Claim, Store, worker_name
from equipoise.bench.experiment.training import Outputs, train
from equipoise.bench.experiment.trial import Record, Run, Trial
from equipoise.bench.experiment.view import MAX_DEATHS
from equipoise.bench.problems import Problem, Splits, load_problem
from equipoise.bench.problems._errors import problem_code

PACKAGES = ("lightning", "numpy", "timm", "torchmetrics", "torchvision")
"""Whose versions numbers may depend on, besides PyTorch's."""

POLL_SECONDS = 0.2
"""How often a worker looks for a run, and the coordinator for what has changed."""

IDLE_SECONDS = 1.0
"""How often a worker of its own looks for a run."""

FILES = "files"
"""The part of a run's folder that goes into the study with its record."""

STATE = "state"
"""The study's attribute by which workers know whether more may come: `OPEN` or `DONE`."""

OPEN, DONE = "open", "done"


class WorkerError(BenchError):
    """A worker process cannot work."""


class StoppedError(Exception):
    """The run was asked to stop before it was finished."""


def open_problem(name: str, quick: bool) -> tuple[Problem, Splits]:
    """Returns a problem and its data; kept, since every trial of a process wants the same, until its file is edited."""
    return _open_problem(name, quick, source_of(name))


@functools.lru_cache(maxsize=1)
def _open_problem(name: str, quick: bool, source: str) -> tuple[Problem, Splits]:
    problem = load_problem(name)
    with problem_code("data"):
        return problem, problem.data(quick)


class Worker:
    """Takes runs from a study, one after the other.

    What a run writes while it goes on stands in a folder of its own, with a checkpoint of its last epoch, from which
    any worker with the same `folder` goes on. A run that raises leaves a record with `status` "failed" and a `message`;
    one that is interrupted goes back into the queue.

    Args:
        store: the study.
        folder: where runs that are under way keep what they write.
        stopped: asked before every step whether to stop; then the run goes back and `StoppedError` is raised.
        on_epoch: called with a run and how many epochs are behind it, when it begins and after every epoch.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        stopped: Callable[[], bool] = lambda: False,
        on_epoch: Callable[[Run, int], None] = lambda run, epochs: None,
    ) -> None:
        self._store, self._folder, self._stopped, self._on_epoch = store, folder, stopped, on_epoch
        self._name = worker_name(os.getpid())

    def work(self) -> Record | None:
        """Takes a run and trains it; returns its record, None if there was no run to take.

        Raises:
            StoppedError: `stopped` said so.
            KeyboardInterrupt: Ctrl-C.
            ProblemError: the problem cannot be had on this machine.
            WorkerError: nor can the device, or the problem's file is another one.
        """
        claim = self._store.claim(self._name)
        if claim is None:
            return None
        trial = claim.definition.trial
        place = place_of(self._folder, trial)
        try:
            self._on_epoch(Run(trial.key, trial.method), 0)
            with _heartbeat(self._store, claim) as lost:
                record = self._train(claim, place, lost)
            record["versions"] = versions(claim.definition.trial.device)
            files = {
                path.relative_to(place / FILES).as_posix(): path.read_bytes()
                for path in (place / FILES).rglob("*")
                if path.is_file()
            }
            if self._store.finish(claim, record, files):
                shutil.rmtree(place, ignore_errors=True)
        except BaseException:
            self._store.give_back(claim)  # does nothing if it is no longer this worker's
            raise
        return record

    def _train(self, claim: Claim, place: Path, lost: threading.Event) -> Record:
        definition, trial = claim.definition, claim.definition.trial

        def check() -> None:
            if lost.is_set() or self._stopped():
                raise StoppedError

        def epoch(number: int, score: float) -> None:
            self._store.epoch(claim, number, score)
            self._on_epoch(Run(trial.key, trial.method), number)

        problem, data = open_problem(definition.problem, definition.quick)  # what fails here is the machine's fault,
        _check_device(trial.device)  # not the run's
        method, _ = parts_of(trial.method)
        for name, source in ((definition.problem, definition.source), (method, trial.source)):
            if source and source_of(name) != source:
                raise WorkerError(f"The file of {name} is another one here than where the comparison began.")
        try:
            files, name, every = place / FILES, file_name(trial.method), definition.monitor_every
            outputs = Outputs(
                checkpoint=place / "checkpoint.pt",
                picture=files / "predictions" / f"{name}.png" if definition.picture else None,
                monitor=files / "monitor" / f"{name}-{trial.seed}.jsonl" if every else None,
                monitor_every=every,
                origin=json.dumps([definition.problem, definition.quick, definition.source]),
            )
            if trial.devices > 1:
                return train_on_ranks(definition.problem, definition.quick, trial, epoch, check, outputs)
            return train(problem, data, trial, epoch, check, outputs)
        except StoppedError:
            if self._stopped():
                raise
            message = "taken away: this worker did not answer for too long"
            return {**trial.head, "status": "lost", "message": message}
        except Exception as error:
            return {**trial.head, "status": "failed", **in_record(error)}


def versions(device: str) -> dict[str, Any]:
    """Returns what runs here and where, to repeat it."""
    place = torch.device(device)
    found = {
        "equipoise": importlib.metadata.version("equipoise"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else platform.machine(),
        "processor cores": os.cpu_count(),
    }
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise WorkerError(f"Device {device} cannot be used here: {str(error).splitlines()[0]}") from error


@contextmanager
def _heartbeat(store: Store, claim: Claim) -> Iterator[threading.Event]:
    """Tells from a thread that the run is worked on; the event is set once it has been taken away."""
    lost, ended = threading.Event(), threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            try:
                if not store.alive(claim):
                    lost.set()
                    return
            except StorageError:
                continue  # the database is away for a while: the next time, or the run is given to another worker

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        ended.set()
        thread.join()


class LocalWorkers:
    """Worker processes on this machine; a context, whose end ends them, with their runs back in the queue.

    Args:
        store: the study.
        folder: where runs that are under way keep what they write.
        count: how many.
        threads: PyTorch's threads in each.
    """

    def __init__(self, store: Store, folder: Path, count: int, threads: int) -> None:
        self._store, self._folder, self._count, self._threads = store, folder, count, threads
        self._context = multiprocessing.get_context("spawn")
        self._stop = self._context.Event()
        self._idle_deaths = 0
        self._processes: dict[int, tuple[SpawnProcess, Event]] = {}

    def __enter__(self) -> LocalWorkers:
        try:
            for index in range(self._count):
                self._start(index)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        started = [(process, ready) for process, ready in self._processes.values() if process.pid is not None]
        for process, ready in started:
            if not ready.is_set():  # it has no run, and will take none
                process.kill()
        for process, _ in started:
            process.join()

    def check(self) -> None:
        """Puts a new process in the place of one that was killed, and its run back.

        Raises:
            GuardError: the processes would run the script anew.
            WorkerError: a process ended by itself and has said why, or several were killed before they took a run.
        """
        for index, (process, _) in self._processes.items():
            if process.exitcode is not None:
                assert process.pid is not None
                if process.exitcode == UNGUARDED:
                    raise GuardError(GUARD)
                if process.exitcode >= 0:
                    raise WorkerError(f"A worker process ended with exit code {process.exitcode}; see above.")
                name = worker_name(process.pid)
                self._store.abandon(name)
                self._idle_deaths += all(trial.user_attrs.get("worker") != name for trial in self._store.view().trials)
                if self._idle_deaths >= MAX_DEATHS:
                    raise WorkerError(
                        f"{self._idle_deaths} worker processes were killed before they took a run, the last by signal "
                        f"{-process.exitcode}: is there too little memory? Try fewer --workers."
                    )
                self._start(index)

    def _start(self, index: int) -> None:
        ready = self._context.Event()
        arguments = (self._store.url, self._store.name, self._folder, self._threads, ready, self._stop)
        process = self._context.Process(target=_work_here, args=arguments)
        self._processes[index] = process, ready
        start_process(process)


def _work_here(url: str, study: str, folder: Path, threads: int, ready: Event, stop: Event) -> None:
    """A worker process; `ready` tells that it has imported what it needs."""
    begin_process(threads)
    ready.set()
    worker = Worker(Store(url, study), folder, stop.is_set)
    try:
        while not stop.is_set():
            if worker.work() is None:
                stop.wait(POLL_SECONDS)
    except StoppedError:
        return


def serve(
    store: Store,
    folder: Path,
    wait: bool,
    on_run: Callable[[Record], None],
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Works on a study's runs until there will be no more.

    Args:
        store: the study.
        folder: where runs that are under way keep what they write.
        wait: wait while the queue is empty, until the comparison says that all is done; else end then.
        on_run: is told every record.
        stopped: as in `Worker`.

    Raises:
        KeyboardInterrupt: Ctrl-C; the run is back in the queue.
        StoppedError: `stopped` said so; likewise.
    """
    worker = Worker(store, folder, stopped)
    while True:
        if stopped():
            raise StoppedError
        record = worker.work()
        if record is not None:
            on_run(record)
        elif not wait or store.get(STATE) == DONE:
            return
        else:
            time.sleep(IDLE_SECONDS)


def place_of(folder: Path, trial: Trial) -> Path:
    """Returns the folder of a run, where runs that are under way keep what they write."""
    return folder / f"{file_name(trial.method)}-{trial.seed}-{trial.key}"
