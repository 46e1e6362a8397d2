"""From what is asked for, on the command line or in Python, to a comparison's settings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from equipoise.bench import defaults
from equipoise.bench.experiment.costs import REFERENCE
from equipoise.bench.experiment.rows import with_replayed
from equipoise.bench.experiment.sequential import looks
from equipoise.bench.experiment.settings import PRIORITIES, Settings, SettingsError
from equipoise.bench.experiment.tuning import MAX_RATE, MIN_RATE
from equipoise.bench.problems import load_problem
from equipoise.methods import list_methods

AUTO = "auto"
"""In place of a number of epochs: as many as it takes."""

MAX_WORKERS = 8
"""Worker processes that are started on a CPU unless more are asked for: each holds the data and a model."""


def read_settings(
    problem: str,
    methods: str | Iterable[str],
    seeds: int,
    lr: float | None,
    weight_decay: float | None,
    epochs: str | int | None,
    batch_size: int | None,
    quick: bool,
    hyperparameters: Mapping[str, Mapping[str, Any]],
    device: str,
    tune: bool,
    grid: str | Iterable[float] | None,
    devices: int,
    precision: str,
    strategy: str,
    monitor_every: int,
    budget: int | None = None,
    match_time: bool = False,
    baselines: bool = True,
    until_decided: bool = False,
    max_seeds: int | None = None,
) -> Settings:
    """Returns the settings: the problem's own, where nothing else is asked for.

    Several methods or learning rates may be one text, with commas between them. Messages name options as the command
    line has them.

    Raises:
        SettingsError: a value is out of range, options contradict each other, or the device cannot be used.
        ProblemError: the problem cannot be had.
    """
    own = load_problem(problem).training(quick)
    for option, count, least in (
        ("--seeds", seeds, 1),
        ("--max-seeds", max_seeds, 1),
        ("--batch-size", batch_size, 1),
        ("--budget", budget, 1),
        ("--devices", devices, 1),
        ("--monitor-every", monitor_every, 0),
    ):
        check_count(option, count, least)
    rows = methods.split(",") if isinstance(methods, str) else list(methods)
    if not all(isinstance(row, str) for row in rows):
        raise SettingsError(f"--methods takes names, one of your own as FILE.py:NAME; found {rows}.")
    names = with_replayed(list_methods() if [row.strip() for row in rows] == ["all"] else rows)
    if not names:
        raise SettingsError("--methods is empty: name at least one, as in --methods ew,mao.")
    if not baselines and REFERENCE not in names:
        names = (REFERENCE, *names)
    if weight_decay is not None:
        _check_not_negative("--weight-decay", weight_decay)
    if lr is not None:
        check_rate(lr)
    if tune and lr is not None:
        raise SettingsError("--tune finds each method's learning rate: leave --lr out, or name rates with --grid.")
    if budget is not None and (tune or lr is not None or weight_decay is not None):
        raise SettingsError(
            "--budget finds each method's learning rate and weight decay: leave --tune, --lr and --weight-decay out; "
            "--set METHOD.lr=… gives one method's."
        )
    if grid is not None and not tune:
        raise SettingsError("--grid is for --tune: add it, or give one learning rate with --lr.")
    if max_seeds is not None and not until_decided:
        raise SettingsError("--max-seeds is for --until-decided: add it, or give all seeds with --seeds.")
    if until_decided and max_seeds is None:
        max_seeds = max(defaults.MAX_SEEDS, seeds)
    if max_seeds is not None and max_seeds < seeds:
        raise SettingsError(f"--max-seeds {max_seeds} is less than --seeds {seeds}, with which the first look is made.")
    planned = () if max_seeds is None else looks(seeds, max_seeds)
    device = find_device(device)
    return Settings(
        problem=problem,
        methods=names,
        seeds=planned[-1] if planned else seeds,
        quick=quick,
        epochs=own.epochs if epochs in (None, AUTO) else _parse_epochs(str(epochs)),
        batch_size=own.batch_size if batch_size is None else batch_size,
        evaluation_batch_size=own.evaluation_batch_size,
        lr=own.lr if lr is None else lr,
        weight_decay=own.weight_decay if weight_decay is None else weight_decay,
        schedule=own.schedule,
        priorities=hyperparameters.get(PRIORITIES, {}),
        hyperparameters={row: values for row, values in hyperparameters.items() if row != PRIORITIES},
        device=device,
        tune=tune,
        grid=() if grid is None else _parse_grid(grid),
        budget=budget,
        baselines=baselines,
        looks=planned,
        extend_epochs=epochs == AUTO,
        match_time=match_time,
        devices=devices,
        precision=precision,
        strategy=strategy,
        monitor_every=monitor_every,
    )


def default_workers(device: str) -> int:
    """Returns how many runs train at the same time unless that is asked for: one per core on a CPU, else 1."""
    return min(os.cpu_count() or 1, MAX_WORKERS) if torch.device(device).type == "cpu" else 1


def default_folder(problem: str, model: str | None = None, quick: bool = False) -> Path:
    """Returns the run folder of a comparison for which none is named: `runs/PROBLEM`, for a file `runs/FILE`.

    Example:
        >>> from equipoise.bench.experiment.asking import default_folder
        >>> default_folder("health?seed=1", "ple", quick=True).as_posix(), default_folder("my/own.py:it").as_posix()
        ('runs/health-ple-quick', 'runs/own')
    """
    stem = Path(problem.partition("?")[0].partition(":")[0]).stem
    return Path("runs") / "-".join(filter(None, [stem, model, "quick" if quick else None]))


def check_count(option: str, count: int | None, least: int) -> None:
    """Checks a whole number, if it is given.

    Raises:
        SettingsError: it is none, or less than the least.
    """
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < least):
        raise SettingsError(f"{option} takes a whole number, at least {least}; found {count!r}.")


def check_rate(lr: float) -> None:
    """Checks a learning rate.

    Raises:
        SettingsError: it is no finite number above 0.
    """
    _check_not_negative("--lr", lr)
    if lr == 0:
        raise SettingsError("--lr must be more than 0: nothing is learnt at 0.")


def _check_not_negative(option: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise SettingsError(f"{option} must be a finite number that is not negative, found {value}.")


def find_device(device: str) -> str:
    """Returns the device; of `auto` a GPU if there is one.

    Raises:
        SettingsError: it cannot be used.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    if torch.device(device).type == "cpu" and torch.device(device).index is not None:
        raise SettingsError(f"--device {device} names a CPU by number: write --device cpu.")
    return device


def _parse_epochs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise SettingsError(f"--epochs takes a number of epochs, at least 1, or `{AUTO}`; found {text!r}.")
    return int(text)


def _parse_grid(given: str | Iterable[float]) -> tuple[float, ...]:
    rates = given.split(",") if isinstance(given, str) else list(given)
    try:
        grid = tuple(sorted({float(rate) for rate in rates}))
    except (TypeError, ValueError):
        grid = ()
    if not grid or not MIN_RATE <= grid[0] <= grid[-1] <= MAX_RATE:
        raise SettingsError(
            f"--grid takes learning rates between {MIN_RATE:g} and {MAX_RATE:g}, as in --grid 1e-4,1e-3; "
            f"found {given!r}."
        )
    return grid
