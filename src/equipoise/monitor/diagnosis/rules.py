"""From regimes to the methods that fit: a table, after what the methods' papers say that they do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from equipoise.monitor.diagnosis.regimes import OPPOSED, SIZE, SIZE_FROM, SPEED, Regime

BY_SCALE = "size by scale"
"""Gradients of unlike size that would be within the threshold if every loss were divided by its own mean."""


@dataclass(frozen=True)
class Rule:
    """What fits where all of `when` is found.

    Attributes:
        when: regimes, or `BY_SCALE`.
        methods: name of the method → why.
    """

    when: frozenset[str]
    methods: Mapping[str, str]


RULES = (
    Rule(
        frozenset({SIZE, OPPOSED}),
        {
            "imtl-g": "its update has the same projection on every task's gradient, whatever their sizes",
            "nash-mtl": "its update does not depend on the gradients' sizes, and helps every task",
            "mao": "every task has moments of its own, so that sizes no longer count where tasks pull apart",
        },
    ),
    Rule(
        frozenset({SIZE, SPEED}),
        {
            "famo": "it has all losses fall at one relative rate, in one backward pass",
            "gradnorm": "it draws gradient norms together, and gives slow tasks more",
            "mao": "every task moves the shared parameters about as far",
        },
    ),
    Rule(
        frozenset({BY_SCALE}),
        {
            "ema": "it divides every loss by its moving average, which is what sets the gradients apart here",
            "imtl-l": "it learns one scale a loss, in one backward pass",
            "mao": "every task moves the shared parameters about as far, whatever its loss's scale",
        },
    ),
    Rule(
        frozenset({SIZE}),
        {
            "mao": "every task moves the shared parameters about as far, which the losses' scales would not do here",
            "imtl-g": "its update has the same projection on every task's gradient",
            "gradnorm": "it draws gradient norms together, on the last shared layer where the model names it",
        },
    ),
    Rule(
        frozenset({OPPOSED}),
        {
            "cagrad": "it helps the task that gains least from the step, and stays near the mean gradient",
            "pcgrad": "it projects away what two tasks undo of each other",
            "nash-mtl": "its update helps every task",
        },
    ),
    Rule(
        frozenset({SPEED}),
        {
            "famo": "it has all losses fall at one relative rate, in one backward pass",
            "dwa": "it gives losses that fall slowly more weight, in one backward pass",
            "gradnorm": "it gives slow tasks longer gradients",
        },
    ),
    Rule(frozenset(), {"ew": "no task stands back for another"}),
)
"""The first of which all is surely found holds."""


def fitting(regimes: tuple[Regime, ...], by_scale: bool) -> Rule:
    """Returns the rule that holds.

    Args:
        regimes: the answers; only sure ones count.
        by_scale: whether dividing each loss by its mean would bring the contributions within `SIZE_FROM`.
    """
    traits = {regime.name for regime in regimes if regime.found and regime.sure}
    if SIZE in traits and by_scale:
        traits.add(BY_SCALE)
    return next(rule for rule in RULES if rule.when <= traits)


def explained_by_scale(shares: Mapping[str, float], losses: Mapping[str, float]) -> bool:
    """Returns whether contributions would be within `SIZE_FROM` if every loss were divided by its mean.

    Args:
        shares: task → contribution.
        losses: task → mean absolute loss.
    """
    divided = [shares[task] / losses[task] for task in shares if losses[task] > 0]
    return len(divided) == len(shares) and max(divided) < SIZE_FROM * min(divided)
