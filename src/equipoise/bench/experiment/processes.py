"""Processes that train: Ctrl-C is their parent's to answer, and its end is theirs too; a script must be guarded."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess

import torch

from equipoise.bench.errors import BenchError

NAME = "equipoise"
"""Of processes that `start_process` starts."""

UNGUARDED = 77
"""The exit code of a process that `start_process` has started and that would begin the script anew."""

GUARD = (
    'Worker processes import the script anew, which calls `compare` outside of `if __name__ == "__main__":`. Put the '
    "call below that line, or pass workers=1 and devices=1."
)


class GuardError(BenchError):
    """A script starts processes, and is not guarded against being run by them."""


def check_guard() -> None:
    """Ends this process if it is a spawned one that is importing the script of its parent.

    One of `start_process` ends without a word: its parent says why.

    Raises:
        GuardError: it is another one.
    """
    process = multiprocessing.current_process()
    if getattr(process, "_inheriting", False):  # as multiprocessing itself asks, when it is too late
        if process.name == NAME:
            raise SystemExit(UNGUARDED)
        raise GuardError(GUARD)


def start_process(process: SpawnProcess) -> None:
    """Starts a process that Ctrl-C does not reach, not even while it imports what it needs.

    It inherits that SIGINT is blocked. One that comes to this process meanwhile is answered once the other has all
    that it has to be told: it would end with a traceback without.
    """
    process.name = NAME
    resource_tracker.ensure_running()  # which would unblock the signal when it starts
    came: list[object] = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


def begin_process(threads: int) -> None:
    """Begins a process that `start_process` has started.

    Args:
        threads: PyTorch's.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    torch.set_num_threads(threads)
