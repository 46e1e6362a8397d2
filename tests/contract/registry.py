"""Every registered method on the test network."""

from __future__ import annotations

import pytest
import torch
from networks import TASKS, Network, batch

import equipoise as eq

POTENTIALS = {"a": 0.9, "b": 0.6, "c": 0.8}
METRICS = [{"a": 0.5, "b": 0.3, "c": 0.7}, {"a": 0.6, "c": 0.9}, {"b": 0.55}]
NAMES = [*eq.list_methods(), *(f"single:{task}" for task in TASKS)]
PRESENT = ["abc", "ac", "abc", "b", "ab", "abc", "c", "bc", "abc", "a", "abc", "abc"]
"""The tasks that have a label in each step."""

POSITIVE = {"dwa", "ema", "rema", "dwema", "gls", "dwa-g", "rlw-g", "dtp-g", "amtl", "famo", "gradnorm"}
"""Methods that are undefined for losses ≤ 0, as they take a logarithm or divide by a loss: they leave the task out."""

RANDOM = {"rlw", "rlw-g", "pcgrad", "graddrop"}
LEARNED = {"uw", "imtl-l", "imtl"}
"""Methods with parameters of their own."""
STATELESS = {"ew", "rlw", "gls", "rlw-g", "imtl-g", "mgda", "pcgrad", "graddrop", "cagrad", "nash-mtl"}
"""Methods that keep nothing of a task."""

every_method = pytest.mark.parametrize("name", NAMES)


def has_aggregator(name):
    return name in {"gradnorm", "imtl-g", "imtl", "mgda", "pcgrad", "graddrop", "cagrad", "nash-mtl"}


def make(name, tasks=TASKS, seed=0, dtype=torch.float32, **options):
    """A new network and its method, from a seed."""
    model = Network().to(dtype)
    torch.manual_seed(seed)
    potentials = {task: POTENTIALS[task] for task in tasks} if name.startswith("amtl") else None
    method = eq.make_method(
        name, model, tasks, **{"lr": 0.02, "weight_decay": 0.01, "potentials": potentials, **options}
    )
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
