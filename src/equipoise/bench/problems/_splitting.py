"""Splits into train, validation and test: classes in equal shares, or groups whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")


def split_by_class(
    labels: Sequence[Any] | NDArray[Any], seed: int, ends: Sequence[float] = (0.6, 0.8)
) -> dict[str, NDArray[np.int64]]:
    """Returns the rows of each split, with equal shares of every class, in random order within a class.

    Args:
        labels: the class of each row.
        seed: decides who comes where.
        ends: what share of a class lies before the end of the training split, and of the validation split.
    """
    generator, classes = np.random.default_rng(seed), np.asarray(labels)
    parts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in SPLITS}
    for label in np.unique(classes):
        indices = generator.permutation(np.flatnonzero(classes == label))
        at = np.round(np.array(ends) * len(indices)).astype(int)
        for part, found in zip(parts.values(), np.split(indices, at), strict=True):
            part.append(found)
    return {name: np.concatenate(part) for name, part in parts.items()}


def split_by_group(groups: Sequence[Any] | NDArray[Any], seed: int) -> dict[str, NDArray[np.int64]]:
    """Returns the rows of each split: 60, 20 and 20 % of the groups, each of them whole."""
    names, group_of_row = np.unique(np.asarray(groups), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    parts = np.split(order, np.round(np.array([0.6, 0.8]) * len(names)).astype(int))
    return {name: np.flatnonzero(np.isin(group_of_row, part)) for name, part in zip(SPLITS, parts, strict=True)}
