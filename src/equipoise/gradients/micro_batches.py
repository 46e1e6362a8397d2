"""What several calls of `backward` add up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from equipoise.gradients.batch import Batch
from equipoise.gradients.jacobian import Rows
from equipoise.gradients.sharded import locals_of


@dataclass(frozen=True)
class MicroBatches:
    """Task gradients of the micro-batches so far; `plus` gives a new one, so that a failed call changes nothing.

    Without counts, gradients and losses add up, as in plain PyTorch. With counts they are kept as sums over the
    samples, and `total` divides by the number of samples, so that the result is that of one large batch.
    """

    rows: Rows = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] | None = None

    def __bool__(self) -> bool:
        return bool(self.rows)

    def plus(self, batch: Batch, rows: Rows) -> MicroBatches:
        """Adds a micro-batch's task gradients.

        Raises:
            ValueError: counts are given for some micro-batches and not for others.
        """
        if self and (self.counts is None) != (batch.counts is None):
            raise ValueError("Give counts for every micro-batch that is accumulated, or for none.")
        values = dict(zip(batch.tasks, batch.values.unbind(), strict=True))
        counts = None
        if batch.counts is not None:
            new = dict(zip(batch.tasks, batch.counts.unbind(), strict=True))
            counts = _added(self.counts or {}, new)
            values = {task: value * new[task] for task, value in values.items()}
            for task, row in rows.items():
                _scale(row, new[task])
        return MicroBatches(add_rows(self.rows, rows), _added(self.values, values), counts)

    def total(self, tasks: Sequence[str]) -> tuple[Rows, Tensor]:
        """Returns the rows of all micro-batches together, in the order of `tasks`, and the losses `[K']`.

        Divides in place by the counts: call it once, at the last micro-batch.
        """
        rows = {task: self.rows[task] for task in tasks if task in self.rows}
        values = torch.stack([self.values[task] for task in rows])
        if self.counts is not None:
            values = values / torch.stack([self.counts[task] for task in rows])
            for task, row in rows.items():
                _scale(row, self.counts[task].reciprocal())
        return rows, values


def add_rows(old: Rows, new: Rows) -> Rows:
    """Adds gradients task by task, leaf by leaf; changes neither argument."""
    return {**old, **{task: _added(old.get(task, {}), row) for task, row in new.items()}}


def _added(old: Mapping, new: Mapping) -> dict:  # type: ignore[type-arg]
    return {**old, **{key: old[key] + value if key in old else value for key, value in new.items()}}


def _scale(row: dict[Tensor, Tensor], factor: Tensor) -> None:
    if row:
        torch._foreach_mul_(locals_of(row.values()), factor)
