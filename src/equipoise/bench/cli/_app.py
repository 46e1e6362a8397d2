"""The application that the commands are put into, and what it says of itself."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from equipoise.bench.cli._console import console

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Balanced multi-task training: find out which way of balancing serves your tasks.",
)


def _say_version(wanted: bool) -> None:
    if wanted:
        console.print(f"equipoise {importlib.metadata.version('equipoise')}", highlight=False)
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", help="Say the version and end.", is_eager=True, callback=_say_version)
    ] = False,
) -> None:
    """Balanced multi-task training: find out which way of balancing serves your tasks."""
