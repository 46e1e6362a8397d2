"""Ctrl-C, and a scheduler's SIGTERM, as an exception that lets what was done be kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or SIGTERM.

    A class of its own, since a plain `KeyboardInterrupt` that passes through a string that `exec` runs, as dataclasses
    do while a module is imported, makes Python end by the signal, whatever was caught and whatever code is asked for.
    """


@contextmanager
def watch_interrupts() -> Iterator[threading.Event]:
    """Has Ctrl-C, and SIGTERM, by which a scheduler ends a job, raise `Interrupted`.

    Yields:
        Whether one came: Python drops an exception that is raised in a callback of the garbage collector's.
    """
    came = threading.Event()

    def interrupt(*_: object) -> None:
        came.set()
        raise Interrupted

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
