"""Looking at a comparison more than once: at which numbers of seeds, and how much error each look may spend."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import special

from equipoise.bench.experiment.statistics import LEVEL

GROWTH = 1.5
"""From look to look the number of seeds grows by no more than about this factor."""


def looks(first: int, last: int) -> tuple[int, ...]:
    """Returns the numbers of seeds at which a comparison is looked at: as few as growth by half allows, geometric.

    Args:
        first: seeds at the first look, at least 1.
        last: seeds at the last one, not fewer.

    Raises:
        ValueError: `last` is less than `first`, or `first` less than 1.

    Example:
        >>> looks(5, 20)
        (5, 7, 10, 14, 20)
    """
    if not 1 <= first <= last:
        raise ValueError(f"Looks are planned from 1 seed or more to no fewer, found {first} and {last}.")
    steps = math.ceil(math.log(last / first) / math.log(GROWTH) - 1e-9)
    ratio = (last / first) ** (1 / max(1, steps))
    return tuple(sorted({round(first * ratio**step) for step in range(steps)} | {last}))


def level(look: int, looks: Sequence[int]) -> float:
    """Returns the probability of a false claim that a look may spend, fixed before any result is seen.

    It is `α*(t_i) − α*(t_{i−1})` with `t` the share of the last look's seeds and Lan and DeMets' spending function
    after O'Brien and Fleming, `α*(t) = 2 (1 − Φ(z / √t))`, `z = Φ⁻¹(1 − LEVEL / 2)`: little at first, most of it at
    the end. The levels add up to `LEVEL`, so that over all looks together the probability of any false claim is at
    most `LEVEL`, whatever the looks' dependence (Boole). Lan and DeMets compute boundaries from the joint distribution
    of normal statistics, which are wider; that of many corrected t-tests is not known.

    Source: Lan and DeMets, "Discrete Sequential Boundaries for Clinical Trials", Biometrika 1983.

    Args:
        look: seeds at this look, one of `looks`.
        looks: seeds at every look that was planned, ascending.

    Raises:
        ValueError: `look` was not planned.

    Example:
        >>> round(level(20, (5, 10, 20)), 3)
        0.044
    """
    if look not in looks:
        raise ValueError(f"A look at {look} seeds was not planned; planned are {', '.join(map(str, looks))}.")
    earlier = [planned for planned in looks if planned < look]
    return _spent(look / looks[-1]) - (_spent(earlier[-1] / looks[-1]) if earlier else 0.0)


def _spent(share: float) -> float:
    """What may be spent up to this share of the seeds."""
    return float(2 * special.ndtr(special.ndtri(LEVEL / 2) / math.sqrt(share)))
