"""The options that several commands have, and the settings that they come to."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer

from equipoise.bench.experiment.comparison import methods_of
from equipoise.bench.experiment.settings import PRIORITIES, Settings, SettingsError, parse_hyperparameters
from equipoise.bench.experiment.tuning import GRID, MAX_RATE, MIN_RATE
from equipoise.bench.problems import load_problem
from equipoise.registry import METHODS

MONITOR_EVERY = 50
"""Steps between samples of the balance monitor."""

Epochs = Annotated[int | None, typer.Option(min=1, help="Epochs; default: the problem's or the paper's.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Samples a step; default: the problem's or the paper's.")]
Hyperparameters = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="METHOD.NAME=VALUE", help="A method's hyperparameter (also `lr`); repeatable."),
]
Tune = Annotated[bool, typer.Option("--tune", help="Choose each method's learning rate on validation, baselines' too.")]
Grid = Annotated[
    str | None,
    typer.Option(help="Learning rates to try first, comma-separated.", show_default="1e-5,1e-4,1e-3"),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Runs that train at the same time, a process each; 0: none here, `equipoise worker` takes them. "
        "Default: one per core on a CPU, else 1.",
    ),
]
Storage = Annotated[
    str | None,
    typer.Option(help="Database for the runs, as `postgresql+psycopg://…`; default: a file in the run folder."),
]
Study = Annotated[str | None, typer.Option(help="The comparison's name there; default: the folder's.")]
Device = Annotated[str, typer.Option(help="Where to train, as PyTorch names it; `auto`: a GPU if there is one.")]
Devices = Annotated[int, typer.Option(min=1, help="Devices for each run; they share every batch (Fabric's `devices`).")]
Precision = Annotated[str, typer.Option(help="Fabric's `precision`, as `bf16-mixed` or `16-mixed`.")]
Strategy = Annotated[str, typer.Option(help="Fabric's `strategy` for several devices.")]
MonitorEvery = Annotated[
    int,
    typer.Option(min=0, help="Steps between samples of the balance monitor, for the report; 0: no monitor."),
]


class OnDamaged(str, Enum):
    """What `reproduce` does about a damaged file."""

    ERROR = "error"
    SKIP = "skip"


def read_settings(
    problem: str,
    methods: str,
    seeds: int,
    lr: float | None,
    weight_decay: float | None,
    epochs: int | None,
    batch_size: int | None,
    quick: bool,
    set_: list[str] | None,
    config: Path | None,
    device: str,
    tune: bool,
    grid: str | None,
    devices: int,
    precision: str,
    strategy: str,
    monitor_every: int,
) -> Settings:
    """Returns the settings: the problem's own, where nothing else is asked for.

    Raises:
        SettingsError: a value is out of range, options contradict each other, or the device cannot be used.
        ProblemError: the problem cannot be had.
    """
    own = load_problem(problem).training(quick)
    hyperparameters = parse_hyperparameters(set_ or [], config)
    names = tuple(METHODS) if methods.strip() == "all" else methods_of(methods.split(","))
    if not names:
        raise SettingsError("--methods is empty: name at least one, as in --methods ew,mao.")
    for option, value in (("--lr", lr), ("--weight-decay", weight_decay)):
        if value is not None and not 0 <= value < float("inf"):
            raise SettingsError(f"{option} must be a finite number that is not negative, found {value}.")
    if lr == 0:
        raise SettingsError("--lr must be more than 0: nothing is learnt at 0.")
    if tune and lr is not None:
        raise SettingsError("--tune finds each method's learning rate: leave --lr out, or name rates with --grid.")
    if grid is not None and not tune:
        raise SettingsError("--grid is for --tune: add it, or give one learning rate with --lr.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    if torch.device(device).type == "cpu" and torch.device(device).index is not None:
        raise SettingsError(f"--device {device} names a CPU by number: write --device cpu.")
    return Settings(
        problem=problem,
        methods=names,
        seeds=seeds,
        quick=quick,
        epochs=own.epochs if epochs is None else epochs,
        batch_size=own.batch_size if batch_size is None else batch_size,
        evaluation_batch_size=own.evaluation_batch_size,
        lr=own.lr if lr is None else lr,
        weight_decay=own.weight_decay if weight_decay is None else weight_decay,
        schedule=own.schedule,
        priorities=hyperparameters.pop(PRIORITIES, {}),
        hyperparameters=hyperparameters,
        device=device,
        tune=tune,
        grid=() if not tune else GRID if grid is None else _parse_grid(grid),
        devices=devices,
        precision=precision,
        strategy=strategy,
        monitor_every=monitor_every,
    )


def _parse_grid(text: str) -> tuple[float, ...]:
    try:
        grid = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        grid = ()
    if not grid or not MIN_RATE <= grid[0] <= grid[-1] <= MAX_RATE:
        raise SettingsError(
            f"--grid takes learning rates between {MIN_RATE:g} and {MAX_RATE:g}, as in --grid 1e-4,1e-3; "
            f"found {text!r}."
        )
    return grid
