"""What `compare` and `reproduce` do: read settings, carry a comparison out, write and show what came of it."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import typer

from equipoise.bench.cli._console import console
from equipoise.bench.cli._options import REPORT
from equipoise.bench.experiment.comparison import Comparison, Result
from equipoise.bench.experiment.costs import REFERENCE
from equipoise.bench.experiment.pictures import draw_all
from equipoise.bench.experiment.progress import ConsoleProgress
from equipoise.bench.experiment.protocol import announced
from equipoise.bench.experiment.report import to_html
from equipoise.bench.experiment.rows import with_replayed
from equipoise.bench.experiment.sequential import looks
from equipoise.bench.experiment.settings import PRIORITIES, Settings, SettingsError, parse_hyperparameters
from equipoise.bench.experiment.tables import notes, to_frame, to_markdown, to_rich, verdict
from equipoise.bench.experiment.tuning import MAX_RATE, MIN_RATE
from equipoise.bench.problems import load_problem
from equipoise.registry import METHODS

AUTO = "auto"
"""In place of a number of epochs: as many as it takes."""

MAX_WORKERS = 8
"""Worker processes that are started on a CPU unless more are asked for: each holds the data and a model."""


def read_settings(
    problem: str,
    methods: str,
    seeds: int,
    lr: float | None,
    weight_decay: float | None,
    epochs: str | None,
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
    budget: int | None = None,
    match_time: bool = False,
    baselines: bool = True,
    until_decided: bool = False,
    max_seeds: int | None = None,
) -> Settings:
    """Returns the settings: the problem's own, where nothing else is asked for.

    Raises:
        SettingsError: a value is out of range, options contradict each other, or the device cannot be used.
        ProblemError: the problem cannot be had.
    """
    own = load_problem(problem).training(quick)
    hyperparameters = parse_hyperparameters(set_ or [], config)
    names = tuple(METHODS) if methods.strip() == "all" else with_replayed(methods.split(","))
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
        priorities=hyperparameters.pop(PRIORITIES, {}),
        hyperparameters=hyperparameters,
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


def carry_out(
    settings: Settings, folder: Path, workers: int | None, storage: str | None, study: str | None, smoke: bool = False
) -> Result:
    """Carries a comparison out; writes and shows what came of it, unless the numbers mean nothing."""
    comparison = Comparison(settings, folder, storage, study)
    if not smoke:
        for sentence in announced(comparison.settings):
            console.print(sentence, markup=False, highlight=False)
    cores = torch.get_num_threads()  # OMP_NUM_THREADS decides, else the cores
    if workers is None:
        workers = min(os.cpu_count() or 1, MAX_WORKERS) if torch.device(settings.device).type == "cpu" else 1
    try:
        with ConsoleProgress(console, comparison.problem, comparison.settings.methods, workers) as progress:
            result = comparison.run(workers, max(1, cores // max(1, workers)), progress, costs=not smoke)
    except KeyboardInterrupt:
        finished = sum(record["status"] != "failed" for record in comparison.records().values())
        console.print(
            f"Interrupted. {finished} finished runs are kept in {folder}; the same command goes on from there.",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    if not smoke:
        _write(comparison, result)
        _show(result, folder)
    return result


def check_some_finished(result: Result) -> None:
    """Ends with exit code 1 if every method failed; the table's notes have said why."""
    if not any(result.summary.cells[method] for method in result.settings.methods):
        raise typer.Exit(1)


def _write(comparison: Comparison, result: Result) -> None:
    comparison.folder.write("table.csv", to_frame(result).to_csv(index=False).encode())
    comparison.folder.write("table.md", to_markdown(result).encode())
    comparison.folder.write(REPORT, to_html(result).encode())
    for name, content in draw_all(result).items():
        comparison.folder.write(name, content)


def _show(result: Result, folder: Path) -> None:
    console.print(to_rich(result))
    for note in notes(result):
        console.print(note, markup=False, highlight=False)
    console.print(
        f"Everything is in {folder}: table.md, table.csv, runs.jsonl, results.png, training.png, …", markup=False
    )
    console.print()
    for sentence in verdict(result):
        console.print(sentence, markup=False, highlight=False)
    console.print(f"\nReport: {folder / REPORT}", markup=False, highlight=False, soft_wrap=True)
