"""What a method costs on a problem: time per step and peak memory, relative to equal weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from equipoise.bench.experiment.batches import Batches
from equipoise.bench.experiment.learner import Learner
from equipoise.bench.experiment.trial import Trial
from equipoise.bench.problems import Problem, Splits
from equipoise.monitor import costs
from equipoise.monitor.costs import Cost

REFERENCE = "ew"
"""What times and memory are relative to; measured even if it is not compared."""

BATCHES = 4
"""So many batches are trained on, over and over."""


def memory_source(device: torch.device) -> str:
    """Says what the memory is measured by."""
    return "PyTorch's CUDA allocator" if device.type == "cuda" else "PyTorch's allocations, seen by its profiler"


def measure_costs(problem: Problem, data: Splits, trials: Sequence[Trial]) -> dict[str, Cost]:
    """Measures one trial per method, the reference's first; nothing else should run meanwhile.

    Returns:
        Method → cost; a method that fails on the way is left out, its run has said why; all are if the reference does.
    """
    by_method = {trial.method: trial for trial in trials}
    reference = trials[0]
    device = torch.device(reference.device)
    read = iter(Batches(problem, data.train, reference.batch_size, reference.seed))
    batches = [problem.to_device(batch, device) for batch in itertools.islice(read, BATCHES)]

    def make(method: str) -> Callable[[], object]:
        learner = Learner(problem, by_method[method])
        turns = itertools.cycle(batches)

        def step() -> None:
            batch = next(turns)
            if learner.method.needs_validation_losses:
                learner.observe(batch)
            learner.step(batch)

        return step

    return costs.measure_costs(make, list(by_method), device)[0]


def as_json(costs: Mapping[str, Cost], tried: Sequence[str], device: torch.device, threads: int) -> dict[str, Any]:
    """Returns what goes into `costs.json`."""
    return {
        "memory": memory_source(device),
        "threads": threads,
        "tried": list(tried),
        "methods": {method: vars(cost) for method, cost in costs.items()},
    }
