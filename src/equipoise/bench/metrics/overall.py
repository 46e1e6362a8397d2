"""Each paper's overall score: one number of the numbers of its tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping


def overall_sum(values: Mapping[str, float]) -> float:
    """The tasks' sum: the EMA paper's "overall" on AffWild2 and AffectNet.

    On AffWild2 the tasks' numbers are the action units' mean F1, the expression's macro F1 and the mean concordance
    of valence and arousal; on AffectNet the last two.

    Args:
        values: task → its number.

    Raises:
        ValueError: `values` is empty.

    Source: Lakkapragada et al., "Mitigating Negative Transfer in Multi-Task Learning with Exponential Moving
    Average Loss Weighting Strategies", AAAI 2023, Table 2.

    Example:
        >>> from equipoise.bench.metrics import overall_sum
        >>> round(overall_sum({"expression": 0.427, "valence-arousal": 0.471}), 3)
        0.898
    """
    return math.fsum(_numbers(values))


def overall_mean(values: Mapping[str, float]) -> float:
    """The tasks' mean: the EMA paper's score on CelebA and the AMTL paper's "multi-task accuracy".

    On CelebA each of the 40 attributes is a task and its number is F1. In the AMTL paper the numbers are accuracies in
    [0, 1]: mIoU, the share of depths with δ<1.25, that of normals within 11.25°, detection's mAP.

    Args:
        values: task → its number.

    Raises:
        ValueError: `values` is empty.

    Source: Lakkapragada et al., AAAI 2023, Table 1; Yun & Cho, "Achievement-based Training Progress Balancing for
    Multi-Task Learning", ICCV 2023, Table 1.

    Example:
        >>> from equipoise.bench.metrics import overall_mean
        >>> overall_mean({"segmentation": 0.25, "depth": 0.75})
        0.5
    """
    return math.fsum(_numbers(values)) / len(values)


def _numbers(values: Mapping[str, float]) -> list[float]:
    if not values:
        raise ValueError("values is empty: pass the number of every task.")
    return list(values.values())
