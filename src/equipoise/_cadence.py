"""Which steps take an aggregator's statistics, and which go on with the weights found last."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import Tensor

from equipoise._state import Flag


class Cadence:
    """Counts the steps of a cycle of n, of which the first takes statistics.

    A cycle begins anew where a task shares something that has no weight yet.

    Args:
        every: n.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._position = 0
        self._weighed: frozenset[str] = frozenset()
        self._before: tuple[Flag, int, frozenset[str]] | None = None  # unless the last step turns out to count
        self._waits = False

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        return vars(self).copy()

    @property
    def position(self) -> int:
        """Where in its cycle the next step is, from 0, which takes statistics, to n − 1."""
        self._settle()
        return self._position

    def holds(self, tasks: Collection[str], learns: bool) -> bool:
        """Whether the next step goes on with the weights that there are.

        Args:
            tasks: those that share something in it.
            learns: whether it learns something; else it need not take statistics that it would not keep.
        """
        if self._before is not None and (self._waits or self._before[0].arrived):
            self._settle()
        within = self._position > 0 if learns else self.every > 1
        return within and self._weighed.issuperset(tasks)

    def end(self, weighed: Iterable[str] | None, valid: Tensor | None, waits: bool) -> None:
        """Ends a step.

        Args:
            weighed: the tasks of which it has found a weight; none: the step counts for nothing. None: it held them.
            valid: whether it counts, 0-dim bool, which is looked at in the next step; None: it does.
            waits: the next step waits for that; else, if it has not arrived by then, this one counts.
        """
        before = self._position, self._weighed
        if weighed is None:
            self._position = (self._position + 1) % self.every
        elif found := frozenset(weighed):
            self._position = 1 % self.every
            self._weighed |= found
        self._before = None if valid is None or self.every == 1 else (Flag(valid), *before)
        self._waits = waits

    def restore(self, position: int, weighed: Iterable[str]) -> None:
        """Goes on from a position in a cycle, with weights of these tasks."""
        self._position, self._weighed, self._before = position % self.every, frozenset(weighed), None

    def _settle(self) -> None:
        if self._before is not None:
            valid, position, weighed = self._before
            if not valid:
                self._position, self._weighed = position, weighed
            self._before = None
