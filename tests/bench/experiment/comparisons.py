"""Comparisons that were never run, for tests of what is written about them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from equipoise.bench.experiment.comparison import Result
from equipoise.bench.experiment.settings import Settings
from equipoise.bench.experiment.statistics import summarise
from equipoise.bench.experiment.trials import start_of
from equipoise.bench.problems import Measure, Problem, Regression
from equipoise.monitor.costs import Cost

METHODS = ("ew", "ema", "mao")
LEVELS = {"ew": 1.2, "ema": 0.9, "mao": 0.7}
"""Mean errors; single-task training's is 1."""


class Errors(Problem):
    """A problem of which names alone are used."""

    name, description = "errors", "errors that nobody made"

    def __init__(self, tasks=("left", "right"), measure="MSE"):
        self.tasks = [Named(task, measure) for task in tasks]

    def data(self, quick=False):
        raise NotImplementedError

    def model(self):
        raise NotImplementedError

    def training(self, quick=False):
        raise NotImplementedError


class Named(Regression):
    def __init__(self, name, measure):
        super().__init__(name)
        self.measures = (
            Measure(measure, higher_is_better=False, digits=3),
            Measure("R²", higher_is_better=True, unit="%", scale=100, digits=1),
        )


def make_result(
    problem=None, /, methods=METHODS, seeds=4, diverged=(), folder: Path | None = None, levels=LEVELS, **settings
):
    """A result with made-up records; `diverged`: (method, seed)."""
    problem = Errors() if problem is None else problem
    names = [task.name for task in problem.tasks]
    measure = problem.tasks[0].measures[0].name
    generator = np.random.default_rng(0)
    records = []
    for seed in range(seeds):
        for method in (*(f"single:{name}" for name in names), *methods):
            shown = [method.removeprefix("single:")] if method.startswith("single:") else names
            if (method, seed) in diverged:
                records.append(
                    {"method": method, "seed": seed, "lr": 1e-3, "status": "diverged", "message": "a loss became nan"}
                )
                continue
            epochs = []
            for epoch in (1, 2, 3):
                errors = {name: levels.get(method, 1) * (1 + 1 / epoch) + 0.02 * generator.random() for name in shown}
                weights = {} if method == "no weights" else dict(zip(names, (1.0, *[3.0] * 99), strict=False))
                values = {name: {measure: error, "R²": 1 - error / 4} for name, error in errors.items()}
                epochs.append(
                    {"loss": errors, "weights": weights, "validation": values, "score": -levels.get(method, 1)}
                )
            records.append(
                {"method": method, "seed": seed, "lr": 1e-3, "status": "finished", "epochs": epochs, "selected": 3}
                | {"test": values, "seconds": 1.0}
            )
    given = Settings("errors.py:problem", tuple(methods), seeds, False, 3, 16, 64, 1e-3, 0.0, "constant")
    given = replace(given, **settings)
    rows = (*(f"single:{name}" for name in names), *methods)
    configurations = {row: start_of(given, row) for row in rows}
    return Result(
        settings=given,
        problem=problem,
        records=records,
        summary=summarise(records, problem.tasks, methods),
        costs={name: Cost(2.0 + n, 1.0 + n / 2, 3.0, 1.0 + n) for n, name in enumerate(methods)},
        memory_source="a counter",
        rates={row: configuration.lr for row, configuration in configurations.items()},
        configurations=configurations,
        spent=dict.fromkeys(rows, 0),
        tuning={},
        folder=folder,
        versions={"equipoise": "0.1.0", "device": "a machine"},
    )


def tuned(result):
    """The same with learning rates that were searched; the largest diverged."""
    curve = [(1e-4, -0.2), (1e-3, 0.1), (1e-2, -math.inf)]
    return replace(
        result,
        settings=replace(result.settings, tune=True, grid=(1e-4, 1e-3, 1e-2)),
        tuning=dict.fromkeys(result.rates, curve),
        spent=dict.fromkeys(result.rates, len(curve)),
    )
