"""Every registered method on the test network."""

from __future__ import annotations

import pytest
import torch
from networks import TASKS, Network, batch

import equipoise as eq
from equipoise._state import TaskModule
from equipoise.registry import METHODS

POTENTIALS = {"a": 0.9, "b": 0.6, "c": 0.8}
METRICS = [{"a": 0.5, "b": 0.3, "c": 0.7}, {"a": 0.6, "c": 0.9}, {"b": 0.55}]
NAMES = [*eq.list_methods(), *(f"single:{task}" for task in TASKS)]
HYPERPARAMETERS = {"relobralo": {"lookback": 0.5}, "pbi": {"theta": 0.5}}
"""Given to methods whose defaults would not show what the tests are about: ReLoBRaLo seldom draws what makes a
difference, and PBI lets small losses rise to the proportions that are preferred."""

PRESENT = ["abc", "ac", "abc", "b", "ab", "abc", "c", "bc", "abc", "a", "abc", "abc"]
"""The tasks that have a label in each step."""

every_method = pytest.mark.parametrize("name", NAMES)


def make(name, tasks=TASKS, seed=0, dtype=torch.float32, **options):
    """A new network and its method, from a seed."""
    model = Network().to(dtype)
    torch.manual_seed(seed)
    potentials = {task: POTENTIALS[task] for task in tasks} if name.startswith("amtl") else None
    given = {"lr": 0.02, "weight_decay": 0.01, "potentials": potentials, **HYPERPARAMETERS.get(name, {}), **options}
    method = eq.make_method(name, model, tasks, **given)
    return model, method


def step(model, method, index, tasks):
    """One training step with the losses of `tasks`; returns the weights."""
    method.zero_grad()
    weights = method.backward(model.losses(batch(index), tasks))
    method.step()
    if method.needs_after_step:
        with torch.no_grad():
            method.after_step(model.losses(batch(index), tasks))
    return weights


def train(model, method, start=0, stop=12, present=PRESENT):
    """Trains on steps `start` to `stop`, with an evaluation after every third."""
    for index in range(start, stop):
        step(model, method, index, present[index])
        if index % 3 == 2:
            evaluated = METRICS[index // 3 % len(METRICS)]
            method.end_epoch({task: value for task, value in evaluated.items() if task in method.tasks})


def parts(name):
    """The objective and the aggregator of a method, and all inside them."""
    model, method = make(name)
    step(model, method, 0, TASKS)  # what depends on the tasks is made at last
    modules = [] if method.balancer is None else method.balancer.modules()
    return [part for part in modules if isinstance(part, TaskModule)]


def has_aggregator(name):
    return name in METHODS and METHODS[name].aggregator is not None


def is_optimizer(name):
    """Whether the method is an optimizer itself, as MAO is."""
    return name in METHODS and METHODS[name].optimizer is not None


GRAMIAN = {name for name in NAMES if any(isinstance(part, eq.GramianAggregator) for part in parts(name))}
"""Methods that need of the task gradients their Gramian alone."""

POSITIVE = {name for name in NAMES if any(part.requires_positive for part in parts(name))}
"""Methods that are undefined for losses ≤ 0, as they take a logarithm or divide by a loss: they leave the task out."""

RANDOM = {name for name in NAMES if any(part.generator is not None for part in parts(name))}
LEARNED = {name for name in NAMES if any(part._learned for part in parts(name))}
"""Methods with parameters of their own."""

STATELESS = {
    name
    for name in METHODS
    if not is_optimizer(name) and not any([*part._learned, *part.buffers(recurse=False)] for part in parts(name))
}
"""Methods that keep nothing of a task."""
