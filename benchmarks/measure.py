"""Time of alternatives, interleaved, as ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

import torch

Step = Callable[[], object]


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


def interleave(steps: Mapping[str, Step], device: torch.device, rounds: int, least: float) -> dict[str, list[float]]:
    """Times all steps in turn, round after round, so that a machine that drifts slows all of them.

    Each round has an order of its own: what memory one step leaves to the allocator can help or hurt the next.

    Args:
        steps: name → what is timed; each has run before.
        device: waited for before a clock is read.
        rounds: turns of each.
        least: seconds that a turn lasts at least; a quick step is repeated.

    Returns:
        Name → seconds a step, one entry a round.
    """
    repeats = {name: max(1, round(least / max(_time(step, 1, device), 1e-6))) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    order, random = list(steps), Random(0)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            times[name].append(_time(steps[name], repeats[name], device))
    return times


def _time(step: Step, repeats: int, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    _wait(device)
    return (time.perf_counter() - start) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def relative(times: list[float], reference: list[float]) -> Ratio:
    """Divides each round's time by the reference's of the same round."""
    ratios = [own / base for own, base in zip(times, reference, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Ratio(1000 * statistics.median(times), statistics.median(ratios), quartiles[0], quartiles[2])
