"""Carries out trials, in this process or in several, and hands over each record as soon as it is there."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

from equipoise.experiment.training import Trial, train
from equipoise.problems import Problem, Splits, load_problem

Record = dict[str, Any]
Job = tuple[Trial, Path | None]
"""A trial, and where a picture of its predictions goes."""

_stop: Event | None = None
_epochs: SimpleQueue[int] | None = None


class StoppedError(Exception):
    """The run was asked to stop before it was finished."""


@functools.lru_cache(maxsize=1)
def open_problem(name: str, quick: bool) -> tuple[Problem, Splits]:
    """Returns a problem and its data; kept, since every trial of a process wants the same."""
    problem = load_problem(name)
    return problem, problem.data(quick)


class Runner:
    """Carries out jobs, in this process or in several; a context, whose end ends the processes.

    A trial that raises gives a record with `status` "failed" and a `message`; the others go on. When the context ends
    early (Ctrl-C), runs that are not finished are given up after their current step.

    Args:
        problem: as `load_problem` takes it.
        quick: less data.
        workers: processes; 1 means this one.
        threads: PyTorch's threads in each.
        on_epoch: called after every epoch of any trial.
    """

    def __init__(self, problem: str, quick: bool, workers: int, threads: int, on_epoch: Callable[[], None]) -> None:
        self._problem, self._quick, self._threads, self._on_epoch = problem, quick, threads, on_epoch
        self._executor: ProcessPoolExecutor | None = None
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            self._stop, self._epochs = context.Event(), context.SimpleQueue()
            self._executor = ProcessPoolExecutor(workers, context, _start_worker, (threads, self._stop, self._epochs))

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._executor is not None:
            self._stop.set()
            self._executor.shutdown(cancel_futures=True)

    def run(self, jobs: Sequence[Job]) -> Iterator[Record]:
        """Yields the jobs' records in the order in which they finish."""
        if self._executor is None:
            torch.set_num_threads(self._threads)
            for job in jobs:
                yield _run(self._problem, self._quick, job, self._on_epoch, lambda: None)
            return
        waiting: set[Future[Record]] = {
            self._executor.submit(_run_in_worker, self._problem, self._quick, job) for job in jobs
        }
        while waiting:
            done, waiting = wait(waiting, timeout=0.1, return_when=FIRST_COMPLETED)
            while not self._epochs.empty():
                self._epochs.get()
                self._on_epoch()
            for future in done:
                yield future.result()


def _run(problem: str, quick: bool, job: Job, on_epoch: Callable[[], None], on_step: Callable[[], None]) -> Record:
    trial, picture = job
    try:
        opened, data = open_problem(problem, quick)
        return train(opened, data, trial, lambda epoch: on_epoch(), on_step, picture)
    except StoppedError:
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        details = {"status": "failed", "message": message, "traceback": traceback.format_exc()}
        return {"method": trial.method, "seed": trial.seed, "lr": trial.lr, **details}


def _start_worker(threads: int, stop: Event, epochs: SimpleQueue[int]) -> None:
    """Prepares a worker: Ctrl-C is the parent's to answer, and the parent's end is the worker's too."""
    global _stop, _epochs
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _stop, _epochs = stop, epochs
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    torch.set_num_threads(threads)


def _run_in_worker(problem: str, quick: bool, job: Job) -> Record:
    stop, epochs = _stop, _epochs
    assert stop is not None
    assert epochs is not None

    def check() -> None:
        if stop.is_set():
            raise StoppedError

    return _run(problem, quick, job, lambda: epochs.put(1), check)
