"""Outcomes of comparisons that are made up, and the verdicts on them."""

import numpy as np

from equipoise.bench.experiment.statistics import DELTA, Cell, Column, Summary, summarise
from equipoise.bench.experiment.verdict import judge
from equipoise.bench.problems import Measure, Regression
from equipoise.monitor.costs import Cost


def make(values, singles=None, drop=(), costs=None, memory=None, **options):
    """A summary and its verdict: method → errors [seeds, tasks]; `drop`: runs (method, seed) that diverged."""
    values = {method: np.asarray(errors, dtype=float) for method, errors in values.items()}
    seeds, tasks = next(iter(values.values())).shape
    names = [f"task{number}" for number in range(tasks)]
    singles = np.ones((seeds, tasks)) if singles is None else singles
    records = [
        {
            "method": f"single:{name}",
            "seed": seed,
            "status": "finished",
            "test": {name: measured(singles[seed, number])},
        }
        for seed in range(seeds)
        for number, name in enumerate(names)
    ]
    for method, errors in values.items():
        for seed in range(seeds):
            if (method, seed) in drop:
                records.append({"method": method, "seed": seed, "status": "diverged", "message": "a loss became nan"})
            else:
                found = {name: measured(errors[seed, number]) for number, name in enumerate(names)}
                records.append({"method": method, "seed": seed, "status": "finished", "test": found})
    summary = summarise(records, [Regression(name) for name in names], list(values))
    costs = {name: Cost(1.0, time, 1.0, (memory or {}).get(name, 1.0)) for name, time in (costs or {}).items()}
    return summary, judge(summary, list(values), costs, **options)


def measured(error):
    return {"MSE": error, "MAE": error, "R²": 1 - error}


def noisy(means, seeds=5, tasks=3, spread=0.01, seed=0):
    generator = np.random.default_rng(seed)
    return {m: mean + spread * generator.standard_normal((seeds, tasks)) for m, mean in means.items()}


def judged(names, drawn, costs=None, **options):
    """The verdict on Δm and two tasks' errors drawn as [methods, seeds, columns], Δm being the last column."""
    columns = [Column(name, Measure("error", higher_is_better=False), main=True) for name in ("one", "two")]
    columns.append(Column(None, DELTA, main=True))
    seeds = drawn.shape[1]
    cells = {
        name: {column: Cell(tuple(values)) for column, values in zip(columns, rows.T, strict=True)}
        for name, rows in zip(names, drawn, strict=True)
    }
    return judge(Summary(tuple(columns), cells, seeds, {}, {}), names, costs or {}, **options)
