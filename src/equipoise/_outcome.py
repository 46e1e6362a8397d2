"""What a step came to, for whoever commits and returns it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """What a step came to.

    Attributes:
        weights: task → the aggregator's weight; empty if it has none.
        valid: whether the step counts, 0-dim bool; None: it does.
        usable: which of these tasks take part, bool; None: all.
        weighed: the tasks of which weights were found; None: those found before were held.
    """

    weights: Mapping[str, Tensor]
    valid: Tensor | None
    usable: Tensor | None = None
    weighed: Sequence[str] | None = ()
