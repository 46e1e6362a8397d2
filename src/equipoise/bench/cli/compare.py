"""`equipoise compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from equipoise.bench.cli._app import app
from equipoise.bench.cli._catalogue import check_problem, check_rows, complete_problem, complete_rows
from equipoise.bench.cli._console import answering, console, say_loading
from equipoise.bench.cli._options import (
    BatchSize,
    Budget,
    Device,
    Devices,
    Epochs,
    Grid,
    Hyperparameters,
    Match,
    MonitorEvery,
    Overwrite,
    Precision,
    Storage,
    Strategy,
    Study,
    Tune,
    Workers,
)
from equipoise.bench.defaults import MAX_SEEDS, METHODS, MONITOR_EVERY, SEEDS


@app.command(
    epilog="**Examples**\n\n"
    "`equipoise compare digits --quick`\n\n"
    "`equipoise compare digits --methods ew,ema,mao --seeds 5 --set ema.beta=0.2 --set mao.lr=3e-4`\n\n"
    "`equipoise compare digits --tune --seeds 5`: every method at its own best learning rate\n\n"
    "`equipoise compare digits --budget 16 --until-decided`: 16 configurations of each, and seeds until decided\n\n"
    "`equipoise compare health --model ple`: with another network\n\n"
    "`equipoise compare my_problem.py:problem --out runs/mine`"
)
def compare(
    problem: Annotated[
        str,
        typer.Argument(
            autocompletion=complete_problem,
            help="A name from `equipoise problems`, or `FILE.py:ATTRIBUTE`; options as in `rooms?seed=3`.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="The network, for a problem with several; as `PROBLEM?model=NAME`.", show_default=False),
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            autocompletion=complete_rows,
            show_default=False,
            help="Comma-separated, from `equipoise methods`; `all` for all of them; default: "
            f"`{METHODS}`. `fixed`: fixed weights that are searched. `ema@sgd`, `ema@muon`: another optimizer than "
            "AdamW. `replay:ema`: the mean weights of ema, fixed.",
        ),
    ] = METHODS,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds; with --until-decided at first.")] = SEEDS,
    until_decided: Annotated[
        bool, typer.Option("--until-decided", help="Add seeds, at looks planned in advance, until the verdict decides.")
    ] = False,
    max_seeds: Annotated[
        int | None, typer.Option(min=1, help="Seeds at the last look.", show_default=str(MAX_SEEDS))
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; default: the problem's.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Decoupled weight decay; default: the problem's.")] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    quick: Annotated[bool, typer.Option("--quick", help="Less data and fewer epochs; the table says so.")] = False,
    set_: Hyperparameters = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of hyperparameters, a table per method, and of tasks' `priorities`; `--set` wins over it."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder; default: runs/PROBLEM or runs/PROBLEM-MODEL. One that exists is gone on with."),
    ] = None,
    tune: Tune = False,
    grid: Grid = None,
    budget: Budget = None,
    match: Annotated[
        Match, typer.Option(help="What methods have alike; `time`: each trains as long as the dearest one takes.")
    ] = Match.EPOCHS,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines/--no-baselines",
            help="Whether to train single-task baselines; without, gains are over equal weights.",
        ),
    ] = True,
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
    """Trains single-task baselines and every method over several seeds, and says which serves the tasks best."""
    with answering():
        check_problem(problem)
        check_rows(methods.split(","))
        say_loading(problem)
        from equipoise.bench.cli._comparing import carry_out, check_some_finished
        from equipoise.bench.experiment.asking import default_folder, read_settings
        from equipoise.bench.experiment.settings import parse_hyperparameters

        folder = out or default_folder(problem, model, quick)
        if model is not None:
            from equipoise.bench.problems import with_model

            problem = with_model(problem, model)
        settings = read_settings(
            problem=problem,
            methods=methods,
            seeds=seeds,
            lr=lr,
            weight_decay=weight_decay,
            epochs=epochs,
            batch_size=batch_size,
            quick=quick,
            hyperparameters=parse_hyperparameters(set_ or [], config),
            device=device,
            tune=tune,
            grid=grid,
            budget=budget,
            match_time=match is Match.TIME,
            baselines=baselines,
            until_decided=until_decided,
            max_seeds=max_seeds,
            devices=devices,
            precision=precision,
            strategy=strategy,
            monitor_every=monitor_every,
        )
        if methods == METHODS:
            console.print("Methods were chosen for you: few, so that a difference can show; --methods takes others.")
        result = carry_out(settings, folder, workers, storage, study, overwrite)
        check_some_finished(result)
