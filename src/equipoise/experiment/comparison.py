"""A comparison: which runs there are, carried out in order, kept in a run folder, and summed up."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from equipoise.experiment.costs import REFERENCE, Cost, as_json, measure_costs
from equipoise.experiment.execution import Job, Record, Runner, open_problem
from equipoise.experiment.folder import RunFolder
from equipoise.experiment.settings import OWN, Settings, SettingsError
from equipoise.experiment.statistics import Summary, summarise
from equipoise.experiment.training import MIN_POTENTIAL, Trial, build
from equipoise.problems import Problem


class BaselineError(Exception):
    """A single-task run failed, and without it nothing can be compared."""


class Progress(Protocol):
    """What is told how a comparison goes on."""

    def start(self, runs: int, done: int, epochs: int) -> None:
        """`runs` in all, `done` of them found in the folder; each has `epochs`."""

    def epoch(self) -> None:
        """Some run has finished an epoch."""

    def run(self, record: Record) -> None:
        """A run has finished."""

    def costs(self) -> None:
        """Time and memory are now being measured."""


@dataclass(frozen=True)
class Result:
    """What came of a comparison: the runs' records, the numbers and the costs by method."""

    settings: Settings
    problem: Problem
    records: Sequence[Record]
    summary: Summary
    costs: Mapping[str, Cost]
    memory_source: str


class Comparison:
    """Trains the single-task baselines, then every method, over several seeds.

    All runs of a seed start from the same weights and see the same batches. Each run keeps the epoch with the best
    mean relative gain over the seed's single-task runs on validation (the earliest, if several are best), and is
    reported on test. The accuracy-based methods get as potentials the validation accuracies of the single-task runs
    of the same seed.

    Args:
        settings: what to do; extended by the methods and seeds that the folder already has.
        path: the run folder.

    Raises:
        SettingsError: a method or hyperparameter is unknown or out of range, or the folder was made with others.
        FolderError: the folder cannot be used.
        ProblemError: the problem cannot be had.
    """

    def __init__(self, settings: Settings, path: Path) -> None:
        self.problem, self.data = open_problem(settings.problem, settings.quick)
        self.folder = RunFolder(path)
        earlier = self.folder.read_json("settings.json")
        if earlier is not None:
            settings = settings.extend(Settings.from_json(earlier["settings"]), path)
        self.settings = settings
        self._check_methods()

    def run(self, workers: int, threads: int, progress: Progress) -> Result:
        """Does what is not yet done, and writes it to the folder.

        Args:
            workers: processes that train at the same time; 1 means this one.
            threads: PyTorch's threads in each, and while costs are measured.
            progress: is told how it goes.

        Raises:
            BaselineError: a single-task run failed.
            KeyboardInterrupt: Ctrl-C; what was finished is in the folder.
        """
        settings = self.settings
        self.folder.write_json("settings.json", {"settings": settings.to_json(), "versions": versions(settings)})
        seeds = range(settings.seeds)
        singles = [(f"single:{task.name}", seed) for seed in seeds for task in self.problem.tasks]
        balanced = [(method, seed) for seed in seeds for method in settings.methods]
        done = {key for key, record in self._runs().items() if _settled(record)}
        wanted = [*singles, *balanced]
        progress.start(len(wanted), sum(key in done for key in wanted), settings.epochs)
        with Runner(settings.problem, settings.quick, workers, threads, progress.epoch) as runner:
            for stage in (singles, balanced):  # the methods need what the baselines say
                for record in runner.run([self._job(*key) for key in stage if key not in done]):
                    self.folder.add_run(record)
                    progress.run(record)
                    if _is_single(record) and record["status"] != "finished":
                        raise BaselineError(f"{record['method']}, seed {record['seed']}: {record['message']}")
        return self._sum_up(threads, progress)

    def _sum_up(self, threads: int, progress: Progress) -> Result:
        runs = self._runs()
        records = [
            record
            for (method, seed), record in runs.items()
            if seed < self.settings.seeds and (method in self.settings.methods or method.startswith("single:"))
        ]
        summary = summarise(records, self.problem.tasks, self.settings.methods)
        stored = self.folder.read_json("costs.json")
        usable = [method for method in self.settings.methods if summary.cells[method]]
        if stored is None or not set(usable) <= set(stored["tried"]):
            progress.costs()
            torch.set_num_threads(threads)
            tried = list(dict.fromkeys([REFERENCE, *usable]))
            measured = measure_costs(self.problem, self.data, [self._trial(method, 0) for method in tried])
            stored = as_json(measured, tried, torch.device(self.settings.device), threads)
            self.folder.write_json("costs.json", stored)
        costs = {method: Cost(**cost) for method, cost in stored["methods"].items()}
        return Result(self.settings, self.problem, records, summary, costs, stored["memory"])

    def _runs(self) -> dict[tuple[str, int], Record]:
        return {(record["method"], record["seed"]): record for record in self.folder.runs()}

    def _job(self, method: str, seed: int) -> Job:
        name = method.replace(":", "-")
        return self._trial(method, seed), self.folder.path / "predictions" / f"{name}.png" if seed == 0 else None

    def _trial(self, method: str, seed: int) -> Trial:
        """The trial of a method and seed, with what the single-task runs say about the seed."""
        reference = potentials = None
        if not method.startswith("single:"):
            runs = self._runs()
            selected = {
                task.name: runs[f"single:{task.name}", seed]["epochs"][
                    runs[f"single:{task.name}", seed]["selected"] - 1
                ]
                for task in self.problem.tasks
            }
            reference = {
                task.name: selected[task.name]["validation"][task.name][task.measures[0].name]
                for task in self.problem.tasks
            }
            potentials = {name: max(MIN_POTENTIAL, epoch["accuracy"][name]) for name, epoch in selected.items()}
        return self._plain_trial(method, seed, reference, potentials)

    def _plain_trial(
        self, method: str, seed: int, reference: Mapping[str, float] | None, potentials: Mapping[str, float] | None
    ) -> Trial:
        settings = self.settings
        given = settings.hyperparameters_of(method)
        return Trial(
            method=method,
            seed=seed,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            evaluation_batch_size=settings.evaluation_batch_size,
            lr=given.pop("lr", settings.lr),
            weight_decay=given.pop("weight_decay", settings.weight_decay),
            schedule=settings.schedule,
            hyperparameters=given,
            device=settings.device,
            reference=reference,
            potentials=potentials,
        )

    def _check_methods(self) -> None:
        """Builds every method once, so that a wrong name or value is found before anything is trained."""
        settings = self.settings
        unused = [name for name in settings.hyperparameters if name not in (*settings.methods, "single")]
        if unused:
            raise SettingsError(
                f"Hyperparameters are given for {', '.join(unused)}, which is not compared: "
                f"add it to --methods, or write one of {', '.join((*settings.methods, 'single'))}."
            )
        potentials = {task.name: 0.5 for task in self.problem.tasks}
        for method in (f"single:{self.problem.tasks[0].name}", *settings.methods):
            if method.startswith("single:") and method in settings.methods:
                raise SettingsError(f"{method} is always trained: leave it out of --methods.")
            for name in OWN:
                value = settings.hyperparameters_of(method).get(name, 0.0)
                if not isinstance(value, (int, float)) or isinstance(value, bool) or value < 0:
                    raise SettingsError(f"{method}.{name} must be a number that is not negative, found {value!r}.")
            try:
                build(self.problem, self._plain_trial(method, 0, None, potentials))
            except (ValueError, TypeError) as error:
                raise SettingsError(f"{method}: {error}") from error


def _settled(record: Record) -> bool:
    """Whether a run need not be tried again: it finished, or a method diverged, which it would do again."""
    return record["status"] == "finished" or (record["status"] == "diverged" and not _is_single(record))


def _is_single(record: Record) -> bool:
    return str(record["method"]).startswith("single:")


def versions(settings: Settings) -> dict[str, Any]:
    """Returns what ran and where, to repeat it."""
    device = torch.device(settings.device)
    return {
        "equipoise": importlib.metadata.version("equipoise"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
    }


def methods_of(names: Iterable[str]) -> tuple[str, ...]:
    """Returns method names without blanks and doubles."""
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
