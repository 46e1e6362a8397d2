"""`equipoise report`."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from equipoise.bench.cli._app import app
from equipoise.bench.cli._console import answering
from equipoise.bench.defaults import REPORT

if TYPE_CHECKING:
    from equipoise.bench.experiment.comparison import Result


class Format(str, Enum):
    """What `report` writes."""

    HTML = "html"
    MARKDOWN = "md"
    LATEX = "latex"
    CSV = "csv"


@app.command(
    epilog="**Examples**\n\n"
    "`equipoise report runs/digits`: the page, in the folder\n\n"
    "`equipoise report runs/digits --format latex --out table.tex`"
)
def report(
    run: Annotated[Path, typer.Argument(help="The folder of a comparison, finished or not.")],
    format_: Annotated[
        Format, typer.Option("--format", help="html: a page with everything; the others: the table.")
    ] = Format.HTML,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write; default: report.html in the folder, for the other formats the terminal."),
    ] = None,
) -> None:
    """Writes the report or the table of a comparison again, from its folder; nothing is trained."""
    with answering():
        from equipoise.bench.experiment.comparison import load_result
        from equipoise.bench.experiment.folder import FolderError, RunFolder
        from equipoise.bench.experiment.report import to_html
        from equipoise.bench.experiment.tables import to_frame, to_latex, to_markdown

        writers: dict[Format, Callable[[Result], str]] = {
            Format.HTML: to_html,
            Format.MARKDOWN: to_markdown,
            Format.LATEX: to_latex,
            Format.CSV: lambda result: str(to_frame(result).to_csv(index=False)),
        }
        result = load_result(run)
        text = writers[format_](result)
        if out is None and format_ is not Format.HTML:
            typer.echo(text, nl=False)
            return
        place = out or run / REPORT
        try:
            RunFolder(place.parent).write(place.name, text.encode())
        except OSError as error:
            raise FolderError(f"{place} cannot be written: {error.strerror}.") from error
        typer.echo(place)
