"""Which runs a comparison still needs: a pure function of what is asked and of what is there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equipoise.bench.experiment.settings import Settings

GRID = (1e-5, 1e-4, 1e-3)
"""Learning rates that every method is tried at (protocol of Hervella et al. 2024)."""

MIN_RATE, MAX_RATE = 1e-7, 1.0
"""How far the grid is extended."""

TUNING_SEED = 0
"""The seed that learning rates are chosen with; its run at the chosen rate is one of the comparison's."""


@dataclass(frozen=True)
class Run:
    """One training run; within a comparison these three say which."""

    method: str
    seed: int
    lr: float

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Run:
        """Returns the run that a record is of."""
        return cls(record["method"], record["seed"], record["lr"])


Runs = Mapping[Run, Mapping[str, Any]]
"""Run → its record, as `training.train` returns it."""


@dataclass(frozen=True)
class Plan:
    """What there is to do.

    Attributes:
        missing: runs that can be made now and have no record, in the order in which they are wanted.
        expected: how many runs the comparison will have in all, as far as is known: a grid may yet be extended.
        rates: method → its learning rate, where it is settled; single-task baselines included.
        failed: the single-task run without which nothing can be compared, if there is one.
    """

    missing: tuple[Run, ...]
    expected: int
    rates: Mapping[str, float]
    failed: Run | None


def plan(settings: Settings, tasks: Sequence[str], records: Runs) -> Plan:
    """Says what a comparison needs next.

    First come the single-task baselines: their rates are chosen, then their other seeds are run. A method's run needs
    the baselines of its seed, whose measures score it and whose accuracies it may take as potentials.

    Args:
        settings: what is asked.
        tasks: the problem's, by name.
        records: what has been run.
    """
    seeds = range(settings.seeds)
    singles = [f"single:{task}" for task in tasks]
    rates: dict[str, float] = {}
    wanted: list[Run] = []
    expected = 0

    def want(method: str, ready: Sequence[int]) -> None:
        nonlocal expected
        grid, rate = search(settings, method, records)
        if rate is not None:
            rates[method] = rate
            wanted.extend(Run(method, seed, rate) for seed in ready)
        elif TUNING_SEED in ready:
            wanted.extend(Run(method, TUNING_SEED, lr) for lr in grid)
        expected += len(grid) - 1 + settings.seeds

    for method in singles:
        want(method, seeds)
    baselines = {seed: [Run(single, seed, rates[single]) for single in singles if single in rates] for seed in seeds}
    ready = [
        seed
        for seed, runs in baselines.items()
        if len(runs) == len(singles) and all(run in records and _finished(records[run]) for run in runs)
    ]
    for method in settings.methods:
        want(method, ready)
    failed = [run for runs in baselines.values() for run in runs if run in records and not _finished(records[run])]
    missing = tuple(run for run in dict.fromkeys(wanted) if run not in records)
    return Plan(missing, expected, rates, failed[0] if failed else None)


def search(settings: Settings, method: str, records: Runs) -> tuple[list[float], float | None]:
    """Follows the search for a method's learning rate as far as there are records.

    The grid is extended by a decade beyond the best rate while that lies at an end; if none works, towards smaller
    ones. Of equally good rates one inside is taken before one at an end, and the smallest of those.

    Returns:
        The rates tried or to try, and the best one; None as long as one of them has no record. A method that is not
        tuned, because nothing is or its rate is given, has one rate and that is it.
    """
    given = settings.hyperparameters_of(method).get("lr")
    if given is not None or not settings.tune:
        rate = settings.lr if given is None else float(given)
        return [rate], rate
    grid = sorted(settings.grid)
    while all(Run(method, TUNING_SEED, lr) in records for lr in grid):
        scores = {lr: value_of(records[Run(method, TUNING_SEED, lr)]) for lr in grid}
        best = max(grid, key=lambda lr: (scores[lr], lr not in (grid[0], grid[-1]), -lr))
        if scores[best] == -math.inf:
            best = grid[0]
        if best == grid[0] and _decade(best, -1) >= MIN_RATE:
            grid.insert(0, _decade(best, -1))
        elif best == grid[-1] and _decade(best, 1) <= MAX_RATE and scores[best] > -math.inf:
            grid.append(_decade(best, 1))
        else:
            return grid, best
    return grid, None


def curves(settings: Settings, methods: Sequence[str], records: Runs) -> dict[str, list[tuple[float, float]]]:
    """Returns, of each method that was tuned, the validation scores by learning rate; −∞ where the run diverged."""
    found = {}
    for method in methods:
        if settings.tune and "lr" not in settings.hyperparameters_of(method):
            grid, _ = search(settings, method, records)
            runs = [Run(method, TUNING_SEED, lr) for lr in grid]
            found[method] = [(run.lr, value_of(records[run])) for run in runs if run in records]
    return found


def value_of(record: Mapping[str, Any]) -> float:
    """Returns a run's score on validation at its selected epoch; −∞ if it did not finish or has none."""
    if not _finished(record):
        return -math.inf
    score = float(record["epochs"][record["selected"] - 1]["score"])
    return -math.inf if math.isnan(score) else score


def _finished(record: Mapping[str, Any]) -> bool:
    return bool(record["status"] == "finished")


def _decade(lr: float, direction: int) -> float:
    """Ten times as much or a tenth, as a person would write it, so that a rate is the same number every time."""
    return float(f"{lr * 10.0**direction:.12g}")
