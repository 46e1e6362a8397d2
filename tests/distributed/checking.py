"""What checks of several ranks are made of; each check runs on all ranks."""

from __future__ import annotations

import functools

import scenarios
import torch.distributed as dist
from scenarios import TASKS, Trainer, samples
from torch.distributed.tensor import DTensor

BOUND = 1e-12
CHECKS = {}


def check(*sizes):
    """Registers a check for launches of these sizes."""

    def register(function):
        @functools.wraps(function)
        def run(rank, size, checkpoints):
            function(rank, size, checkpoints)
            return "held"

        run.sizes = set(sizes or (2, 4))
        CHECKS[function.__name__] = run
        return run

    return register


@functools.cache
def alone():
    """A group of this rank only: what uses it is one process."""
    return [dist.new_group([rank]) for rank in range(dist.get_world_size())][dist.get_rank()]


def one_process(name, steps, pattern, **settings):
    return Trainer(name, process_group=alone(), **settings).train(steps, pattern)


def losses_of(model, step=0, rows=slice(None)):
    x, targets = samples(step)
    outputs = model(x[rows])
    return {task: (outputs[task] - targets[task][rows]).square().mean() for task in TASKS}


def mine(rank, size):
    width = scenarios.SAMPLES // size
    return slice(rank * width, (rank + 1) * width)


def gradients(model):
    found = [p.grad for p in model.parameters() if p.grad is not None]
    return [g.full_tensor() if isinstance(g, DTensor) else g for g in found]
