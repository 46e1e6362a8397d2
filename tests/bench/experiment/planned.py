"""Comparisons that are planned and never trained: what a run would leave is made up."""

import math
from dataclasses import replace

from equipoise.bench.experiment.planning import Planner
from equipoise.bench.experiment.settings import Settings
from equipoise.bench.problems import Regression
from equipoise.registry import BASE_OPTIMIZERS

TASKS = (Regression("a"), Regression("b"))
NAMES = ("a", "b")
SINGLES = ("single:a", "single:b")
GRIDS = {name: optimizer.grid for name, optimizer in BASE_OPTIMIZERS.items()}
GRID = GRIDS["adamw"]
BASE = Settings("digits", ("ew", "mao"), 3, False, 8, 64, 1000, 1e-3, 0.0, "constant", {}, "cpu", True)
PLAIN = replace(BASE, tune=False)


def plan(settings, tasks, records, times=None):
    return Planner(settings, tasks, times or {}).plan(records)


def record_of(trial, value, weights=(1.5, 0.5)):
    """What a run leaves that scores `value`; None: it diverged."""
    head = {**trial.head, "epochs": []}
    if value is None:
        return head | {"status": "diverged", "message": "a loss became nan"}
    shown = NAMES if trial.single is None else (trial.single,)
    error = 2.0 - (value if math.isfinite(value) else 0)
    errors = {name: {measure.name: error for measure in TASKS[0].measures} for name in shown}
    epoch = {"score": value, "validation": errors, "accuracy": dict.fromkeys(shown, 0.5)}
    epochs = [{**epoch, "score": 99.0}, {**epoch, "weights": dict(zip(NAMES, weights, strict=True))}]
    epochs[0]["weights"] = dict(zip(NAMES, (w + 0.1 for w in weights), strict=True))
    shares = {"shares": {"a": 0.7, "b": 0.3}} if trial.shares else {}
    return head | {"status": "finished", "selected": 2, "epochs": epochs, "test": errors} | shares


def carry_out(settings, score=lambda trial: 0.0, records=None, times=None, record_of=record_of):
    """Follows the plan to its end with runs that score what `score` says (None: diverged); returns how it went."""
    records, stages = dict(records or {}), []
    while True:
        found = plan(settings, TASKS, records, times)
        if not found.missing:
            return found, records, stages
        keys = [trial.key for trial in found.missing]
        assert not set(keys) & set(records)
        assert len(set(keys)) == len(keys)
        stages.append({(trial.method, trial.seed, trial.lr) for trial in found.missing})
        records |= {trial.key: record_of(trial, score(trial)) for trial in found.missing}


def peak_at(best):
    """Scores that fall off on both sides of a rate, by decades."""
    return lambda trial: -abs(math.log10(trial.lr / best))


def tried(found, row):
    return sorted({one.configuration.lr for one in found.tried.get(row, ())})


def rates(found):
    return {row: chosen.lr for row, chosen in found.configurations.items()}
