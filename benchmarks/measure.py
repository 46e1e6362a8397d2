"""Time of alternatives, interleaved, as ratios; and what they launch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

Step = Callable[[], object]
Turn = Callable[[], float]
"""Makes a step as often as lasts a while; returns the seconds of one."""


@dataclass(frozen=True)
class Ratio:
    """A time relative to another of the same round.

    Attributes:
        milliseconds: median of the time itself.
        median, low, high: of the ratio over rounds; low and high are its quartiles.
    """

    milliseconds: float
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Times:
    """Seconds a step, one entry a round.

    Attributes:
        own: the alternative's.
        reference: the reference's, whose turn came just before.
    """

    own: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)


def make_turn(step: Step, device: torch.device, least: float, clock: Callable[[], float] = time.perf_counter) -> Turn:
    """Warms a step up, and finds how often it is made in a turn: until that lasts `least` seconds.

    The device is waited for before the clock is read. What the step raises is raised.
    """
    repeats = 1

    def turn() -> float:
        _wait(device)
        start = clock()
        for _ in range(repeats):
            step()
        _wait(device)
        return (clock() - start) / repeats

    if turn() < 1:  # the first call of a quick step takes longer than the rest
        while turn() * repeats < least:
            repeats *= 2
    return turn


def interleave(turns: Mapping[str, Turn], rounds: int, reference: str) -> dict[str, Times]:
    """Lets all take their turns, round after round, each right after the reference, so that a drift slows both alike.

    Each round has an order of its own: what memory one step leaves to the allocator can help or hurt the next. The
    reference is compared with itself, too: how far that is from 1 is what noise does.

    Args:
        turns: name → its turn.
        rounds: turns of each.
        reference: one of the names.

    Returns:
        Name → its times.
    """
    times = {name: Times() for name in turns}
    order, random = list(turns), Random(0)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            times[name].reference.append(turns[reference]())
            times[name].own.append(turns[name]())
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def relative(times: Sequence[float], reference: Sequence[float]) -> Ratio:
    """Divides each round's time by the reference's of the same round."""
    ratios = [own / base for own, base in zip(times, reference, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Ratio(1000 * statistics.median(times), statistics.median(ratios), quartiles[0], quartiles[2])


def launches(step: Step, device: torch.device) -> int:
    """Counts what a step launches: kernels on a GPU, as its profiler sees them.

    On a CPU it counts the operators that reach PyTorch's dispatcher below autograd and `torch.vmap` and compute
    something: no views, and no memory that is made and not yet filled. On a GPU each would be a launch, or a few.
    """
    if device.type == "cuda":
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            step()
            _wait(device)
        return sum(event.count for event in profiler.key_averages() if "LaunchKernel" in event.key)
    with _Operators() as counter:
        step()
    return counter.count


class _Operators(TorchDispatchMode):
    """Counts operators that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or "empty" in func.name())
        return func(*args, **(kwargs or {}))
