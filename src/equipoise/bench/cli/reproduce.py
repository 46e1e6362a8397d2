"""`equipoise reproduce`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from equipoise.bench.cli._app import app
from equipoise.bench.cli._catalogue import check_rows
from equipoise.bench.cli._console import answering, console, say_loading
from equipoise.bench.cli._options import (
    BatchSize,
    Device,
    Devices,
    Epochs,
    Grid,
    Hyperparameters,
    MonitorEvery,
    OnDamaged,
    Overwrite,
    Precision,
    Storage,
    Strategy,
    Study,
    Tune,
    Workers,
)
from equipoise.bench.defaults import MONITOR_EVERY


@app.command(
    epilog="**Examples**\n\n"
    "`equipoise reproduce --list`\n\n"
    "`equipoise reproduce celeba --data /data/celeba`\n\n"
    "`equipoise reproduce nyudv2-mtan --data /data/NYUD_MT --methods ew,mao --seeds 1 --epochs 10`\n\n"
    "`equipoise reproduce emotic --smoke`: two steps on made-up data, to see that everything works"
)
def reproduce(
    name: Annotated[str | None, typer.Argument(help="An experiment, from `--list`.", show_default=False)] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the experiments and end.")] = False,
    data: Annotated[Path | None, typer.Option(help="The data set's folder, in its official layout.")] = None,
    methods: Annotated[str | None, typer.Option(help="Comma-separated; default: those of the paper's table.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds; default: the paper's.")] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    set_: Hyperparameters = None,
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke",
            help="Two steps at a small size of the paper's own method, with made-up data in a temporary folder, or "
            "in --data if that is empty.",
        ),
    ] = False,
    on_damaged: Annotated[
        OnDamaged, typer.Option(help="What to do about a damaged file: `error`, or `skip` it and say how many.")
    ] = OnDamaged.ERROR,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; default: runs/NAME. One that exists is gone on with.")
    ] = None,
    tune: Tune = False,
    grid: Grid = None,
    overwrite: Overwrite = False,
    workers: Workers = None,
    storage: Storage = None,
    study: Study = None,
    device: Device = "auto",
    devices: Devices = 1,
    precision: Precision = "32-true",
    strategy: Strategy = "auto",
    monitor_every: MonitorEvery = MONITOR_EVERY,
) -> None:
    """Repeats a paper's experiment on its data set, and shows the paper's table with the results beside it."""
    if list_:
        from equipoise.bench.experiment.reproduce import experiments_table

        console.print(experiments_table())
        console.print("equipoise reproduce NAME --data DIR; with --smoke and no data, two steps on made-up data.")
        return
    with answering(), ExitStack() as stack:
        check_rows((methods or "").split(","))
        say_loading(name or "the experiments")
        from equipoise.bench.cli._comparing import carry_out, check_some_finished
        from equipoise.bench.experiment.asking import read_settings
        from equipoise.bench.experiment.folder import RunFolder
        from equipoise.bench.experiment.reproduce import (
            find_experiment,
            hyperparameters_for,
            measured,
            paper_markdown,
            paper_notes,
            paper_table,
            problem_name,
            reproduction_remarks,
            write_samples,
        )
        from equipoise.bench.experiment.settings import parse_hyperparameters

        experiment = find_experiment(name)
        if out is None:
            out = Path(stack.enter_context(TemporaryDirectory())) if smoke else Path("runs") / experiment.name
        if smoke:
            data = data or out / "data"
            write_samples(experiment, data)
        names = methods or ",".join(experiment.methods[-1:] if smoke else experiment.methods)
        settings = read_settings(
            problem=problem_name(experiment, data, smoke, on_damaged.value),
            methods=names,
            seeds=seeds or (1 if smoke else experiment.seeds),
            lr=None,
            weight_decay=None,
            epochs=epochs,
            batch_size=batch_size,
            quick=False,
            hyperparameters=parse_hyperparameters(set_ or [], None),
            device=device,
            tune=tune,
            grid=grid,
            devices=devices,
            precision=precision,
            strategy=strategy,
            monitor_every=0 if smoke else monitor_every,
        )
        given = hyperparameters_for(experiment, settings.methods, settings.hyperparameters, tune)
        result = carry_out(replace(settings, hyperparameters=given), out, workers, storage, study, overwrite, smoke)
        entries = measured(
            experiment, result.records, [task.name for task in result.problem.tasks], result.settings.methods
        )
        remarks = reproduction_remarks(result.settings, smoke)
        RunFolder(out).write("paper.md", paper_markdown(experiment, entries, remarks).encode())
        console.print(paper_table(experiment, entries))
        for line in paper_notes(experiment, remarks):
            console.print(line, markup=False, highlight=False)
        check_some_finished(result)
