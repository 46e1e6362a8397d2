"""Looking at a step's task gradients while they are there: what `Balancer.watch` and `MAO.watch` take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from equipoise.gradients.jacobian import TaskRows
from equipoise.gradients.ranks import Alone
from equipoise.gradients.step import Step


class Watcher(Protocol):
    """Is shown the task gradients of the steps it asks for.

    They belong to the step: a watcher changes nothing, and copies what it keeps.
    """

    @property
    def due(self) -> bool:
        """Whether it asks for this step; the same in all its micro-batches, and on all ranks."""

    def see_scalar(self) -> None:
        """Takes note that the backward pass of a scalar is a step of its own: what was shown before is not in it."""

    def around(self, ranks: Alone, step: Step, coefficients: Tensor) -> AbstractContextManager[None]:
        """Encloses one backward pass of `Σ_k c_k L_k`, which by itself has no task gradients to show.

        Args:
            ranks: can run others.
            step: the K' tasks present; their graphs are still there.
            coefficients: `c_k` `[K']`.
        """

    def see_rows(self, rows: TaskRows) -> None:
        """Takes the rows `c_k g_k` of a step's micro-batches together, unscaled, before they are reduced."""

    def see_weights(self, weights: Mapping[str, Tensor], shared: Sequence[Tensor]) -> None:
        """Takes the aggregator's weights of these rows, which are applied on the shared parameters."""

    def see_taken(self, optimizer: Any, rows: TaskRows) -> None:
        """Takes rows that MAO has just taken into its moments."""

    def see_result(self, weights: Mapping[str, Tensor]) -> None:
        """Takes what `Balancer.backward` returns, at its end."""


class Watching:
    """Who watches a Balancer or MAO, if anybody does. A copy is not watched."""

    def __init__(self) -> None:
        self._watcher: Watcher | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_watcher": None}

    def begin(self, watcher: Watcher | None) -> None:
        """Has a watcher see the steps it asks for; None: no longer.

        Raises:
            ValueError: another one does already.
        """
        if watcher is not None and self._watcher is not None:
            raise ValueError("This Balancer or MAO has a monitor already: detach() that one first.")
        self._watcher = watcher

    @property
    def now(self) -> Watcher | None:
        """The watcher, in a step it asks for."""
        return self._watcher if self._watcher is not None and self._watcher.due else None
