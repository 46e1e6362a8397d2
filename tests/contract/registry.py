"""Every registered method on the test network."""

from __future__ import annotations

import pytest

import equipoise as eq
from equipoise.aggregators import RowStateAggregator
from equipoise.registry import METHODS
from equipoise.testing._subject import METRICS, POTENTIALS, PRESENT, TASKS, Subject, step, train

NAMES = [*METHODS, "mao@sgd", *(f"single:{task}" for task in TASKS)]
HYPERPARAMETERS = {"relobralo": {"lookback": 0.5}, "pbi": {"theta": 0.5}, "coba": {"warmup": 2, "history": 3}}
"""Given to methods whose defaults would not show what the tests are about: ReLoBRaLo seldom draws what makes a
difference, PBI lets small losses rise to the proportions that are preferred, and CoBa's warm-up is long."""

ALWAYS = {"lr-annealing": TASKS[0]}
"""The task that a method cannot do without: the residual, which the others are brought to."""

SUBJECTS = {
    name: Subject(name, name.partition("single:")[2] or None, ALWAYS.get(name), **HYPERPARAMETERS.get(name, {}))
    for name in NAMES
}

every_method = pytest.mark.parametrize("name", NAMES)


def make(name, **options):
    """A new network and its method, from a seed."""
    return SUBJECTS[name].make(**options)


def parts(name):
    """The objective and the aggregator of a method, and all inside them."""
    return SUBJECTS[name].parts


def has_aggregator(name):
    return name in METHODS and METHODS[name].aggregator is not None


def is_optimizer(name):
    """Whether the method is an optimizer itself, as MAO is."""
    method = name.partition("@")[0]
    return method in METHODS and METHODS[method].optimizer is not None


GRAMIAN = {name for name in NAMES if any(isinstance(part, eq.GramianAggregator) for part in parts(name))}
"""Methods that need of the task gradients their Gramian alone."""

POSITIVE = {name for name in NAMES if any(part.requires_positive for part in parts(name))}
"""Methods that are undefined for losses ≤ 0, as they take a logarithm or divide by a loss: they leave the task out."""

KEEP_ROWS = {name for name in NAMES if any(isinstance(part, RowStateAggregator) for part in parts(name))}
"""Methods whose state is as large as the tasks' gradients, and begins with the first step."""

RANDOM = {name for name in NAMES if any(part.generator is not None for part in parts(name))}

__all__ = ["METRICS", "POTENTIALS", "PRESENT", "step", "train"]
