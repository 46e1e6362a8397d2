"""From runs to numbers that can be compared: means, deviations, improvement over single-task, paired tests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special, stats

from equipoise.bench.problems import Measure, Task

DELTA = Measure("Δm", higher_is_better=True, unit="%", digits=1)
"""Improvement over single-task: the mean over tasks of the main measure's relative gain, in per cent."""

EQUAL = "ew"
"""The row with equal weights: what gains are over where no single-task run is there to be gained over."""

SINGLE = "single-task"
"""The row that holds, for each task, the run that trained it alone."""

MIN_SEEDS = 3
"""Fewer pairs than this leave a paired t-test without a meaning: no stars."""

ENOUGH_SEEDS = 6
"""With fewer, a bootstrap interval cannot reach 95 %, and nobody sees how differences are distributed."""

LEVEL = 0.05
"""The probability with which something may be called significant that is not."""

ROUNDING = 1e-12
"""Differences that vary by less than this share of the values are the same."""

TINY = float(np.finfo(np.float64).tiny)
"""The smallest normal float64: what a reference of 0 counts as."""

RESAMPLES = 9999
"""Bootstrap samples."""


def relative_gain(value: float, reference: float, higher_is_better: bool) -> float:
    """Returns `±(value − reference)/reference`, positive where the value is better.

    A reference of 0 (an error that vanished) counts as the smallest normal float64.
    """
    difference = value - reference if higher_is_better else reference - value
    return difference / max(abs(reference), TINY)


def gains_of_seeds(values: pd.Series[float], references: pd.Series[float], higher_is_better: bool) -> pd.Series[float]:
    """Returns a row's gain of every seed that both have, relative to the references' mean over all seeds."""
    gains = (values - references).dropna() * (1 if higher_is_better else -1)
    return gains / max(abs(float(references.mean())), TINY)


def paired_p_value(first: ArrayLike, second: ArrayLike) -> float:
    """Returns the two-sided p-value of Student's t-test on paired samples; NaN where there is nothing to test.

    That is with fewer than `MIN_SEEDS` pairs, and where all differences are the same but not 0: they leave no
    deviation to test against (a problem that no seed changes, a measure with few steps). Differences that are all 0
    give 1.
    """
    one, two = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    differences = one - two
    if len(differences) < MIN_SEEDS or not np.isfinite(differences).all():
        return math.nan
    if np.ptp(differences) <= ROUNDING * max(np.abs(one).max(), np.abs(two).max()):
        return 1.0 if np.abs(differences).max() <= ROUNDING * np.abs(one).max() else math.nan
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(len(differences)))
    return float(2 * special.stdtr(len(differences) - 1, -abs(t)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected by Holm's method for being tested together; NaN stays NaN and is not counted.

    The i-th smallest of m becomes the largest of `(m − j + 1) p_j` over j ≤ i, at most 1: declaring those below α
    errs anywhere with a probability of at most α, whatever the tests' dependence.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    least = 0.0
    for rank, (p, index) in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p))
        corrected[index] = least
    return corrected


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns a 95 % bootstrap interval of the mean over seeds; NaN with fewer than `MIN_SEEDS`.

    Seeds are drawn with replacement, and the percentiles are moved outwards for the small number of them, as
    Hesterberg does. The interval never reaches beyond the values themselves, so that n seeds cannot cover the true
    mean more often than `1 − 2^(1−n)`: 75 % with 3, 94 % with 5.

    Source: Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 2015, "expanded
    percentile interval".
    """
    count = len(values)
    if count < MIN_SEEDS or not np.isfinite(values).all():
        return math.nan, math.nan
    tail = stats.norm.cdf(math.sqrt(count / (count - 1)) * stats.t.ppf(0.025, count - 1))
    interval = stats.bootstrap(
        (np.asarray(values),),
        np.mean,
        method="percentile",
        confidence_level=1 - 2 * tail,
        n_resamples=RESAMPLES,
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Returns the names that no other beats in both, from cheap to dear.

    Args:
        points: name → (cost, gain). A name is left out if another costs no more and gains no less, and one of the
            two is truly better.
    """
    front: list[str] = []
    for name, (cost, gain) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if not front or gain > points[front[-1]][1] or (cost, gain) == points[front[-1]]:
            front.append(name)
    return front


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
        values: one per seed that was finished, in the order of seeds.
        best: the best mean of the column among the methods that have every seed (single-task aside): one lucky seed
            of a method that diverges in the others is no result.
        interval: a bootstrap interval of the mean, of Δm only; else NaN.
    """

    values: tuple[float, ...]
    best: bool = False
    interval: tuple[float, float] = (math.nan, math.nan)

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
        cells: row → column → cell. The row `SINGLE` comes first, if there are such runs; a method without a finished
            run has no cells.
        seeds: how many the comparison has.
        failures: method or `single:TASK` → why its runs failed or diverged, one line each; those alone that did.
        ranks: method → mean rank over tasks' main measures and seeds, 1 the best, methods that are equal sharing
            theirs. Only methods that finished every seed are ranked.
        reference: the row that Δm is over: `SINGLE`, or `EQUAL` where no task has single-task runs that went through.
        left_out: tasks that are not in Δm, since a single-task run of theirs did not go through.
    """

    columns: tuple[Column, ...]
    cells: Mapping[str, Mapping[Column, Cell]]
    seeds: int
    failures: Mapping[str, tuple[str, ...]]
    ranks: Mapping[str, float]
    reference: str = SINGLE
    left_out: tuple[str, ...] = ()

    def complete(self, cell: Cell | None) -> bool:
        """Whether there is a result of every seed: only those are compared."""
        return cell is not None and len(cell.values) == self.seeds


def summarise(records: Iterable[Mapping[str, Any]], tasks: Sequence[Task], methods: Sequence[str]) -> Summary:
    """Computes means, deviations, Δm and ranks.

    Δm is taken seed by seed: each run less the single-task runs of its own seed, relative to their mean over seeds
    (noise in the denominator would favour whoever is compared with it, and the more so the more tasks there are). Its
    mean over seeds is Δm of the measures' means, as papers have it. A task of which a single-task run did not go
    through is left out of Δm, in every seed; if all are, Δm is over equal weights, and its column says so.

    Args:
        records: one per run, as `training.train` returns them.
        tasks: the problem's.
        methods: the rows after single-task, in this order.
    """
    columns = tuple(
        Column(task.name, measure, not index) for task in tasks for index, measure in enumerate(task.measures)
    )
    runs = {(record["method"], record["seed"]): record for record in records}
    seeds = sorted({seed for _, seed in runs})
    names = [task.name for task in tasks]
    outcomes = {name: [runs[run]["status"] for run in runs if run[0] == f"single:{name}"] for name in names}
    usable = [name for name in names if outcomes[name] and not {"diverged", "failed"} & set(outcomes[name])]
    reference = SINGLE if usable else EQUAL
    delta = Column(None, _delta(len(usable), len(names)), main=True)

    def column_of(method: str, column: Column) -> pd.Series[float]:
        name = f"single:{column.task}" if method == SINGLE else method
        finished = [seed for seed in seeds if runs.get((name, seed), {}).get("status") == "finished"]
        values = [runs[name, seed]["test"][column.task][column.measure.name] for seed in finished]
        return pd.Series(values, index=finished, dtype=float)

    shown = (SINGLE, *methods) if any(outcomes.values()) else tuple(methods)
    rows = {method: {column: column_of(method, column) for column in columns} for method in shown}
    against = rows[reference] if reference in rows else {column: column_of(reference, column) for column in columns}
    for method in methods:
        gains = [
            gains_of_seeds(rows[method][column], against[column], column.measure.higher_is_better)
            for column in columns
            if column.main and column.task in (usable or names)
        ]
        rows[method][delta] = 100 * pd.concat(gains, axis=1).mean(axis=1, skipna=False).dropna()
    cells: dict[str, dict[Column, Cell]] = {method: {} for method in rows}
    for column in (*columns, delta):
        plain = {method: Cell(tuple(row[column])) for method, row in rows.items() if column in row and len(row[column])}
        contenders = {
            method: cell for method, cell in plain.items() if method != SINGLE and len(cell.values) == len(seeds)
        }
        best = _best(contenders, column.measure.higher_is_better)
        for method, cell in plain.items():
            interval = bootstrap_interval(cell.values) if column == delta else cell.interval
            cells[method][column] = replace(cell, best=method == best, interval=interval)
    failures = {
        method: tuple(
            f"seed {seed}: {runs[method, seed]['message']}"
            for seed in seeds
            if runs.get((method, seed), {}).get("status") in ("diverged", "failed")
        )
        for method in (*(f"single:{name}" for name in names), *methods)
    }
    failed = {name: lines for name, lines in failures.items() if lines}
    ranks = _ranks(columns, cells, methods, len(seeds))
    left_out = tuple(name for name in names if usable and name not in usable)
    return Summary((*columns, delta), cells, len(seeds), failed, ranks, reference, left_out)


def _delta(usable: int, tasks: int) -> Measure:
    """Δm as it is called where it is over something else than all tasks' single-task runs."""
    if usable == tasks:
        return DELTA
    return replace(DELTA, name=f"Δm of {usable} of {tasks} tasks" if usable else f"Δm over {EQUAL}")


def _best(contenders: Mapping[str, Cell], higher_is_better: bool) -> str | None:
    """The method with the best mean; None if there is none."""
    means = {method: cell.mean for method, cell in contenders.items() if not math.isnan(cell.mean)}
    return (max if higher_is_better else min)(means, key=means.__getitem__, default=None)


def _ranks(
    columns: Sequence[Column], cells: Mapping[str, Mapping[Column, Cell]], methods: Sequence[str], seeds: int
) -> dict[str, float]:
    """Mean ranks of the methods that finished every seed."""
    main = [column for column in columns if column.main]
    ranked = [method for method in methods if cells[method] and len(cells[method][main[0]].values) == seeds]
    table = [
        stats.rankdata([sign * cells[method][column].values[seed] for method in ranked])
        for column, sign in ((column, -1 if column.measure.higher_is_better else 1) for column in main)
        for seed in range(seeds)
    ]
    table = [ranks for ranks in table if not np.isnan(ranks).any()]  # a task without a label has no ranks
    return {method: float(rank) for method, rank in zip(ranked, np.mean(table, axis=0), strict=True)} if table else {}
