"""Numbers that a person gives by task name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from equipoise._checks import check_known, check_number


def check_values(name: str, values: Mapping[str, float], **bounds: float) -> dict[str, float]:
    """Returns the values if each is a finite number within `check_number`'s bounds; `name` is the argument's.

    Raises:
        TypeError: `values` is not a mapping.
        ValueError: a value is out of bounds.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} must be a mapping from task to number, found {values!r}.")
    return {task: check_number(f"{name}[{task!r}]", value, **bounds) for task, value in values.items()}


def per_task(name: str, values: Mapping[str, float], tasks: Sequence[str]) -> Tensor:
    """Returns the values in the order of `tasks`, `[K]` float64; `name` is the argument's.

    Raises:
        ValueError: a name is not among `tasks`, or a task has no value.
    """
    check_known(name, values, tasks)
    missing = [task for task in tasks if task not in values]
    if missing:
        raise ValueError(
            f"{name}: nothing given for task {', '.join(map(repr, missing))}; expected a number for each of "
            f"{', '.join(map(repr, tasks))}."
        )
    return torch.tensor([values[task] for task in tasks], dtype=torch.float64, device="cpu")
