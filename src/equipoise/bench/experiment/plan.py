"""Which runs a comparison needs with a given number of seeds and epochs: a pure function of settings and records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from equipoise.bench.experiment.costs import REFERENCE
from equipoise.bench.experiment.replay import NoReplayError, weights_to_replay
from equipoise.bench.experiment.rows import (
    BASELINE,
    FIXED,
    REPLAY,
    gives_weights,
    parts_of,
    replayed_by,
    spec_of,
    task_of,
)
from equipoise.bench.experiment.scoring import best_measures, main_measures
from equipoise.bench.experiment.settings import Settings
from equipoise.bench.experiment.trial import Record, Records, Trial, finished, selected, value_of
from equipoise.bench.experiment.trials import FIXED_BUDGET, has_fixed, make_trial, selection_seed, start_of
from equipoise.bench.experiment.tuning import (
    MIN_RATE,
    Configuration,
    decade,
    defaults_of,
    search_grid,
    search_space,
    space_of,
)
from equipoise.bench.problems import Task
from equipoise.registry import BASE_OPTIMIZERS

MIN_POTENTIAL = 0.01
"""The least single-task accuracy that is handed to accuracy-based methods: they divide by it."""


@dataclass(frozen=True)
class Plan:
    """What a comparison consists of, as far as is known.

    Attributes:
        runs: all that are known to be needed, in the order in which they are wanted.
        missing: those of them that have no record.
        expected: how many there will be in all, as far as can be foreseen.
        final: row → seed → the run that the comparison reports, baselines included.
        tried: row → the configurations that were tried, with their scores and runs; rows that were searched alone.
        configurations: row → what was chosen, where it is settled; baselines included.
        reference: task → the run with the selection seed whose main measure gains are against; tasks without are left
            out.
        impossible: row and seed → why there can be no such run.
        settings: what was asked, with the rows, seeds and epochs that it comes to.
    """

    runs: tuple[Trial, ...]
    missing: tuple[Trial, ...]
    expected: int
    final: Mapping[str, Mapping[int, Trial]]
    tried: Mapping[str, tuple[Tried, ...]]
    configurations: Mapping[str, Configuration]
    reference: Mapping[str, Trial]
    impossible: Mapping[tuple[str, int], str]
    settings: Settings

    def records(self, records: Records) -> list[Record]:
        """Returns what is reported: a record for every row and seed, also where there could be no run."""
        found = [
            dict(records[trial.key]) for runs in self.final.values() for trial in runs.values() if trial.key in records
        ]
        for (row, seed), reason in self.impossible.items():
            lr = self.configurations[row].lr
            found.append({"method": row, "seed": seed, "lr": lr, "status": "failed", "message": reason})
        return found


@dataclass(frozen=True)
class Tried:
    """A configuration that was tried.

    Attributes:
        configuration: what.
        trial: its run.
        score: its score; None as long as there is none.
    """

    configuration: Configuration
    trial: Trial
    score: float | None


@dataclass(frozen=True)
class Given:
    """What the runs of a seed get from others of the same seed.

    Attributes:
        reference: task → main measure on validation that epochs are scored against.
        potentials: task → single-task accuracy on validation.
    """

    reference: Mapping[str, float]
    potentials: Mapping[str, float]


def draw_up(settings: Settings, tasks: Sequence[Task], records: Records, times: Mapping[str, float]) -> Plan:
    """Says which runs a comparison needs with as many seeds and epochs as the settings say.

    First come the single-task baselines: their configurations are chosen, then they are run for every seed. A method's
    run needs the baselines of its seed, whose measures score it and whose accuracies it may take as potentials. Where
    no baseline of a seed works, or there are to be none, the run with equal weights is in their place.

    Args:
        settings: what is asked.
        tasks: the problem's.
        records: what has been run, by this comparison or before; what it does not need does no harm.
        times: row → time of a step, in any unit, where rows train as long as the dearest one takes; else none.
    """
    return _Draft(settings, tasks, records, times).plan()


class _Draft:
    """A plan in the making: every run that is asked for is noted, whether it has a record or not."""

    def __init__(self, settings: Settings, tasks: Sequence[Task], records: Records, times: Mapping[str, float]) -> None:
        self._settings, self._tasks, self._records, self._times = settings, tasks, records, times
        self._names = [task.name for task in tasks]
        self._selection, self._has_fixed = selection_seed(settings), has_fixed(settings)
        self._runs: dict[str, Trial] = {}
        self._tried: dict[str, dict[str, Tried]] = {}
        self._configurations: dict[str, Configuration] = {}
        self._given: dict[int, Given | None] = {}
        self._final: dict[str, dict[int, Trial]] = {}
        self._impossible: dict[tuple[str, int], str] = {}

    def plan(self) -> Plan:
        """Goes through the rows: baselines first, then what needs them."""
        settings = self._settings
        seeds = range(settings.seeds)
        singles = [f"{BASELINE}{name}" for name in self._names] if settings.baselines else []
        searched = [row for row in (*singles, *settings.methods) if self._is_searched(row)]
        for row in singles:
            self._choose(row)
            for seed in dict.fromkeys([*([self._selection] if searched else []), *seeds]):
                self._run_baseline(row, seed, seed in seeds)
        rows = self._rows(singles)
        for row in rows:
            self._choose(row)
            for seed in seeds:
                self._run(row, seed)
        reference = self._reference_run(over_singles=settings.baselines and rows == settings.methods)
        runs = tuple(self._runs.values())
        return Plan(
            runs=runs,
            missing=tuple(trial for trial in runs if trial.key not in self._records),
            expected=max(len(runs), self._expected([*singles, *settings.methods], searched)),
            final=self._final,
            tried={row: tuple(tried.values()) for row, tried in self._tried.items()},
            configurations=self._configurations,
            reference=reference,
            impossible=self._impossible,
            settings=replace(settings, methods=rows),
        )

    def _rows(self, singles: Sequence[str]) -> tuple[str, ...]:
        """The methods, and equal weights where some task's gain can only be over them."""
        rows = self._settings.methods
        outcomes = [[self._records.get(trial.key) for trial in self._final.get(row, {}).values()] for row in singles]
        useless = [any(record is not None and not finished(record) for record in found) for found in outcomes]
        return (REFERENCE, *rows) if all(useless) and REFERENCE not in rows else rows

    # The runs of the comparison.

    def _record(self, trial: Trial) -> Mapping[str, Any] | None:
        """Wants a run, and returns its record if there is one."""
        self._runs.setdefault(trial.key, trial)
        return self._records.get(trial.key)

    def _run_baseline(self, row: str, seed: int, reported: bool) -> None:
        if row in self._configurations:
            trial = make_trial(self._settings, row, seed, self._configurations[row])
            self._record(trial)
            if reported:
                self._final.setdefault(row, {})[seed] = trial

    def _run(self, row: str, seed: int) -> None:
        """Wants a row's run of a seed, as soon as is known what it is given."""
        if row not in self._configurations:
            return
        configuration = self._configurations[row]
        source = replayed_by(row)
        if source is not None:
            replayed = self._final.get(source, {}).get(seed)
            record = None if replayed is None else self._records.get(replayed.key)
            if record is None:
                return
            try:
                weights = weights_to_replay(source, record, self._names)
            except NoReplayError as reason:
                self._impossible[row, seed] = str(reason)
                return
            configuration = replace(configuration, hyperparameters={"weights": weights})
        trial = self._trial(row, seed, configuration)
        if trial is None:
            return
        chooses = self._trial(row, self._selection, configuration) if self._is_searched(row) else None
        lacking = self._lacking(trial) or (self._lacking(chooses) if chooses is not None else [])
        if lacking:
            self._impossible[row, seed] = f"single:{lacking[0]} did not finish, whose accuracy it needs"
        else:
            self._record(trial)
            self._final.setdefault(row, {})[seed] = trial

    def _trial(self, row: str, seed: int, configuration: Configuration) -> Trial | None:
        """A run of a method; None as long as is not known what it is given."""
        given = self._given_to(seed)
        if given is None:
            return None
        spec = spec_of(row)
        wants_potentials = spec is not None and spec.needs_potentials and replayed_by(row) is None
        return make_trial(
            self._settings,
            row,
            seed,
            configuration,
            reference=given.reference,
            potentials=given.potentials if wants_potentials else None,
            shares=f"{REPLAY}{row}" in self._settings.methods and not gives_weights(row),
        )

    def _lacking(self, trial: Trial) -> list[str]:
        """The tasks whose single-task accuracy a run wants and there is none."""
        return [name for name in self._names if trial.potentials is not None and name not in trial.potentials]

    def _given_to(self, seed: int) -> Given | None:
        """What the runs of a seed are given; None as long as something of it has no record.

        That is from the single-task runs that went through, or, if there is none, from equal weights.
        """
        if self._given.get(seed) is None:
            singles = self._singles(seed)
            if singles:
                self._given[seed] = self._from_singles(singles)
            elif singles is not None:
                scale = self._scale()
                self._given[seed] = None if scale is None else Given(scale, {})
        return self._given.get(seed)

    def _singles(self, seed: int) -> Mapping[str, Trial] | None:
        """The single-task runs of a seed that went through, by task; None as long as one of them has no record."""
        if not self._settings.baselines:
            return {}
        rows = {task.name: f"{BASELINE}{task.name}" for task in self._tasks}
        if any(row not in self._configurations for row in rows.values()):
            return None
        trials = {name: make_trial(self._settings, row, seed, self._configurations[row]) for name, row in rows.items()}
        if any(trial.key not in self._records for trial in trials.values()):
            return None
        return {name: trial for name, trial in trials.items() if finished(self._records[trial.key])}

    def _from_singles(self, singles: Mapping[str, Trial]) -> Given:
        epochs = {name: selected(self._records[trial.key]) for name, trial in singles.items()}
        measured = {name: main_measures(self._tasks, epoch["validation"])[name] for name, epoch in epochs.items()}
        reference = {name: value for name, value in measured.items() if math.isfinite(value)}
        potentials = {name: max(MIN_POTENTIAL, epoch["accuracy"].get(name, 0.0)) for name, epoch in epochs.items()}
        return Given(reference, potentials)

    def _scale(self) -> Mapping[str, float] | None:
        """The best that each task reached in a run with equal weights that is made for this alone; None without record.

        It is where their search would begin, or, as long as that diverges, at a tenth of the rate. All runs are scored
        against it, those with equal weights too, so that scores and curves are on one scale.
        """
        start = self._start(REFERENCE)
        while True:
            trial = make_trial(self._settings, REFERENCE, self._selection, start)
            record = self._record(trial)
            if record is None:
                return None
            if finished(record) or decade(start.lr, -1) < MIN_RATE:
                return best_measures(self._tasks, record["epochs"]) if finished(record) else {}
            start = replace(start, lr=decade(start.lr, -1))

    def _reference_run(self, over_singles: bool) -> Mapping[str, Trial]:
        """What the gains of weightings that were tried are over: with the same seed, what Δm is over."""
        if not self._has_fixed:
            return {}
        if over_singles:
            return self._singles(self._selection) or {}
        chosen = self._configurations.get(REFERENCE)
        trial = None if chosen is None else self._trial(REFERENCE, self._selection, chosen)
        record = None if trial is None else self._record(trial)
        if trial is None or record is None or not finished(record):
            return {}
        return dict.fromkeys(self._names, trial)

    # How configurations are chosen.

    def _start(self, row: str) -> Configuration:
        """Where a row's search begins, with as many epochs as there is time for: as long as the dearest row takes."""
        start = start_of(self._settings, row)
        if row not in self._times:
            return start
        dearest = max(self._times[other] for other in (row, *self._settings.methods) if other in self._times)
        return replace(start, epochs=round(start.epochs * dearest / self._times[row]))

    def _is_searched(self, row: str) -> bool:
        if replayed_by(row) is not None:
            return False
        if self._settings.budget is not None:
            return bool(self._space(row))
        return self._is_tuned(row) or parts_of(row)[0] == FIXED

    def _is_tuned(self, row: str) -> bool:
        """Whether a grid of learning rates is tried."""
        return self._settings.tune and "lr" not in self._settings.hyperparameters_of(row)

    def _choose(self, row: str) -> None:
        """Chooses a row's configuration, if there are enough scores."""
        if row in self._configurations:
            return
        source = replayed_by(row)
        if source is not None:
            found = self._configurations.get(source)
        elif self._is_searched(row):
            found = self._search(row)
        else:
            found = self._start(row)
        if found is not None:
            self._configurations[row] = found

    def _search(self, row: str) -> Configuration | None:
        settings, start = self._settings, self._start(row)
        method, optimizer = parts_of(row)
        score_of = partial(self._score, row)
        first = None if task_of(row) is not None else self._trial(row, self._selection, start)
        if first is not None and self._lacking(first):  # and so has every other configuration
            return start
        if method == FIXED:
            start = replace(start, hyperparameters={"weights": dict.fromkeys(self._names, 1.0)})
        if settings.budget is not None:
            start = replace(start, hyperparameters={**defaults_of(spec_of(row)), **start.hyperparameters})
            return search_space(self._space(row), start, settings.budget, score_of)
        grid = settings.grid or BASE_OPTIMIZERS[optimizer].grid
        if method != FIXED:
            return search_grid(start, grid, score_of)
        if not self._is_tuned(row):
            return search_space(self._space(row), start, FIXED_BUDGET, score_of)

        def best_of_rates(configuration: Configuration) -> float | None:
            best = search_grid(configuration, grid, score_of)
            return None if best is None else score_of(best)

        weighting = search_space(self._space(row), start, FIXED_BUDGET, best_of_rates)
        return None if weighting is None else search_grid(weighting, grid, score_of)

    def _space(self, row: str) -> Any:
        method, optimizer = parts_of(row)
        return space_of(
            optimizer,
            spec_of(row),
            self._names if method == FIXED else (),
            self._settings.hyperparameters_of(row),
            rates=self._settings.budget is not None,
        )

    def _score(self, row: str, configuration: Configuration) -> float | None:
        """Wants a configuration's run with the selection seed, and returns its score if there is one."""
        if task_of(row) is None:
            trial = self._trial(row, self._selection, configuration)
        else:
            trial = make_trial(self._settings, row, self._selection, configuration)
        if trial is None:
            return None
        record = self._record(trial)
        value = None if record is None else value_of(record)
        self._tried.setdefault(row, {})[trial.key] = Tried(configuration, trial, value)
        return value

    def _expected(self, rows: Iterable[str], searched: Sequence[str]) -> int:
        """How many runs there will be, if no grid is extended."""
        seeds = len({*range(self._settings.seeds), self._selection} if searched else range(self._settings.seeds))
        total = 0 if self._settings.baselines else 1 + self._has_fixed * (REFERENCE not in searched)
        for row in rows:
            runs = seeds if task_of(row) is not None else self._settings.seeds
            if row in searched:
                again = task_of(row) is not None or self._selection < self._settings.seeds
                runs += max(len(self._tried.get(row, ())), self._foreseen(row)) - again
            total += runs
        return total

    def _foreseen(self, row: str) -> int:
        settings, (method, optimizer) = self._settings, parts_of(row)
        if settings.budget is not None:
            return settings.budget
        rates = len(settings.grid or BASE_OPTIMIZERS[optimizer].grid) if self._is_tuned(row) else 1
        return rates * (FIXED_BUDGET if method == FIXED else 1)
