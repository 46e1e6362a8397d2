"""The front of fixed weights: what can be had without balancing, by weights that were searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FrontPoint:
    """One weighting that stayed fixed during a run, with the seed that configurations are chosen with.

    Attributes:
        weights: task → weight; they add up to the number of tasks.
        values: task → main measure on test, at the epoch that is best on validation.
        gains: task → that measure's relative gain over the run of the same seed that Δm is against, on test; tasks
            without such a run are left out.
        score: mean relative gain on validation, by which the best weighting is chosen.
    """

    weights: Mapping[str, float]
    values: Mapping[str, float]
    gains: Mapping[str, float]
    score: float
