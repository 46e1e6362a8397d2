"""`equipoise worker`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from equipoise.bench.cli._app import app
from equipoise.bench.cli._console import answering


@app.command(
    epilog="**Example**\n\n"
    "`equipoise worker --storage postgresql+psycopg://me@server/equipoise --study mine`, on as many machines as you "
    "like, for `equipoise compare … --storage postgresql+psycopg://me@server/equipoise --study mine --workers 0`"
)
def worker(
    storage: Annotated[str, typer.Option(help="The comparison's database, as `postgresql+psycopg://…`.")],
    study: Annotated[
        str | None, typer.Option(help="The comparison's name there; default: the only one.", show_default=False)
    ] = None,
    checkpoints: Annotated[
        Path | None,
        typer.Option(
            help="Where runs keep what they have after each epoch, for any worker with the same folder to go on with; "
            "default: checkpoints/STUDY."
        ),
    ] = None,
    wait: Annotated[
        bool,
        typer.Option("--wait/--once-empty", help="Wait for more until the comparison is done, or end without."),
    ] = True,
) -> None:
    """Takes training runs from a comparison's database, on this machine, until the comparison is done."""
    with answering() as interrupted:
        from equipoise.bench.cli._working import work

        work(storage, study, checkpoints, wait, interrupted.is_set)
