"""`equipoise init`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from equipoise.bench.cli._app import app
from equipoise.bench.cli._console import answering, console
from equipoise.bench.errors import BenchError

TEMPLATES = Path(__file__).parent.parent / "templates"


class Kind(str, Enum):
    """What the data are."""

    TABULAR = "tabular"
    IMAGES = "images"


@app.command(
    epilog="**Examples**\n\n"
    "`equipoise init my_problem.py`\n\n"
    "`equipoise init my_pictures.py --kind images`, then `equipoise check my_pictures.py:problem`"
)
def init(
    file: Annotated[Path, typer.Argument(help="The file to write, a `.py`.")],
    kind: Annotated[Kind, typer.Option(help="What your data are.")] = Kind.TABULAR,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Writes a problem to begin with: it runs as it is, and says where your own data, network and tasks go."""
    with answering():
        if file.suffix != ".py" or not file.stem.isidentifier():
            raise BenchError(f"{file} cannot be imported: take a name such as my_problem.py.")
        if file.exists() and not overwrite:
            raise BenchError(f"{file} is there already: take another name, or --overwrite to replace it.")
        text = (TEMPLATES / f"{kind.value}.py").read_text(encoding="utf-8").replace("FILE.py", str(file))
        try:
            file.write_text(text, encoding="utf-8")
        except OSError as error:
            raise BenchError(f"{file} cannot be written: {error.strerror}.") from error
        console.print(f"{file} is written. Next: equipoise check {file}:problem", markup=False, highlight=False)
