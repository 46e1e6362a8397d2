"""A comparison: which runs there are, carried out by workers, kept in a study, and summed up in a run folder."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from equipoise.bench.errors import BenchError
from equipoise.bench.experiment.costs import REFERENCE, as_json, measure_costs
from equipoise.bench.experiment.database import hide_password, sqlite_url
from equipoise.bench.experiment.definition import Definition
from equipoise.bench.experiment.execution import (
    DONE,
    OPEN,
    POLL_SECONDS,
    STATE,
    LocalWorkers,
    Worker,
    open_problem,
    place_of,
)
from equipoise.bench.experiment.folder import FolderError, RunFolder
from equipoise.bench.experiment.learner import build_method, make_fabric
from equipoise.bench.experiment.progress import Progress
from equipoise.bench.experiment.settings import OWN, Settings, SettingsError, source_of
from equipoise.bench.experiment.statistics import Summary, summarise
from equipoise.bench.experiment.store import Store, read_records
from equipoise.bench.experiment.trial import SHARDED, Record, Trial
from equipoise.bench.experiment.tuning import Plan, Run, curves, plan
from equipoise.bench.experiment.view import View
from equipoise.bench.problems import Problem, load_problem
from equipoise.monitor.costs import Cost

TIDY_SECONDS = 5.0
"""How often the coordinator looks for workers that no longer answer."""

DATABASE = "study.db"
"""The study's file in the run folder, unless it is elsewhere."""

MIN_POTENTIAL = 0.01
"""The least single-task accuracy that is handed to accuracy-based methods: they divide by it."""

CHECKPOINTS = "checkpoints"
"""The part of the run folder in which runs keep what they have until they are finished."""


ERRORS = "errors"
"""The part of the run folder for tracebacks of runs that failed."""


class BaselineError(BenchError):
    """A single-task run failed, and without it nothing can be compared."""


@dataclass(frozen=True)
class Result:
    """What came of a comparison: the runs' records, the numbers and the costs by method.

    Attributes:
        settings: what was asked, with the methods and seeds that were there before.
        problem: what was trained.
        records: one per method and seed, single-task baselines included, each at its method's learning rate.
        summary: the numbers.
        costs: method → cost.
        memory_source: what memory was measured by.
        rates: method → its learning rate, single-task baselines included.
        tuning: method → learning rates and the validation scores (seed 0) by which they were chosen, ascending; −∞
            where a run diverged. Methods that were not tuned are left out.
        folder: the run folder.
        versions: what the runs were made with and where, "mixed: …" where that differs between them.
        unfinished: how many runs there are of how many, "13 of 24 runs", where some are still to be made; else empty.
    """

    settings: Settings
    problem: Problem
    records: Sequence[Record]
    summary: Summary
    costs: Mapping[str, Cost]
    memory_source: str
    rates: Mapping[str, float] = field(default_factory=dict)
    tuning: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    folder: Path | None = None
    versions: Mapping[str, Any] = field(default_factory=dict)
    unfinished: str = ""


class Comparison:
    """Trains the single-task baselines, then every method, over several seeds.

    All runs of a seed start from the same weights and see the same batches. Each run keeps the epoch with the best
    mean relative gain over the seed's single-task runs on validation (the earliest, if several are best), and is
    reported on test. The accuracy-based methods get as potentials the validation accuracies of the single-task runs
    of the same seed. If it is tuned, each method and each baseline is first run with seed 0 at several learning rates
    and keeps the one with the best validation score.

    Args:
        settings: what to do; extended by the methods and seeds that the study already has.
        path: the run folder.
        storage: URL of the database that holds the study; None for a file in the folder.
        study: the study's name; None for the folder's.

    Raises:
        SettingsError: a method or hyperparameter is unknown or out of range, or the comparison was begun with others.
        FolderError: the folder cannot be used.
        StorageError: the database cannot be used.
        ProblemError: the problem cannot be had.
    """

    def __init__(self, settings: Settings, path: Path, storage: str | None = None, study: str | None = None) -> None:
        self.problem, self.data = open_problem(settings.problem, settings.quick)
        settings = replace(settings, source=source_of(settings.problem))
        self.folder = RunFolder(path)
        database = path / DATABASE
        there = _stored_settings(self.folder)
        if there is not None:
            settings = settings.extend(there, str(path), "another folder with --out")
        self._check(settings)
        if storage is None:
            self.folder.create()
        self.store = Store(storage or sqlite_url(database), study or path.absolute().name, create=True)
        earlier = self.store.get("settings")
        if earlier is not None:
            place = f"Study {self.store.name!r} in {hide_password(self.store.url)}"
            settings = settings.extend(Settings.from_json(earlier), place, "another study with --study")
            self._check(settings)
        self.settings = settings
        self._forgiven = self.store.view().failures  # what failed before is tried again

    def run(self, workers: int, threads: int, progress: Progress, costs: bool = True) -> Result:
        """Does what is not yet done, and sums it up in the folder.

        Args:
            workers: processes that train at the same time; 1 means this one, 0 that others take all runs from the
                study.
            threads: PyTorch's threads in each, and while costs are measured.
            progress: is told how it goes.
            costs: measure time and memory.

        Raises:
            BaselineError: a single-task run failed.
            WorkerError: a worker process cannot work.
            StorageError: another comparison works on the study.
            KeyboardInterrupt: Ctrl-C; what was finished is in the study.
        """
        with self.store.coordinate():
            return self._run(workers, threads, progress, costs)

    def _run(self, workers: int, threads: int, progress: Progress, costs: bool) -> Result:
        self.folder.create()
        self.folder.write_json("settings.json", {"settings": self.settings.to_json()})
        self.store.set("settings", self.settings.to_json())
        self.store.set(STATE, OPEN)
        torch.set_num_threads(threads)
        try:
            records, found = self._train(workers, threads, progress)
        except BaselineError:
            self.store.set(STATE, DONE)
            raise
        finally:
            self.folder.write_runs(self.records().values())
        self.store.set(STATE, DONE)
        for run in records:  # what is left of them, where a worker died or was elsewhere
            shutil.rmtree(place_of(self._under_way, run), ignore_errors=True)
        with suppress(OSError):  # another study's runs are there
            self._under_way.rmdir()
        return self._sum_up(records, found, threads, progress, costs)

    @property
    def _under_way(self) -> Path:
        return self.folder.path / CHECKPOINTS

    def records(self) -> dict[Run, Record]:
        """Returns what has been run, by this comparison or before."""
        return self.store.view().records(self._forgiven)

    def _train(self, workers: int, threads: int, progress: Progress) -> tuple[dict[Run, Record], Plan]:
        """Plans, enqueues and waits, until nothing is missing."""
        told: set[Run] | None = None
        tidied = 0.0
        tasks = [task.name for task in self.problem.tasks]
        with ExitStack() as stack:
            local = None
            while True:
                looked = time.monotonic()
                if looked - tidied > TIDY_SECONDS:
                    self.store.tidy()
                    tidied = looked
                view = self.store.view()
                records = view.records(self._forgiven)
                found = plan(self.settings, tasks, records)
                if told is None:
                    told = set(records)
                    progress.start(found.expected, records.values(), self.settings.epochs)
                for run in records.keys() - told:
                    progress.run(self._with_traceback(run, records[run]))
                told = set(records)
                progress.state(found.expected, view.under_way)
                if found.failed is not None:
                    record = records[found.failed]
                    raise BaselineError(f"{record['method']}, seed {record['seed']}: {record['message']}")
                if not found.missing:
                    return records, found
                self.store.enqueue(
                    [self._definition(run, records, found) for run in found.missing if run not in view.queued]
                )
                pause = max(POLL_SECONDS, 10 * (time.monotonic() - looked))  # looking takes a tenth of a core at most
                if workers == 1:

                    def tell(run: Run, epochs: int, seen: View = view, runs: int = found.expected) -> None:
                        progress.state(runs, {**seen.under_way, run: epochs})

                    if Worker(self.store, self._under_way, on_epoch=tell).work() is not None:
                        continue
                if workers > 1:
                    local = local or stack.enter_context(LocalWorkers(self.store, self._under_way, workers, threads))
                    local.check()
                time.sleep(pause)

    def _with_traceback(self, run: Run, record: Record) -> Record:
        """Writes a failed run's traceback into the folder; returns the record with the file's path."""
        if "traceback" not in record:
            return record
        name = f"{place_of(Path(ERRORS), run)}.txt"
        return {**record, "traceback_file": str(self.folder.write(name, record["traceback"].encode()))}

    def _sum_up(
        self, records: Mapping[Run, Record], found: Plan, threads: int, progress: Progress, costs: bool
    ) -> Result:
        self._write_files(Run(method, 0, rate) for method, rate in found.rates.items())
        stored = self.folder.read_json("costs.json")
        result = _result(self.settings, self.problem, records, found, stored, self.folder.path)
        usable = [method for method in self.settings.methods if result.summary.cells[method]]
        if not costs or (stored is not None and set(usable) <= set(stored["tried"])):
            return result
        progress.costs()
        tried = list(dict.fromkeys([REFERENCE, *usable]))
        rates = {name: found.rates.get(name, self.settings.lr) for name in tried}
        trials = [self._trial(Run(name, 0, rate), records, found) for name, rate in rates.items()]
        measured = measure_costs(
            self.problem, self.data, [replace(trial, devices=1, strategy="auto") for trial in trials]
        )
        stored = as_json(measured, tried, torch.device(self.settings.device), threads)
        self.folder.write_json("costs.json", stored)
        return replace(result, costs=_costs(stored), memory_source=stored["memory"])

    def _write_files(self, runs: Iterable[Run]) -> None:
        view = self.store.view()
        for run in runs:
            for name, content in view.files(run).items():
                self.folder.write(name, content)

    def _definition(self, run: Run, records: Mapping[Run, Record], found: Plan) -> Definition:
        settings = self.settings
        first = run.seed == 0
        watched = first and not run.method.startswith("single:") and settings.strategy != SHARDED
        return Definition(
            problem=settings.problem,
            quick=settings.quick,
            trial=self._trial(run, records, found),
            picture=first,
            monitor_every=settings.monitor_every if watched else 0,
            source=settings.source,
        )

    def _trial(self, run: Run, records: Mapping[Run, Record], found: Plan) -> Trial:
        """The trial of a run, with what the single-task runs say about the seed."""
        reference = potentials = None
        if not run.method.startswith("single:"):
            selected = {}
            for task in self.problem.tasks:
                single = f"single:{task.name}"
                record = records[Run(single, run.seed, found.rates[single])]
                selected[task.name] = record["epochs"][record["selected"] - 1]
            reference = {
                task.name: selected[task.name]["validation"][task.name][task.measures[0].name]
                for task in self.problem.tasks
            }
            potentials = {
                name: max(MIN_POTENTIAL, epoch["accuracy"].get(name, 0.0)) for name, epoch in selected.items()
            }
        return _plain_trial(self.settings, run, reference, potentials)

    def _check(self, settings: Settings) -> None:
        """Builds every method once, so that a wrong name or value is found before anything is trained."""
        unused = [name for name in settings.hyperparameters if name not in (*settings.methods, "single")]
        if unused:
            raise SettingsError(
                f"Hyperparameters are given for {', '.join(unused)}, which is not compared: "
                f"add it to --methods, or write one of {', '.join((*settings.methods, 'single'))}."
            )
        if settings.batch_size > len(self.data.train):
            raise SettingsError(
                f"--batch-size {settings.batch_size} is more than the {len(self.data.train)} training samples: "
                "give that many or fewer."
            )
        if settings.batch_size % settings.devices:
            raise SettingsError(
                f"--batch-size {settings.batch_size} cannot be shared by {settings.devices} devices: "
                "give a multiple of their number."
            )
        try:
            make_fabric(_plain_trial(replace(settings, devices=1), Run("ew", 0, settings.lr), None, None))
        except (ValueError, TypeError, RuntimeError) as error:
            raise SettingsError(f"--precision {settings.precision}, --strategy {settings.strategy}: {error}") from error
        potentials = {task.name: 0.5 for task in self.problem.tasks}
        network = self.problem.model()
        for method in (f"single:{self.problem.tasks[0].name}", *settings.methods):
            if method.startswith("single:") and method in settings.methods:
                raise SettingsError(f"{method} is always trained: leave it out of --methods.")
            for name in OWN:
                value = settings.hyperparameters_of(method).get(name, 0.0)
                if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
                    raise SettingsError(
                        f"{method}.{name} must be a finite number that is not negative, found {value!r}."
                    )
            if settings.hyperparameters_of(method).get("lr", settings.lr) == 0:
                raise SettingsError(f"{method}'s learning rate must be more than 0.")
            try:
                build_method(
                    self.problem, _plain_trial(settings, Run(method, 0, settings.lr), None, potentials), network
                )
            except (ValueError, TypeError) as error:
                raise SettingsError(f"{method}: {error}") from error


def load_result(path: Path) -> Result:
    """Returns what came of a comparison from its folder alone, finished or not; nothing is trained.

    Raises:
        FolderError: there is no comparison in the folder, or nothing of it is finished.
        StorageError: the study in the folder cannot be read.
        SettingsError: it is of another version of equipoise.
        ProblemError: its problem cannot be had.
    """
    folder = RunFolder(path)
    settings = _stored_settings(folder)
    if settings is None:
        raise FolderError(f"{path} holds no comparison: `equipoise compare` makes one.")
    problem = load_problem(settings.problem)
    records = read_records(path / DATABASE)  # a comparison that is under way writes its runs.jsonl at its end
    if records is None:
        records = {Run.of(record): record for record in folder.runs()}
    if not any(record["status"] == "finished" for record in records.values()):
        raise FolderError(f"No run of the comparison in {path} is finished yet: `equipoise compare` goes on with it.")
    found = plan(settings, [task.name for task in problem.tasks], records)
    unfinished = f"{len(records)} of {found.expected} runs" if found.missing or found.failed else ""
    return _result(settings, problem, records, found, folder.read_json("costs.json"), path, unfinished)


def _stored_settings(folder: RunFolder) -> Settings | None:
    """What `settings.json` holds."""
    found = folder.read_json("settings.json")
    if found is None:
        return None
    try:
        settings = dict(found["settings"])
    except (TypeError, KeyError, ValueError) as error:
        raise FolderError(
            f"{folder.path / 'settings.json'} is not a comparison's: take another folder (--out), or remove this one."
        ) from error
    return Settings.from_json(settings)


def _result(
    settings: Settings,
    problem: Problem,
    records: Mapping[Run, Record],
    found: Plan,
    costs: Mapping[str, Any] | None,
    path: Path,
    unfinished: str = "",
) -> Result:
    runs = [Run(method, seed, rate) for method, rate in found.rates.items() for seed in range(settings.seeds)]
    final = [records[run] for run in runs if run in records]
    missing = [{**vars(run), "status": "missing"} for run in runs if run not in records]  # no method has all seeds yet
    return Result(
        settings=settings,
        problem=problem,
        records=final,
        summary=summarise([*final, *missing], problem.tasks, settings.methods),
        costs=_costs(costs) if costs is not None else {},
        memory_source=costs["memory"] if costs is not None else "",
        rates=found.rates,
        tuning=curves(settings, list(found.rates), records),
        folder=path,
        versions=_made_with(final),
        unfinished=unfinished,
    )


def _made_with(records: Iterable[Record]) -> dict[str, Any]:
    found: dict[str, dict[Any, None]] = {}
    for record in records:
        for name, value in record.get("versions", {}).items():
            found.setdefault(name, {})[value] = None
    return {
        name: next(iter(values)) if len(values) == 1 else f"mixed: {', '.join(map(str, values))}"
        for name, values in found.items()
    }


def _costs(stored: Mapping[str, Any]) -> dict[str, Cost]:
    return {method: Cost(**cost) for method, cost in stored["methods"].items()}


def _plain_trial(
    settings: Settings, run: Run, reference: Mapping[str, float] | None, potentials: Mapping[str, float] | None
) -> Trial:
    given = settings.hyperparameters_of(run.method)
    return Trial(
        method=run.method,
        seed=run.seed,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        evaluation_batch_size=settings.evaluation_batch_size,
        lr=run.lr,
        weight_decay=given.pop("weight_decay", settings.weight_decay),
        schedule=settings.schedule,
        hyperparameters={name: value for name, value in given.items() if name != "lr"},
        priorities={} if run.method.startswith("single:") else settings.priorities,
        device=settings.device,
        devices=settings.devices,
        precision=settings.precision,
        strategy=settings.strategy,
        reference=reference,
        potentials=potentials,
    )


def methods_of(names: Iterable[str]) -> tuple[str, ...]:
    """Returns method names without blanks and doubles."""
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
