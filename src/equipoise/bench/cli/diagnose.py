"""`equipoise diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from equipoise.bench.cli._app import app
from equipoise.bench.cli._catalogue import check_problem, complete_problem
from equipoise.bench.cli._console import answering, console
from equipoise.bench.cli._options import BatchSize, Device


@app.command(
    epilog="**Examples**\n\n"
    "`equipoise diagnose digits`\n\n"
    "`equipoise diagnose my_problem.py:problem --steps 500 --out diagnosis.png`"
)
def diagnose(
    problem: Annotated[
        str, typer.Argument(autocompletion=complete_problem, help="As for `compare`: a name, or `FILE.py:ATTRIBUTE`.")
    ],
    steps: Annotated[int, typer.Option(min=20, help="How many steps to train.")] = 200,
    lr: Annotated[float | None, typer.Option(help="Learning rate of AdamW; default: the problem's.")] = None,
    batch_size: BatchSize = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides initial weights and the order of batches.")] = 0,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="Picture to write, a PNG.")] = None,
) -> None:
    """Trains a little with equal weights, and says whether anything needs balancing, and which methods fit."""
    with answering():
        check_problem(problem)
        import io

        from equipoise.bench.experiment.asking import check_rate, find_device
        from equipoise.bench.experiment.diagnosis import diagnose_problem
        from equipoise.bench.experiment.folder import FolderError, RunFolder
        from equipoise.bench.problems import load_problem

        if lr is not None:
            check_rate(lr)
        found = diagnose_problem(
            load_problem(problem), steps=steps, lr=lr, batch_size=batch_size, seed=seed, device=find_device(device)
        )
        console.print(str(found), markup=False, highlight=False)
        if out is not None:
            content = io.BytesIO()
            found.picture().savefig(content, format="png", dpi=120)
            try:
                RunFolder(out.parent).write(out.name, content.getvalue())
            except OSError as error:
                raise FolderError(f"{out} cannot be written: {error.strerror}.") from error
            console.print(f"\nPicture: {out}", markup=False, highlight=False, soft_wrap=True)
