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


def execute(
    problem: str, quick: bool, jobs: Sequence[Job], workers: int, threads: int, on_epoch: Callable[[], None]
) -> Iterator[Record]:
    """Carries out jobs and yields their records in the order in which they finish.

    A trial that raises gives a record with `status` "failed" and a `message`; the others go on.

    Args:
        problem: as `load_problem` takes it.
        quick: less data.
        jobs: what to run.
        workers: processes; 1 means this one.
        threads: PyTorch's threads in each.
        on_epoch: called after every epoch of any trial.

    Raises:
        KeyboardInterrupt: Ctrl-C; what was finished has been yielded, the rest is given up.
    """
    if workers == 1:
        torch.set_num_threads(threads)
        for job in jobs:
            yield _run(problem, quick, job, on_epoch, lambda: None)
    elif jobs:
        yield from _execute_in_processes(problem, quick, jobs, workers, threads, on_epoch)


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


def _execute_in_processes(
    problem: str, quick: bool, jobs: Sequence[Job], workers: int, threads: int, on_epoch: Callable[[], None]
) -> Iterator[Record]:
    context = multiprocessing.get_context("spawn")
    stop, epochs = context.Event(), context.SimpleQueue()
    executor = ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker, (threads, stop, epochs))
    waiting: set[Future[Record]] = set()
    try:
        waiting = {executor.submit(_run_in_worker, problem, quick, job) for job in jobs}
        while waiting:
            done, waiting = wait(waiting, timeout=0.1, return_when=FIRST_COMPLETED)
            while not epochs.empty():
                epochs.get()
                on_epoch()
            for future in done:
                yield future.result()
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)


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
