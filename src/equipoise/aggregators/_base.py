"""What reduces K task gradients on the shared parameters to one: `Aggregator`, and its Gramian kind."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from equipoise._state import TaskModule
from equipoise._state_step import StateStep
from equipoise.gradients.gramian import combine, gramian

Gradients = Sequence[Sequence[Tensor | None]]
"""K' rows (tasks present) of n gradients (shared parameters); None where a task does not reach a parameter."""


class Aggregator(TaskModule, ABC):
    """Reduces the Jacobian `J [K', P]` of the tasks present (rows: their gradients) to one gradient `[P]`.

    The Jacobian is never built: `aggregate` takes the gradients parameter by parameter. Where a method needs only
    the Gramian `JJᵀ`, subclass `GramianAggregator`.

    What a method promises of its result `d`, for any gradients `g_k`; nothing unless it says so:

    Attributes:
        robust: a row that is not finite may be left out; else it shows in `d`.
        non_conflicting: `⟨d, g_k⟩ ≥ 0` for every task.
        permutation_invariant: `d` does not depend on the order of the tasks.
        homogeneous: all gradients multiplied by a positive number give `d` multiplied by it.
        scale_invariant: `d` stays as it is where any task's gradient is multiplied by a positive number.

        weighs: `d = Σ_k w_k g_k` with the weights that it returns, which can be held while the gradients change.

    And, not inherited, as a subclass has another formula:

    Attributes:
        takes_preferences: the formula uses `self.preferences`. Else a Gramian aggregator takes the preferences as
            factors of the rows, as if they were in front of the losses, and any other aggregator takes none.
    """

    takes_preferences: bool = False

    robust: bool = False
    non_conflicting: bool = False
    permutation_invariant: bool = False
    homogeneous: bool = False
    scale_invariant: bool = False
    weighs: bool = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.takes_preferences = vars(cls).get("takes_preferences", False)

    def __init__(self) -> None:
        super().__init__()
        self._preferences: dict[str, float] = {}

    def prefer(self, preferences: Mapping[str, float]) -> None:
        """Takes how much each task is wanted: task → factor > 0; empty: all the same. Called by the Balancer."""
        self._preferences = dict(preferences)

    @property
    def preferences(self) -> Tensor | None:
        """How much each of the tasks present is wanted, `p_k > 0`, `[K']`, float64 on the CPU; None: all the same."""
        if not self._preferences:
            return None
        preferences = [self._preferences[task] for task in self.present_tasks]
        return torch.tensor(preferences, dtype=torch.float64, device="cpu")

    @abstractmethod
    def aggregate(self, gradients: Gradients, losses: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Returns the combined gradient of every parameter and the weights `[K']`, if the method has any.

        Args:
            gradients: the rows, which are read and not changed.
            losses: the raw losses `[K']`, detached.
        """

    def forward(self, jacobian: Tensor, losses: Tensor | None = None) -> Tensor:
        """Returns the combined gradient `[P]` of a Jacobian `[K', P]`, for use and tests outside a Balancer.

        Args:
            jacobian: one row a task.
            losses: the losses `[K']`; ones if left out.
        """
        rows = [[row.clone()] for row in jacobian]
        losses = jacobian.new_ones(len(rows)) if losses is None else losses
        return self.aggregate(rows, losses)[0][0]


class GramianAggregator(Aggregator):
    """An aggregator whose result is a weighted sum of the rows, with weights that depend on `JJᵀ` alone.

    Weights are found on the host, in float64: there some hundred operations on `K'²` numbers take less than a
    millisecond, on an accelerator each is a launch. A subclass's state and parts stay on the host for that: `.to()` and
    casts leave them as they are.
    """

    weighs = True

    @abstractmethod
    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Returns the rows' weights `[K']`, float64 on the CPU as both arguments are.

        Args:
            gramian: `JJᵀ` `[K', K']`, finite.
            losses: the raw losses `[K']`, detached.
        """

    @contextmanager
    def solved(
        self,
        gramian: Tensor,
        losses: Tensor,
        present: Sequence[int] | None = None,
        usable: Tensor | None = None,
    ) -> Iterator[tuple[Tensor, StateStep | None]]:
        """Opens a step of the tasks that take part, and finds their weights.

        This is where the host waits for an accelerator, once: Gramian, losses and who takes part come in one transfer.
        Where the Gramian is not finite (float16 overflowed, and a `GradScaler` is about to drop the step), every weight
        is NaN, so that no method has to care.

        Args:
            gramian: `JJᵀ` `[K', K']` of the tasks present.
            losses: their losses `[K']`.
            present: their indices among all tasks; None: all.
            usable: which of them take part, `[K']` bool; None: all. The others have the weight 0.

        Yields:
            The weights `[K']` on the Gramian's device; and the step to commit, None if it must not be.
        """
        beside = [losses] if usable is None else [losses, usable]
        transferred = on_host(torch.cat((gramian, torch.stack([row.to(gramian) for row in beside]))))
        count = len(losses)
        products, values = transferred[:count], transferred[count]
        kept: Tensor | None = None
        if usable is not None:
            kept = transferred[-1].nonzero().flatten()
            if not len(kept):
                yield torch.zeros_like(losses, dtype=gramian.dtype), None
                return
            present = [index if present is None else present[index] for index in kept.tolist()]
            products, values = products[kept][:, kept], values[kept]
        with self.step(present) as step:
            found = self._finite_weights(products, values)
            weights = found if kept is None else found.new_zeros(count).index_copy(0, kept, found)
            known = _is_finite(found)
            yield weights.to(gramian.dtype).to(gramian.device, non_blocking=True), step if known else None

    def aggregate(self, gradients: Gradients, losses: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns `Σ_k w_k g_k` of every parameter, and the weights `[K']`."""
        products = gramian(gradients)
        transferred = on_host(torch.cat((products, losses.to(products)[None])))
        weights = self._finite_weights(transferred[:-1], transferred[-1]).to(products.dtype)
        weights = weights.to(products.device, non_blocking=True)
        return combine(gradients, weights), weights

    def _finite_weights(self, products: Tensor, losses: Tensor) -> Tensor:
        if not _is_finite(products):
            return torch.full_like(losses, torch.nan)
        factors = None if self.takes_preferences else self.preferences
        if factors is None:
            return self.weights(products, losses)
        return factors * self.weights(products * factors * factors[:, None], losses)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GramianAggregator:
        """Moves and casts nothing: the state stays where the weights are found."""
        return self


def _is_finite(values: Tensor) -> bool:
    """Whether every number is, of some on the host."""
    return math.isfinite(torch.linalg.vector_norm(values, torch.inf))


def on_host(values: Tensor) -> Tensor:
    """Returns the values on the CPU in float64; waits for the device that they are on, and for nothing after them."""
    if values.device.type == "cpu":
        return values.double()
    pinned = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=values.device.type == "cuda")
    pinned.copy_(values, non_blocking=True)
    arrived = torch.Event(values.device)
    arrived.record()
    arrived.synchronize()  # sync: the one of a step
    return pinned.double()
