"""How each task's loss changed from one interval to the next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from equipoise._kept import Kept
from equipoise._state import TaskModule


class Intervals(TaskModule, ABC):
    """What a task's mean losses in its last two completed intervals say of it.

    The current step's loss belongs to the current interval and so does not count yet.

    An interval of n steps is n steps in which the task is present. An epoch without the task leaves its
    history as it is.

    Args:
        interval: number of steps, or "epoch" (completed by `end_epoch`).

    Raises:
        ValueError: `interval` is neither "epoch" nor an integer ≥ 1.
    """

    def __init__(self, interval: int | Literal["epoch"]) -> None:
        super().__init__()
        if interval != "epoch" and (type(interval) is not int or interval < 1):
            raise ValueError(f"interval must be 'epoch' or a number of steps ≥ 1, found {interval!r}.")
        self.interval = interval
        self._between = Kept[Tensor]()
        self.add_state("total", 0.0)
        self.add_state("steps", 0)
        self.add_state("last", 0.0)
        self.add_state("before_last", 0.0)

    @abstractmethod
    def between(self, last: Tensor, before_last: Tensor) -> Tensor:
        """Returns it `[K']`, of the two mean losses `[K']`, which are 0 before the first intervals are completed."""

    def forward(self, losses: Tensor) -> Tensor:
        """Returns it `[K']` and takes the losses `[K']` into the current interval."""
        state = self.state
        last, before_last = state.last, state.before_last

        def now() -> Tensor:
            return self.between(last, before_last)

        found = self._between(now, last, before_last) if self.interval == "epoch" else now()
        if self.interval == 1:  # each loss is an interval's mean
            self._take(losses, None)
            return found
        state.total = state.total + losses
        state.steps = state.steps + 1
        if self.interval != "epoch":
            self._complete(state.steps == self.interval)
        return found

    def end_epoch(self) -> None:
        """Completes the interval if it is an epoch."""
        if self.interval == "epoch":
            self._complete(self.state.steps > 0)

    def _complete(self, due: Tensor) -> None:
        """Completes the current interval of the tasks where `due` `[K']` holds."""
        state = self.state
        self._take(state.total / state.steps, due)
        state.total = state.total.masked_fill(due, 0.0)
        state.steps = state.steps.masked_fill(due, 0)

    def _take(self, means: Tensor, due: Tensor | None) -> None:
        """Takes the mean losses `[K']` of an interval, of the tasks where `due` `[K']` holds; None: of all."""
        state = self.state
        state.before_last = state.last if due is None else torch.where(due, state.last, state.before_last)
        state.last = means if due is None else torch.where(due, means, state.last)


class TrainingRate(Intervals):
    """Training rate: the ratio of a task's mean losses in its last two completed intervals.

    `r_k = L̄_k(i−1) / L̄_k(i−2)`, above one where the loss rises, below one where it falls, and 1 until two intervals of
    the task are completed. With `interval=1`, `r_k(t) = L_k(t−1) / L_k(t−2)`.
    """

    masked = True
    requires_positive = True

    def between(self, last: Tensor, before_last: Tensor) -> Tensor:
        """Returns the rates `[K']`."""
        return (last / before_last).nan_to_num(1.0, 1.0)  # 0/0 before the first interval is completed, then x/0


class LossChange(Intervals):
    """Change of a task's mean loss, `L̄_k(i−1) − L̄_k(i−2)`, and 0 until two intervals of the task are completed."""

    masked = True

    def __init__(self, interval: int | Literal["epoch"]) -> None:
        super().__init__(interval)
        self.add_state("completed", 0)

    def between(self, last: Tensor, before_last: Tensor) -> Tensor:
        """Returns the changes `[K']`."""
        return torch.where(self.state.completed > 1, last - before_last, 0.0)

    def _take(self, means: Tensor, due: Tensor | None) -> None:
        super()._take(means, due)
        self.state.completed = self.state.completed + (1 if due is None else due)
