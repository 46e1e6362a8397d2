"""The command line, thin: reads options, calls `equipoise.bench.experiment`, shows what came of it."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from equipoise.bench._options import (
    MONITOR_EVERY,
    BatchSize,
    Device,
    Devices,
    Epochs,
    Grid,
    Hyperparameters,
    MonitorEvery,
    OnDamaged,
    Precision,
    Storage,
    Strategy,
    Study,
    Tune,
    Workers,
    read_settings,
)
from equipoise.bench.experiment.comparison import BaselineError, Comparison, Result, load_result
from equipoise.bench.experiment.database import StorageError, hide_password, study_names
from equipoise.bench.experiment.execution import IDLE_SECONDS, StoppedError, WorkerError, serve
from equipoise.bench.experiment.folder import FolderError, RunFolder
from equipoise.bench.experiment.pictures import draw_all
from equipoise.bench.experiment.progress import ConsoleProgress, describe
from equipoise.bench.experiment.report import to_html
from equipoise.bench.experiment.reproduce import (
    experiments_table,
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
from equipoise.bench.experiment.settings import Settings, SettingsError
from equipoise.bench.experiment.store import Store
from equipoise.bench.experiment.tables import notes, to_frame, to_latex, to_markdown, to_rich, verdict
from equipoise.bench.interrupts import watch_interrupts
from equipoise.bench.problems import PROBLEMS, ProblemError, load_problem, split_options
from equipoise.registry import METHODS

DEFAULT_METHODS = "ew,uw,dwa,gls,ema,rema,dwema,amtl,imtl-g,pcgrad,cagrad,mao"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Balanced multi-task training: find out which way of balancing serves your tasks.",
)
MAX_WORKERS = 8
"""Worker processes that are started on a CPU unless more are asked for: each holds the data and a model."""

MANY_TASKS = 8
"""With more, the list of problems names the first ones."""

REPORT = "report.html"


class Format(str, Enum):
    """What `report` writes."""

    HTML = "html"
    MARKDOWN = "md"
    LATEX = "latex"
    CSV = "csv"


WRITERS: dict[Format, Callable[[Result], str]] = {
    Format.HTML: to_html,
    Format.MARKDOWN: to_markdown,
    Format.LATEX: to_latex,
    Format.CSV: lambda result: str(to_frame(result).to_csv(index=False)),
}

console = Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "160")))


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


@app.command(
    epilog="**Examples**\n\n"
    "`equipoise compare digits --quick`\n\n"
    "`equipoise compare digits --methods ew,ema,mao --seeds 5 --set ema.beta=0.2 --set mao.lr=3e-4`\n\n"
    "`equipoise compare digits --tune --seeds 5`: every method at its own best learning rate\n\n"
    "`equipoise compare my_problem.py:problem --out runs/mine`"
)
def compare(
    problem: Annotated[
        str,
        typer.Argument(help="A name from `equipoise problems`, or `FILE.py:ATTRIBUTE`; options as in `rooms?seed=3`."),
    ],
    methods: Annotated[
        str, typer.Option(help="Comma-separated, from `equipoise methods`; `all` for all of them.")
    ] = DEFAULT_METHODS,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
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
        Path | None, typer.Option(help="Run folder; default: runs/PROBLEM. One that exists is gone on with.")
    ] = None,
    tune: Tune = False,
    grid: Grid = None,
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
    with _clear_errors():
        settings = read_settings(
            problem=problem,
            methods=methods,
            seeds=seeds,
            lr=lr,
            weight_decay=weight_decay,
            epochs=epochs,
            batch_size=batch_size,
            quick=quick,
            set_=set_,
            config=config,
            device=device,
            tune=tune,
            grid=grid,
            devices=devices,
            precision=precision,
            strategy=strategy,
            monitor_every=monitor_every,
        )
        folder = out or Path("runs") / f"{_stem(problem)}{'-quick' if quick else ''}"
        result = _carry_out(settings, folder, workers, storage, study)
        _check_some_finished(result)


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
        console.print(experiments_table())
        console.print("equipoise reproduce NAME --data DIR; with --smoke and no data, two steps on made-up data.")
        return
    with _clear_errors(), ExitStack() as stack:
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
            set_=set_,
            config=None,
            device=device,
            tune=tune,
            grid=grid,
            devices=devices,
            precision=precision,
            strategy=strategy,
            monitor_every=0 if smoke else monitor_every,
        )
        given = hyperparameters_for(experiment, settings.methods, settings.hyperparameters, tune)
        result = _carry_out(replace(settings, hyperparameters=given), out, workers, storage, study, smoke)
        entries = measured(
            experiment, result.records, [task.name for task in result.problem.tasks], result.settings.methods
        )
        remarks = reproduction_remarks(result.settings, smoke)
        RunFolder(out).write("paper.md", paper_markdown(experiment, entries, remarks).encode())
        console.print(paper_table(experiment, entries))
        for line in paper_notes(experiment, remarks):
            console.print(line, markup=False, highlight=False)
        _check_some_finished(result)


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
    with _clear_errors(), watch_interrupts() as interrupted:
        try:
            store = _wait_for_study(storage, study, wait)
            console.print(
                f"Working on {store.name}. Ctrl-C gives the run that is under way back.", markup=False, highlight=False
            )
            folder = checkpoints or Path("checkpoints") / store.name
            tell = partial(console.print, markup=False, highlight=False)
            serve(store, folder, wait, lambda record: tell(describe(record)), interrupted.is_set)
        except (KeyboardInterrupt, StoppedError):
            console.print("Interrupted. The run that was under way is in the queue again.")
            raise typer.Exit(130) from None


@app.command(name="methods")
def list_methods() -> None:
    """Lists the methods."""
    table = Table("method", "what it does", "backward passes", "hyperparameters", "source")
    for name, spec in METHODS.items():
        table.add_row(name, spec.description, spec.passes, ", ".join(spec.hyperparameters), spec.source)
    console.print(table)
    console.print("Backward passes through the shared part in a step: 1, or one per task (K).")


@app.command()
def problems() -> None:
    """Lists the problems."""
    table = Table("problem", "what it is", "tasks")
    for name in PROBLEMS:
        try:
            problem = load_problem(name)
        except ProblemError as error:  # an extra that is not installed
            table.add_row(name, escape(str(error)), "")
        else:
            tasks = [task.name for task in problem.tasks]
            shown = tasks if len(tasks) <= MANY_TASKS else [*tasks[:3], f"… ({len(tasks)})"]
            table.add_row(name, problem.description, ", ".join(shown))
    console.print(table)
    console.print("Your own: `equipoise compare my_problem.py:problem`; see examples/tabular.py.", markup=False)


def _check_some_finished(result: Result) -> None:
    """Ends with exit code 1 if every method failed; the table's notes have said why."""
    if not any(result.summary.cells[method] for method in result.settings.methods):
        raise typer.Exit(1)


def _carry_out(
    settings: Settings, folder: Path, workers: int | None, storage: str | None, study: str | None, smoke: bool = False
) -> Result:
    """Carries a comparison out; writes and shows what came of it, unless the numbers mean nothing."""
    comparison = Comparison(settings, folder, storage, study)
    cores = torch.get_num_threads()  # OMP_NUM_THREADS decides, else the cores
    if workers is None:
        workers = min(os.cpu_count() or 1, MAX_WORKERS) if torch.device(settings.device).type == "cpu" else 1
    try:
        with watch_interrupts(), _progress(comparison, workers) as progress:
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


def _progress(comparison: Comparison, workers: int) -> ConsoleProgress:
    return ConsoleProgress(console, comparison.problem, comparison.settings.methods, workers)


def _wait_for_study(storage: str, study: str | None, wait: bool) -> Store:
    """The study, as soon as it is there."""
    told = False
    while True:
        names = study_names(storage)
        name = names[0] if study is None and len(names) == 1 else study
        if study is None and len(names) > 1:
            raise StorageError(f"There are several studies, say which one with --study: {', '.join(names)}.")
        if name is not None and (name in names or not wait):
            return Store(storage, name)
        if not wait:
            raise StorageError(f"There is no study in {hide_password(storage)}.")
        if not told:
            console.print("Waiting for `equipoise compare` to begin.", markup=False)
            told = True
        time.sleep(IDLE_SECONDS)


@app.command(
    epilog="**Examples**\n\n"
    "`equipoise report runs/digits`: the page, in the folder\n\n"
    "`equipoise report runs/digits --format latex --out table.tex`"
)
def report(
    run: Annotated[Path, typer.Argument(help="The folder of a comparison that is finished.")],
    format_: Annotated[
        Format, typer.Option("--format", help="html: a page with everything; the others: the table.")
    ] = Format.HTML,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write; default: report.html in the folder, for the other formats the terminal."),
    ] = None,
) -> None:
    """Writes the report or the table of a comparison again, from its folder; nothing is trained."""
    with _clear_errors():
        result = load_result(run)
        text = WRITERS[format_](result)
        if out is None and format_ is not Format.HTML:
            typer.echo(text, nl=False)
            return
        place = out or run / REPORT
        try:
            RunFolder(place.parent).write(place.name, text.encode())
        except OSError as error:
            raise FolderError(f"{place} cannot be written: {error.strerror}.") from error
        typer.echo(place)


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


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Turns what can be put right by the person into one line and exit code 2."""
    try:
        yield
    except (SettingsError, FolderError, StorageError, ProblemError, BaselineError, WorkerError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def _stem(problem: str) -> str:
    return Path(split_options(problem)[0].partition(":")[0]).stem
