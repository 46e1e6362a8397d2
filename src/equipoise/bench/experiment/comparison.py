"""A comparison: which runs there are, carried out by workers, kept in a study, and summed up in a run folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from equipoise.bench.experiment.checking import check
from equipoise.bench.experiment.costs import REFERENCE, as_json, measure_costs
from equipoise.bench.experiment.database import hide_password, remove_damaged, sqlite_url
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
from equipoise.bench.experiment.folder import FolderError, RunFolder, file_name
from equipoise.bench.experiment.front import FrontPoint, front_of
from equipoise.bench.experiment.plan import Plan
from equipoise.bench.experiment.planning import Planner
from equipoise.bench.experiment.progress import Progress
from equipoise.bench.experiment.rows import FIXED, parts_of, replayed_by, source_of
from equipoise.bench.experiment.settings import Settings, SettingsError
from equipoise.bench.experiment.statistics import Summary, summarise
from equipoise.bench.experiment.store import Store, read_records
from equipoise.bench.experiment.stored import DATABASE, stored_settings
from equipoise.bench.experiment.trial import SHARDED, Record, Records, Run, Trial
from equipoise.bench.experiment.trials import make_trial, start_of
from equipoise.bench.experiment.tuning import Configuration
from equipoise.bench.experiment.view import View
from equipoise.bench.problems import Problem, load_problem
from equipoise.monitor.costs import Cost

TIDY_SECONDS = 5.0
"""How often the coordinator looks for workers that no longer answer."""

MONITOR_EVERY = 50
"""Steps between samples of the balance monitor, in runs whose records need them, whatever is asked for."""

TIMES = "times"
"""Where times of a step are kept, in the study and in `settings.json`, if epochs go by them."""

CHECKPOINTS = "checkpoints"
"""The part of the run folder in which runs keep what they have until they are finished."""


ERRORS = "errors"
"""The part of the run folder for tracebacks of runs that failed."""


@dataclass(frozen=True)
class Result:
    """What came of a comparison: the runs' records, the numbers and the costs by method.

    Attributes:
        settings: what was asked, with the methods and seeds that were there before, and the seeds and epochs that it
            came to.
        problem: what was trained.
        records: one per method and seed, single-task baselines included, each with its method's configuration.
        summary: the numbers.
        costs: method → cost.
        memory_source: what memory was measured by.
        rates: method → its learning rate, single-task baselines included.
        tuning: method → learning rates and the validation scores by which they were chosen, ascending; −∞ where a run
            diverged. Methods of which more or less was searched are left out.
        folder: the run folder.
        versions: what the runs were made with and where, "mixed: …" where that differs between them.
        configurations: method → what was chosen for it, single-task baselines included.
        spent: method → runs that its configuration was chosen by; 0 where nothing was searched.
        front: the fixed weightings that were tried, each at its best learning rate if several were.
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
    configurations: Mapping[str, Configuration] = field(default_factory=dict)
    spent: Mapping[str, int] = field(default_factory=dict)
    front: tuple[FrontPoint, ...] = ()
    unfinished: str = ""


class Comparison:
    """Trains the single-task baselines, then every method, over several seeds.

    All runs of a seed start from the same weights and see the same batches. Each run keeps the epoch with the best
    mean relative gain over the seed's single-task runs on validation (the earliest, if several are best), and is
    reported on test. The accuracy-based methods get as potentials the validation accuracies of the single-task runs
    of the same seed. Where a configuration is searched, each method and each baseline is first run with one seed in
    several configurations and keeps the one with the best validation score.

    Args:
        settings: what to do; extended by the methods and seeds that the study already has.
        path: the run folder.
        storage: URL of the database that holds the study; None for a file in the folder.
        study: the study's name; None for the folder's.
        overwrite: begin anew, whatever is there. What holds no run that has come to its end is begun anew in any case,
            if it was begun with other settings.

    Attributes:
        asked: the settings without what the study already has.

    Raises:
        SettingsError: a method or hyperparameter is unknown or out of range, or the comparison was begun with others.
        FolderError: the folder cannot be used.
        StorageError: the database cannot be used.
        ProblemError: the problem cannot be had.
    """

    def __init__(
        self,
        settings: Settings,
        path: Path,
        storage: str | None = None,
        study: str | None = None,
        overwrite: bool = False,
    ) -> None:
        self.problem, self.data = open_problem(settings.problem, settings.quick)
        settings = replace(settings, source=source_of(settings.problem), sources=_sources(settings.methods))
        check(settings, self.problem, self.data)
        self.asked = settings
        self.folder = RunFolder(path)
        if storage is None:
            self.folder.create()
            if overwrite:
                remove_damaged(path / DATABASE)
        self.store = Store(storage or sqlite_url(path / DATABASE), study or path.absolute().name, create=True)
        if not overwrite and self._holds_results():
            extended = self._extended(settings)
            if extended != settings:
                check(extended, self.problem, self.data)
            settings = extended
        elif overwrite or not self._is_begun_with(settings):
            self._begin_anew()
        self.settings = settings
        self._forgiven = self.store.view().failures  # what failed before is tried again

    def _holds_results(self) -> bool:
        """Whether a run has come to its end here, in the study or, if that is gone, in the folder."""
        records = [*self.store.view().records().values()]
        with suppress(FolderError):  # a line is damaged: it is written anew
            records += self.folder.runs()
        return any(record["status"] in ("finished", "diverged") for record in records)

    def _extended(self, settings: Settings) -> Settings:
        """The settings with what folder and study have of a comparison already."""
        there = stored_settings(self.folder)
        if there is not None:
            settings = settings.extend(there, str(self.folder.path), "another folder with --out")
        earlier = self.store.get("settings")
        if earlier is not None:
            place = f"Study {self.store.name!r} in {hide_password(self.store.url)}"
            settings = settings.extend(Settings.from_json(earlier), place, "another study with --study")
        return replace(settings, sources={**settings.sources, **_sources(settings.methods)})

    def _is_begun_with(self, settings: Settings) -> bool:
        """Whether what is here, if anything, was begun with the very same settings."""
        try:
            return self._extended(settings) == settings
        except (SettingsError, FolderError):
            return False

    def _begin_anew(self) -> None:
        """Removes what comparisons have left in the folder and the study, and nothing else.

        Raises:
            StorageError: another comparison works on the study.
        """
        with self.store.coordinate():
            rows: list[str] = []
            with suppress(SettingsError, FolderError):
                rows += [record["method"] for record in self.folder.runs()]
                stored = stored_settings(self.folder)
                rows += () if stored is None else stored.methods
            self.folder.clear(rows)
            self.store.begin_anew()

    def run(self, workers: int, threads: int, progress: Progress, costs: bool = True) -> Result:
        """Does what is not yet done, and sums it up in the folder.

        Args:
            workers: processes that train at the same time; 1 means this one, 0 that others take all runs from the
                study.
            threads: PyTorch's threads in each, and while costs are measured.
            progress: is told how it goes.
            costs: measure time and memory.

        Raises:
            WorkerError: a worker process cannot work.
            StorageError: another comparison works on the study.
            KeyboardInterrupt: Ctrl-C; what was finished is in the study.
        """
        with self.store.coordinate():
            return self._run(workers, threads, progress, costs)

    def planned(self, records: Records) -> Plan:
        """Returns what the comparison needs, as far as the records show it."""
        return Planner(self.settings, self.problem.tasks, self.store.get(TIMES) or {}).plan(records)

    def _run(self, workers: int, threads: int, progress: Progress, costs: bool) -> Result:
        self.folder.create()
        torch.set_num_threads(threads)
        self.store.set("settings", self.settings.to_json())
        times = self._times(progress) if self.settings.match_time else {}
        self.folder.write_json("settings.json", {"settings": self.settings.to_json(), TIMES: times})
        self.store.set(STATE, OPEN)
        planner = Planner(self.settings, self.problem.tasks, times)
        try:
            records, found = self._train(planner, workers, threads, progress)
        finally:
            self.folder.write_runs(self.records().values())
        self.store.set(STATE, DONE)
        for trial in found.runs:  # what is left of them, where a worker died or was elsewhere
            shutil.rmtree(place_of(self._under_way, trial), ignore_errors=True)
        with suppress(OSError):  # another study's runs are there
            self._under_way.rmdir()
        return self._sum_up(records, found, threads, progress, costs)

    @property
    def _under_way(self) -> Path:
        return self.folder.path / CHECKPOINTS

    def records(self) -> dict[str, Record]:
        """Returns what has been run, by this comparison or before, by the runs' keys."""
        return self.store.view().records(self._forgiven)

    def _times(self, progress: Progress) -> dict[str, float]:
        """Row → time of a step, relative to equal weights; measured once and kept, so that the plan stays the same."""
        times: dict[str, float] = self.store.get(TIMES) or {}
        rows = [row for row in self.settings.methods if replayed_by(row) is None and row not in times]
        if rows:
            progress.costs()
            measured = self._measure([self._start(row) for row in dict.fromkeys([REFERENCE, *rows])])
            times |= {row: measured[row].relative_time for row in (REFERENCE, *rows) if row in measured}
            self.store.set(TIMES, times)
        return times

    def _measure(self, trials: Sequence[Trial]) -> dict[str, Cost]:
        alone = [replace(trial, devices=1, strategy="auto") for trial in trials]
        return measure_costs(self.problem, self.data, alone)

    def _train(
        self, planner: Planner, workers: int, threads: int, progress: Progress
    ) -> tuple[dict[str, Record], Plan]:
        """Plans, enqueues and waits, until nothing is missing."""
        told: set[str] | None = None
        tidied = 0.0
        with ExitStack() as stack:
            local = None
            while True:
                looked = time.monotonic()
                if looked - tidied > TIDY_SECONDS:
                    self.store.tidy()
                    tidied = looked
                view = self.store.view()
                records = view.records(self._forgiven)
                found = planner.plan(records)
                done = {trial.key for trial in found.runs if trial.key in records}
                if told is None:
                    told = done
                    progress.start(found.expected, [records[key] for key in done], self.settings.epochs)
                for key in done - told:
                    progress.run(self._with_traceback(records[key]))
                told = done
                progress.state(found.expected, view.under_way)
                if not found.missing:
                    return records, found
                self.store.enqueue([self._definition(t) for t in found.missing if t.key not in view.queued])
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

    def _with_traceback(self, record: Record) -> Record:
        """Writes a failed run's traceback into the folder; returns the record with the file's path."""
        if "traceback" not in record:
            return record
        name = f"{ERRORS}/{file_name(record['method'])}-{record['seed']}-{record['run']}.txt"
        return {**record, "traceback_file": str(self.folder.write(name, record["traceback"].encode()))}

    def _sum_up(self, records: Records, found: Plan, threads: int, progress: Progress, costs: bool) -> Result:
        self._write_files([runs[0] for runs in found.final.values() if 0 in runs])
        stored = self.folder.read_json("costs.json")
        result = _result(self.problem, records, found, stored, self.folder.path)
        usable = [method for method in result.settings.methods if result.summary.cells[method]]
        if not costs or (stored is not None and set(usable) <= set(stored["tried"])):
            return result
        progress.costs()
        tried = list(dict.fromkeys([REFERENCE, *usable]))
        trials = [next(iter(found.final[row].values())) if row in usable else self._start(row) for row in tried]
        measured = self._measure(trials)
        stored = as_json(measured, tried, torch.device(self.settings.device), threads)
        self.folder.write_json("costs.json", stored)
        return replace(result, costs=_costs(stored), memory_source=stored["memory"])

    def _start(self, row: str) -> Trial:
        """A run of a row as it would be without any other."""
        potentials = {task.name: 0.5 for task in self.problem.tasks}
        return make_trial(self.settings, row, 0, start_of(self.settings, row), potentials=potentials)

    def _write_files(self, trials: Iterable[Trial]) -> None:
        view = self.store.view()
        for trial in trials:
            for name, content in view.files(trial.key).items():
                self.folder.write(name, content)

    def _definition(self, trial: Trial) -> Definition:
        settings = self.settings
        first = trial.seed == 0
        watched = trial.single is None and settings.strategy != SHARDED
        every = MONITOR_EVERY if trial.shares else settings.monitor_every if first else 0
        return Definition(
            problem=settings.problem,
            quick=settings.quick,
            trial=trial,
            picture=first,
            monitor_every=every if watched else 0,
            source=settings.source,
        )


def _sources(rows: Iterable[str]) -> dict[str, str]:
    """Method → what `source_of` says about it, of methods that are in files."""
    methods = sorted({parts_of(row)[0] for row in rows})
    return {method: source for method in methods if (source := source_of(method))}


def load_result(path: Path) -> Result:
    """Returns what came of a comparison from its folder alone, finished or not; nothing is trained.

    Raises:
        FolderError: there is no comparison in the folder, or nothing of it is finished.
        StorageError: the study in the folder cannot be read.
        SettingsError: it is of another version of equipoise.
        ProblemError: its problem cannot be had.
    """
    folder = RunFolder(path)
    settings = stored_settings(folder)
    if settings is None:
        raise FolderError(f"{path} holds no comparison: `equipoise compare` makes one.")
    problem = load_problem(settings.problem)
    records = read_records(path / DATABASE)  # a comparison that is under way writes its runs.jsonl at its end
    if records is None:
        records = {record["run"]: record for record in folder.runs()}
    if not any(record["status"] == "finished" for record in records.values()):
        raise FolderError(f"No run of the comparison in {path} is finished yet: `equipoise compare` goes on with it.")
    times = folder.read_json("settings.json").get(TIMES, {})
    found = Planner(settings, problem.tasks, times).plan(records)
    done = sum(trial.key in records for trial in found.runs)
    unfinished = f"{done} of {found.expected} runs" if found.missing else ""
    return _result(problem, records, found, folder.read_json("costs.json"), path, unfinished)


def _result(
    problem: Problem,
    records: Records,
    found: Plan,
    costs: Mapping[str, Any] | None,
    path: Path,
    unfinished: str = "",
) -> Result:
    settings, final = found.settings, found.records(records)
    trials = [trial for runs in found.final.values() for trial in runs.values()]
    missing = [{**trial.head, "status": "missing"} for trial in trials if trial.key not in records]
    return Result(
        settings=settings,
        problem=problem,
        records=final,
        summary=summarise([*final, *missing], problem.tasks, settings.methods),
        costs=_costs(costs) if costs is not None else {},
        memory_source=costs["memory"] if costs is not None else "",
        rates={row: chosen.lr for row, chosen in found.configurations.items()},
        tuning=_curves(settings, found),
        folder=path,
        versions=_made_with(final),
        configurations=found.configurations,
        spent={row: len(found.tried.get(row, ())) for row in found.configurations},
        front=front_of(found, records, problem.tasks),
        unfinished=unfinished,
    )


def _curves(settings: Settings, found: Plan) -> dict[str, list[tuple[float, float]]]:
    """Of each row of which learning rates alone were tried, the scores by rate."""
    if settings.budget is not None:
        return {}
    return {
        row: sorted((one.configuration.lr, one.score) for one in tried if one.score is not None)
        for row, tried in found.tried.items()
        if parts_of(row)[0] != FIXED
    }


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
