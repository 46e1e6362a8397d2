"""How a row's runs are made from the settings, and with which seed configurations are chosen."""

from __future__ import annotations

from typing import Any

from equipoise.bench.experiment.rows import FIXED, parts_of, replayed_by, task_of
from equipoise.bench.experiment.settings import OWN, Settings
from equipoise.bench.experiment.trial import Trial
from equipoise.bench.experiment.tuning import Configuration, start_rate

TUNING_SEED = 0
"""The seed that learning rates alone are chosen with; its run at the chosen rate is one of the comparison's."""

SELECTION_SEED = 1_000_000
"""The seed that configurations are chosen with where many are tried: the best of many is lucky with its seed, and that
seed must not count as evidence. No comparison has so many seeds."""

FIXED_BUDGET = 16
"""Weightings that `fixed` tries unless a budget is given."""


def start_of(settings: Settings, row: str) -> Configuration:
    """Returns a row's configuration where nothing is searched, and where a search begins."""
    given = settings.hyperparameters_of(row)
    _, optimizer = parts_of(row)
    own = {name: value for name, value in given.items() if name not in OWN}
    return Configuration(
        lr=float(given.get("lr", start_rate(optimizer, settings.lr))),
        weight_decay=float(given.get("weight_decay", settings.weight_decay)),
        epochs=settings.epochs,
        hyperparameters=own,
    )


def make_trial(settings: Settings, row: str, seed: int, configuration: Configuration, **given: Any) -> Trial:
    """Returns a run of a row; `given`: what `Trial` has besides the settings and the configuration."""
    return Trial(
        method=row,
        seed=seed,
        epochs=configuration.epochs,
        batch_size=settings.batch_size,
        evaluation_batch_size=settings.evaluation_batch_size,
        lr=configuration.lr,
        weight_decay=configuration.weight_decay,
        schedule=settings.schedule,
        hyperparameters=configuration.hyperparameters,
        priorities=settings.priorities if _takes_priorities(row) else {},
        device=settings.device,
        devices=settings.devices,
        precision=settings.precision,
        strategy=settings.strategy,
        source="" if replayed_by(row) is not None else settings.sources.get(parts_of(row)[0], ""),
        **given,
    )


def _takes_priorities(row: str) -> bool:
    """Whether what is wanted more is told to a row: a single task has nothing to prefer, replayed weights have it."""
    return task_of(row) is None and replayed_by(row) is None


def selection_seed(settings: Settings) -> int:
    """Returns the seed that configurations are chosen with."""
    return SELECTION_SEED if settings.budget is not None or has_fixed(settings) else TUNING_SEED


def has_fixed(settings: Settings) -> bool:
    """Returns whether fixed weights are searched."""
    return any(parts_of(row)[0] == FIXED for row in settings.methods)
