"""Where the command line writes, and how it says what went wrong."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from equipoise.bench.errors import BenchError
from equipoise.bench.interrupts import watch_interrupts

console = Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "160")))


def say_loading(what: str) -> None:
    """Says that something happens, before what takes seconds to import is imported."""
    console.print(f"Loading PyTorch and {what}.", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def answering() -> Iterator[threading.Event]:
    """Turns what can be put right by the person into one line and exit code 2, and Ctrl-C into one and 130.

    Yields:
        Whether an interrupt came.
    """
    with watch_interrupts() as interrupted:
        try:
            yield interrupted
        except BenchError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            console.print("Interrupted.")
            raise typer.Exit(130) from None
