"""What a method costs: time per step and peak memory, relative to equal weights."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from equipoise.bench.experiment.batches import Batches
from equipoise.bench.experiment.learner import Learner
from equipoise.bench.experiment.trial import Trial
from equipoise.bench.problems import Problem, Splits
from equipoise.bench.problems._base import Batch

REFERENCE = "ew"
"""What times and memory are relative to; measured even if it is not compared."""

ROUNDS = 9
ROUND_SECONDS = 0.05
MAX_STEPS = 10
"""A round gives a method up to ROUND_SECONDS, at least one step and at most MAX_STEPS."""
WARM_UP = 3
"""Steps before the clock counts."""


@dataclass(frozen=True)
class Cost:
    """A method's cost.

    Attributes:
        milliseconds: median time of a step.
        relative_time: median over rounds of that time by the reference's in the same round.
        megabytes: most memory held at once in building the model and two steps: parameters, gradients, states,
            activations.
        relative_memory: by the reference's.
    """

    milliseconds: float
    relative_time: float
    megabytes: float
    relative_memory: float


def memory_source(device: torch.device) -> str:
    """Says what the memory is measured by."""
    return "PyTorch's CUDA allocator" if device.type == "cuda" else "PyTorch's allocations, seen by its profiler"


def measure_costs(problem: Problem, data: Splits, trials: Sequence[Trial]) -> dict[str, Cost]:
    """Measures one trial per method, the reference's first; nothing else should run meanwhile.

    Time is taken in rounds in which the method and the reference have their turns, so that a machine that slows down
    slows both, and each method is divided by the reference of its own round.

    Returns:
        Method → cost; a method that fails on the way is left out, and all are if the reference does.
    """
    reference, *others = trials
    batches = _batches(problem, data, reference)
    costs: dict[str, Cost] = {}
    try:
        base = _Stepper(problem, reference, batches)
        base_steps = base.warm_up()
        base_bytes = _peak_of(problem, reference, batches[0])
        base_seconds = statistics.median(base.run(base_steps) for _ in range(ROUNDS))
    except Exception:  # its run has said why
        return costs
    costs[reference.method] = Cost(1000 * base_seconds, 1.0, base_bytes / 1e6, 1.0)
    for trial in others:
        try:
            stepper = _Stepper(problem, trial, batches)
            steps = stepper.warm_up()
            rounds = [(base.run(base_steps), stepper.run(steps)) for _ in range(ROUNDS)]
            held = _peak_of(problem, trial, batches[0])
        except Exception:  # its run has said why
            continue
        costs[trial.method] = Cost(
            milliseconds=1000 * statistics.median(own for _, own in rounds),
            relative_time=statistics.median(own / other for other, own in rounds),
            megabytes=held / 1e6,
            relative_memory=held / base_bytes,
        )
    return costs


class _Stepper:
    """Trains one method on the same few batches, over and over."""

    def __init__(self, problem: Problem, trial: Trial, batches: Sequence[Batch]) -> None:
        self._batches = batches
        self._device = torch.device(trial.device)
        self._learner = Learner(problem, trial)
        self._next = 0

    def warm_up(self) -> int:
        """Makes the first steps; returns how many fit into a round."""
        self.run(WARM_UP)
        return max(1, min(MAX_STEPS, int(ROUND_SECONDS / self.run(1))))

    def run(self, count: int) -> float:
        """Makes `count` steps; returns the mean time of one, in seconds."""
        _wait(self._device)
        started = time.perf_counter()
        for _ in range(count):
            batch = self._batches[self._next % len(self._batches)]
            self._learner.step(batch)
            self._next += 1
        _wait(self._device)
        return (time.perf_counter() - started) / count


def _batches(problem: Problem, data: Splits, trial: Trial) -> list[Any]:
    iterator = iter(Batches(problem, data.train, trial.batch_size, trial.seed))
    return [problem.to_device(batch, torch.device(trial.device)) for batch, _ in zip(iterator, range(4), strict=False)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_of(problem: Problem, trial: Trial, batch: Batch) -> int:
    """Most bytes held at once while the model is built and makes two steps."""

    def run() -> None:
        learner = Learner(problem, trial)
        for _ in range(2):
            learner.step(batch)

    return peak_bytes(run, torch.device(trial.device))


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Returns the most bytes that PyTorch holds at once while `run()` is called, beyond those before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes to the terminal otherwise
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def as_json(costs: Mapping[str, Cost], tried: Sequence[str], device: torch.device, threads: int) -> dict[str, Any]:
    """Returns what goes into `costs.json`."""
    return {
        "memory": memory_source(device),
        "threads": threads,
        "tried": list(tried),
        "methods": {method: vars(cost) for method, cost in costs.items()},
    }
