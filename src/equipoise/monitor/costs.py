"""What a way of training costs: time per step and peak memory, relative to a reference."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

ROUNDS = 9
ROUND_SECONDS = 0.05
MAX_STEPS = 10
"""A round gives a method up to ROUND_SECONDS, at least one step and at most MAX_STEPS."""
WARM_UP = 3
"""Steps before the clock counts."""

Make = Callable[[str], Callable[[], object]]
"""Makes, of a name, what takes one step of training."""


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


def measure_costs(
    make: Make, names: Sequence[str], device: torch.device, held: int = 0
) -> tuple[dict[str, Cost], dict[str, str]]:
    """Measures what each name makes, the reference's first; nothing else should run meanwhile.

    Time is taken in rounds in which a name and the reference have their turns, so that a machine that slows down slows
    both, and each is divided by the reference of its own round.

    Args:
        make: see `Make`; called twice a name.
        names: the reference's, then others.
        device: where they train.
        held: bytes that `make` need not build, since they are there: the model's.

    Returns:
        Name → cost, and name → why there is none, of those that failed; all have if the reference does.
    """
    reference, *others = names
    costs: dict[str, Cost] = {}
    failures: dict[str, str] = {}
    try:
        base = _Stepper(make(reference), device)
        base_steps = base.warm_up()
        base_bytes = held + _peak_of(make, reference, device)
        base_seconds = statistics.median(base.run(base_steps) for _ in range(ROUNDS))
    except Exception as error:
        return costs, dict.fromkeys(names, str(error))
    costs[reference] = Cost(1000 * base_seconds, 1.0, base_bytes / 1e6, 1.0)
    for name in others:
        try:
            stepper = _Stepper(make(name), device)
            steps = stepper.warm_up()
            rounds = [(base.run(base_steps), stepper.run(steps)) for _ in range(ROUNDS)]
            most = held + _peak_of(make, name, device)
        except Exception as error:
            failures[name] = str(error)
            continue
        costs[name] = Cost(
            milliseconds=1000 * statistics.median(own for _, own in rounds),
            relative_time=statistics.median(own / other for other, own in rounds),
            megabytes=most / 1e6,
            relative_memory=most / base_bytes,
        )
    return costs, failures


class _Stepper:
    """Takes steps, and the time."""

    def __init__(self, step: Callable[[], object], device: torch.device) -> None:
        self._step, self._device = step, device

    def warm_up(self) -> int:
        """Makes the first steps; returns how many fit into a round."""
        self.run(WARM_UP)
        return max(1, min(MAX_STEPS, int(ROUND_SECONDS / self.run(1))))

    def run(self, count: int) -> float:
        """Makes `count` steps; returns the mean time of one, in seconds."""
        _wait(self._device)
        started = time.perf_counter()
        for _ in range(count):
            self._step()
        _wait(self._device)
        return (time.perf_counter() - started) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_of(make: Make, name: str, device: torch.device) -> int:
    """Most bytes held at once while all is built and makes two steps."""

    def run() -> None:
        step = make(name)
        for _ in range(2):
            step()

    return peak_bytes(run, device)


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
