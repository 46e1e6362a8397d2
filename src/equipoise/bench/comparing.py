"""Methods compared from Python, as `equipoise compare` does on the command line."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from equipoise.bench import defaults
from equipoise.bench.experiment.asking import check_count, default_folder, default_workers, read_settings
from equipoise.bench.experiment.comparison import Comparison
from equipoise.bench.experiment.folder import FolderError
from equipoise.bench.experiment.processes import check_guard
from equipoise.bench.experiment.progress import ConsoleProgress
from equipoise.bench.experiment.protocol import announced
from equipoise.bench.experiment.settings import PRIORITIES, SettingsError
from equipoise.bench.experiment.stored import holds_other_results
from equipoise.bench.experiment.wording import in_python
from equipoise.bench.outcome import Outcome
from equipoise.bench.problems import Problem, is_object, name_object, with_model
from equipoise.registry import METHODS, is_method


def compare(
    problem: str | Problem | type[Problem],
    methods: str | Iterable[str | type] = defaults.METHODS,
    seeds: int = defaults.SEEDS,
    *,
    model: str | None = None,
    until_decided: bool = False,
    max_seeds: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    epochs: int | Literal["auto"] | None = None,
    batch_size: int | None = None,
    quick: bool = False,
    hyperparameters: Mapping[str, Mapping[str, Any]] | None = None,
    priorities: Mapping[str, float] | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    tune: bool = False,
    grid: str | Iterable[float] | None = None,
    budget: int | None = None,
    match: Literal["epochs", "time"] = "epochs",
    baselines: bool = True,
    workers: int | None = None,
    storage: str | None = None,
    study: str | None = None,
    device: str = "auto",
    devices: int = 1,
    precision: str = "32-true",
    strategy: str = "auto",
    monitor_every: int = defaults.MONITOR_EVERY,
    progress: bool = True,
) -> Outcome:
    """Trains single-task baselines and every method over several seeds, and says which serves the tasks best.

    It is `equipoise compare`, with its options and its defaults. What is finished stays in the run folder, and the same
    call goes on from there, also after it was interrupted.

    A problem that is given as an object (or as a class, which is called without arguments) is this process's alone: its
    runs are made here, one at a time, and another object, or the same in another process, is another problem. One that
    is named (`"digits"`, `"my_problem.py:problem"`) is loaded by worker processes; a script calls this below
    `if __name__ == "__main__":` then, as for everything that starts processes.

    Args:
        problem: what is trained: an object, a class, or a name as `equipoise.bench.problems.load_problem` takes it.
        methods: names from `equipoise.list_methods()`, or `FILE.py:NAME`; several, or one text with commas; "all".
            Among several, classes that stand in a file: that is where worker processes find them.
        seeds: how many; with `until_decided` at first.
        model: the network, for a named problem that has several.
        until_decided: add seeds, at looks planned in advance, until the verdict decides.
        max_seeds: seeds at the last look; None: 20.
        lr: learning rate; None: the problem's.
        weight_decay: decoupled weight decay; None: the problem's.
        epochs: None: the problem's; "auto": twice as many as long as runs still rise at their end.
        batch_size: samples a step; None: the problem's.
        quick: less data and fewer epochs.
        hyperparameters: method → name → value; `lr` and `weight_decay` may be among them.
        priorities: task → how much it is wanted.
        out: the run folder; None: `runs/NAME`, for an object the first of `runs/NAME`, `runs/NAME-2`, … that holds no
            other problem's results.
        overwrite: begin anew; what a comparison has left in the run folder and its study is lost.
        tune: choose each method's learning rate on validation.
        grid: the rates to try first; None: each optimizer's own.
        budget: configurations to try of every method and baseline.
        match: what methods have alike; "time": each trains as long as the dearest one takes.
        baselines: whether to train single-task baselines; without, gains are over equal weights.
        workers: runs that train at the same time, a process each; 1: in this process; 0: none here, `equipoise worker`
            takes them. None: 1 for an object, else one per core on a CPU and 1 elsewhere.
        storage: URL of a database for the runs; None: a file in the run folder.
        study: the comparison's name there; None: the folder's.
        device: where to train, as PyTorch names it; "auto": a GPU if there is one.
        devices: devices for each run, which share every batch.
        precision: as Lightning Fabric takes it, `"bf16-mixed"` for example.
        strategy: Fabric's for several devices.
        monitor_every: steps between samples of the balance monitor; 0: none, but where a replay needs it.
        progress: say how it goes: a bar in a terminal, and in a notebook with `ipywidgets`; a line a run elsewhere.

    Raises:
        SettingsError: an option is wrong, options contradict each other or the run folder; nothing has changed then.
        ProblemError: the problem cannot be had.
        FolderError: the folder cannot be used.
        GuardError: a script calls this outside of `if __name__ == "__main__":`, and worker processes would run it anew.
        TypeError: what is given is no problem, or no method that worker processes can find.

    Example:
        >>> from equipoise.bench import compare
        >>> outcome = compare("digits", "ew,ema", seeds=3, quick=True)   # doctest: +SKIP
        >>> print(outcome)                                               # doctest: +SKIP
        >>> outcome.report("report.html")                                # doctest: +SKIP
    """
    check_guard()
    if inspect.isclass(problem) and issubclass(problem, Problem):
        problem = problem()
    name, folder = _named(problem, model, quick)
    with _options_as_in_python():
        check_count("--workers", workers, 0)
        if match not in ("epochs", "time"):
            raise SettingsError(f'--match takes "epochs" or "time"; found {match!r}.')
        settings = read_settings(
            problem=name,
            methods=methods if isinstance(methods, str) else [_row_of(method) for method in methods],
            seeds=seeds,
            lr=lr,
            weight_decay=weight_decay,
            epochs=epochs,
            batch_size=batch_size,
            quick=quick,
            hyperparameters={**(hyperparameters or {}), PRIORITIES: dict(priorities or {})},
            device=device,
            tune=tune,
            grid=grid,
            devices=devices,
            precision=precision,
            strategy=strategy,
            monitor_every=monitor_every,
            budget=budget,
            match_time=match == "time",
            baselines=baselines,
            until_decided=until_decided,
            max_seeds=max_seeds,
        )
        if is_object(name) and (workers not in (None, 1) or devices > 1):
            raise SettingsError(
                f"{name} was given as an object, which no other process has: leave --workers and --devices out, or "
                "name it as my_problem.py:problem."
            )
    if workers is None:
        workers = 1 if is_object(name) else default_workers(settings.device)
    console = _console(progress)
    place = Path(out) if out is not None else _free(folder, name) if is_object(name) and not overwrite else folder
    if place != folder and out is None:
        console.print(f"{folder} holds another problem's results: this comparison is in {place}.", markup=False)
    with _as_it_was(settings.device) as threads:
        with _options_as_in_python():
            comparison = Comparison(settings, place, storage, study, overwrite)
        for sentence in announced(comparison.settings, comparison.asked, place):
            console.print(in_python(sentence), markup=False, highlight=False)
        with ConsoleProgress(console, comparison.problem, comparison.settings.methods, workers) as shown:
            result = comparison.run(workers, max(1, threads // max(1, workers)), shown)
    return Outcome(result)


def _named(problem: object, model: str | None, quick: bool) -> tuple[str, Path]:
    """A problem's name, as `load_problem` takes it, and the folder of its runs."""
    if isinstance(problem, str):
        return problem if model is None else with_model(problem, model), default_folder(problem, model, quick)
    if not isinstance(problem, Problem):
        raise TypeError(
            f"problem must be an equipoise.bench.problems.Problem, its class, or a name such as 'digits' or "
            f"'my_problem.py:problem'; found {problem!r}."
        )
    if model is not None:
        raise SettingsError("model is for a problem that is named; an object has its own network.")
    name = name_object(problem)
    return name, default_folder(name.partition("#")[0], None, quick)


def _free(folder: Path, name: str) -> Path:
    """The folder, or the first of that name with -2, -3, … behind it that holds no results of another problem."""
    places = (folder if number == 1 else folder.with_name(f"{folder.name}-{number}") for number in itertools.count(1))
    return next(place for place in places if not holds_other_results(place, name))


def _row_of(method: Any) -> Any:
    """A method's name; of a class the library's own, or that of the file which it stands in."""
    if not is_method(method):
        return method  # a name, or nothing that could be a method, which is refused with the settings
    for name, spec in METHODS.items():
        if [part for part in (spec.objective, spec.aggregator, spec.optimizer) if part is not None] == [method]:
            return name
    module: Any = inspect.getmodule(method)
    file = getattr(module, "__file__", None)  # a notebook has none
    if file is None or vars(module).get(getattr(method, "__name__", "")) is not method:
        raise TypeError(
            f"methods takes names, or classes that stand in a file, which worker processes can read: put {method!r} "
            "into a file, at its top, and name it as FILE.py:NAME."
        )
    place, here = Path(file).resolve(), Path.cwd()
    return f"{place.relative_to(here) if place.is_relative_to(here) else place}:{method.__name__}"


@contextmanager
def _options_as_in_python() -> Iterator[None]:
    """Has messages about options say how they are written in Python."""
    try:
        yield
    except (SettingsError, FolderError) as error:
        error.args = (in_python(str(error)),)
        raise


@contextmanager
def _as_it_was(device: str) -> Iterator[int]:
    """Leaves PyTorch's threads and its default generators as they were; yields how many threads these are."""
    threads = torch.get_num_threads()
    place = torch.device(device)
    try:
        with torch.random.fork_rng([place] if place.type == "cuda" else []):
            yield threads
    finally:
        torch.set_num_threads(threads)


def _console(progress: bool) -> Console:
    """Where it is said how it goes: a notebook that cannot show a bar, which takes ipywidgets, has plain lines."""
    console = Console(quiet=not progress)
    if console.is_jupyter and importlib.util.find_spec("ipywidgets") is None:
        return Console(quiet=not progress, force_jupyter=False)
    return console
