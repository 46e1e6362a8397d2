"""Whether runs were trained to their end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrainingLength:
    """What the curves on validation say about the number of epochs.

    Attributes:
        rising: rows that are still rising and so keep anything from following yet.
        known: whether curves that do not rise show that training was long enough.
    """

    rising: tuple[str, ...] = ()
    known: bool = True


def training_length(records: Iterable[Mapping[str, Any]], epochs: int, schedule: str) -> TrainingLength:
    """Says which rows are still rising."""
    raise NotImplementedError


def still_rising(records: Iterable[Mapping[str, Any]], epochs: int, schedule: str) -> bool:
    """Returns whether nothing follows yet from a comparison, since it was stopped while its runs were rising.

    Args:
        records: a comparison's, one a run; those that did not finish are ignored.
        epochs: how many each was given.
        schedule: of the learning rate, a name in `SCHEDULES`.
    """
    return bool(training_length(records, epochs, schedule).rising)
