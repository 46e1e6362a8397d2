"""Whether runs were trained to their end: what follows from a comparison that stops before is how fast methods are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_EPOCHS = 5
"""Fewer epochs than this show nothing about the length of training."""

RISE = 0.01
"""A rise in the score over a fifth of training that is smaller than this (1 % of a measure) changes no verdict."""

NOISE = 3.0
"""A rise is more than noise if it is this many of its standard errors."""


@dataclass(frozen=True)
class TrainingLength:
    """What the curves on validation say about the number of epochs.

    Attributes:
        rising: rows that were still rising, if that keeps anything from following.
        known: whether curves that do not rise show that training was long enough: not in fewer than `MIN_EPOCHS`
            epochs, and not under a falling learning rate, which flattens every curve in the end.
        longer: the number of epochs to take where rows were rising: twice as many.
    """

    rising: tuple[str, ...] = ()
    known: bool = True
    longer: int = 0


TRAINED = TrainingLength()
"""Long enough."""


def still_rising(records: Iterable[Mapping[str, Any]], epochs: int, schedule: str) -> bool:
    """Returns whether nothing follows yet from a comparison, since it was stopped while its runs were rising.

    See `training_length`.
    """
    return bool(training_length(records, epochs, schedule).rising)


def training_length(records: Iterable[Mapping[str, Any]], epochs: int, schedule: str) -> TrainingLength:
    """Says which rows were still rising when they were stopped, by their scores on validation.

    A row's rise is its mean score in the last fifth of its epochs less that in the fifth before, mean over its runs;
    the rise of a single-task row is relative to its measure. A row is still rising if

    1. the rise is more than `RISE`, and
    2. it is more than `NOISE` standard errors, the noise of an epoch being taken from the differences of neighbouring
       epochs in the second half of training, and
    3. the best epoch is in the last tenth in more than half of the row's runs. Not asked under a falling learning
       rate: there a rise that goes on shows that training was too short, but flat curves prove nothing.

    Nothing follows from a comparison where a method is still rising that would catch up with the best one if it went
    on so for as long again, or where most single-task baselines are. A method that is far behind and slow, or a curve
    that rises ever less, keeps nobody from an answer.

    Args:
        records: a comparison's, one a run; those that did not finish are ignored.
        epochs: how many each was given; a row may have had more, the same in all of its runs.
        schedule: of the learning rate, a name in `SCHEDULES`.
    """
    constant = schedule == "constant"
    if epochs < MIN_EPOCHS:
        return TrainingLength(known=False)
    curves: dict[str, list[NDArray[np.float64]]] = {}
    for record in records:
        if record["status"] == "finished":
            scores = np.array([epoch["score"] for epoch in record["epochs"]], dtype=float)
            single = record["method"].startswith("single:")
            curves.setdefault(record["method"], []).append(scores / abs(scores[-1] or 1) if single else scores)
    rises = {row: _rise(np.array(found), constant) for row, found in curves.items()}
    methods = {row: found for row, found in curves.items() if not row.startswith("single:")}
    ends = {
        row: float(np.mean([curve[-max(1, len(curve) // 5) :] for curve in found])) for row, found in methods.items()
    }
    best = max((end for end in ends.values() if math.isfinite(end)), default=math.nan)
    rising = [row for row, end in ends.items() if rises[row] > 0 and end + 5 * rises[row] >= best]
    singles = [row for row in curves if row not in methods]
    slow = [row for row in singles if rises[row] > 0]
    return TrainingLength((*rising, *(slow if len(slow) > len(singles) / 2 else ())), constant, 2 * epochs)


def _rise(scores: NDArray[np.float64], constant: bool) -> float:
    """The rise of a row's scores [runs, epochs] from fifth to fifth at the end; 0 if it is not still rising."""
    runs, epochs = scores.shape
    fifth, tenth = max(1, epochs // 5), max(1, epochs // 10)
    rise = float(np.mean(scores[:, -fifth:]) - np.mean(scores[:, -2 * fifth : -fifth]))
    noise = float(np.std(np.diff(scores[:, epochs // 2 :]), ddof=1)) / math.sqrt(2)
    late = np.mean(np.argmax(scores, axis=1) >= epochs - tenth) > 0.5
    certain = rise > max(RISE, NOISE * noise * math.sqrt(2 / (fifth * runs)))  # False where a score is NaN
    return rise if certain and (late or not constant) else 0.0
