"""From runs to numbers that can be compared: means, deviations, improvement over single-task, paired tests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from equipoise.problems import Measure, Task

DELTA = Measure("Δm", higher_is_better=True, unit="%", digits=1)
"""Improvement over single-task: the mean over tasks of the main measure's relative gain, in per cent."""

SINGLE = "single-task"
"""The row that holds, for each task, the run that trained it alone."""

MIN_SEEDS = 3
"""Fewer pairs than this leave a paired t-test without a meaning: no stars."""


def relative_gain(value: float, reference: float, higher_is_better: bool) -> float:
    """Returns `±(value − reference)/reference`, positive where the value is better.

    A reference of 0 (an error that vanished) counts as the smallest normal float64.
    """
    difference = value - reference if higher_is_better else reference - value
    return difference / max(abs(reference), float(np.finfo(np.float64).tiny))


def paired_p_value(first: Sequence[float], second: Sequence[float]) -> float:
    """Returns the two-sided p-value of Student's t-test on paired samples; NaN with fewer than `MIN_SEEDS` pairs.

    Differences that are all the same leave no deviation to test against: 1 if they are 0, else 0.
    """
    differences = np.subtract(first, second)
    if len(differences) < MIN_SEEDS:
        return math.nan
    if np.ptp(differences) == 0:
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_rel(first, second).pvalue)


def stars(p_value: float) -> str:
    """Returns `**` for p < 0.01, `*` for p < 0.05, else nothing."""
    return "**" if p_value < 0.01 else "*" if p_value < 0.05 else ""


@dataclass(frozen=True)
class Column:
    """A column of the table: a task's measure, or Δm (no task)."""

    task: str | None
    measure: Measure
    main: bool


@dataclass(frozen=True)
class Cell:
    """A method's result in one column.

    Attributes:
        values: one per seed, in the order of seeds.
        p_value: of the paired t-test against the column's best method; NaN for the best itself, or untested.
        best: the best mean of the column among the methods (single-task aside).
    """

    values: tuple[float, ...]
    p_value: float = math.nan
    best: bool = False

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float:
        """Sample standard deviation over seeds; NaN with one seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class Summary:
    """The numbers of a comparison, on the test split.

    Attributes:
        columns: every measure of every task, then Δm.
        cells: row → column → cell. The row `SINGLE` comes first; a method without a finished run has no cells.
        seeds: how many the comparison has.
        failures: method → why its runs failed or diverged, one line each.
    """

    columns: tuple[Column, ...]
    cells: Mapping[str, Mapping[Column, Cell]]
    seeds: int
    failures: Mapping[str, tuple[str, ...]]


def summarise(records: Iterable[Mapping[str, Any]], tasks: Sequence[Task], methods: Sequence[str]) -> Summary:
    """Computes means, deviations, Δm and paired tests.

    Δm is taken seed by seed: each run against the single-task runs of its own seed. Each method is tested against
    the one with the column's best mean, over the seeds that both finished.

    Args:
        records: one per run, as `training.train` returns them.
        tasks: the problem's.
        methods: the rows after single-task, in this order.
    """
    columns = tuple(
        Column(task.name, measure, not index) for task in tasks for index, measure in enumerate(task.measures)
    )
    delta = Column(None, DELTA, main=True)
    runs = {(record["method"], record["seed"]): record for record in records}
    seeds = sorted({seed for _, seed in runs})

    def column_of(method: str, column: Column) -> pd.Series[float]:
        name = f"single:{column.task}" if method == SINGLE else method
        finished = [seed for seed in seeds if runs.get((name, seed), {}).get("status") == "finished"]
        values = [runs[name, seed]["test"][column.task][column.measure.name] for seed in finished]
        return pd.Series(values, index=finished, dtype=float)

    rows = {method: {column: column_of(method, column) for column in columns} for method in (SINGLE, *methods)}
    for method in methods:
        gains = [
            _gains(rows[method][column], rows[SINGLE][column], column.measure.higher_is_better)
            for column in columns
            if column.main
        ]
        rows[method][delta] = 100 * pd.concat(gains, axis=1).mean(axis=1, skipna=False).dropna()
    cells: dict[str, dict[Column, Cell]] = {method: {} for method in rows}
    for column in (*columns, delta):
        contenders = {method: rows[method][column] for method in methods if len(rows[method][column])}
        best = _best(contenders, column.measure.higher_is_better)
        for method, row in rows.items():
            if column in row and len(row[column]):
                p_value = math.nan
                if best is not None and method not in (best, SINGLE):
                    both = pd.concat([row[column], contenders[best]], axis=1).dropna()
                    p_value = paired_p_value(both[0].tolist(), both[1].tolist())
                cells[method][column] = Cell(tuple(row[column]), p_value, method == best)
    failures = {
        method: tuple(
            f"seed {seed}: {runs[method, seed]['message']}"
            for seed in seeds
            if runs.get((method, seed), {}).get("status") in ("diverged", "failed")
        )
        for method in methods
    }
    return Summary((*columns, delta), cells, len(seeds), {name: lines for name, lines in failures.items() if lines})


def _gains(values: pd.Series[float], references: pd.Series[float], higher_is_better: bool) -> pd.Series[float]:
    """Relative gain seed by seed, over the seeds that both have."""
    both = pd.concat([values, references], axis=1).dropna()
    return both.apply(lambda row: relative_gain(row[0], row[1], higher_is_better), axis=1)


def _best(contenders: Mapping[str, pd.Series[float]], higher_is_better: bool) -> str | None:
    """The method with the best mean; None if there is none."""
    means = pd.Series({method: values.mean() for method, values in contenders.items()}, dtype=float).dropna()
    if means.empty:
        return None
    return str(means.idxmax() if higher_is_better else means.idxmin())
