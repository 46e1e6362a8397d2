"""One process: what going over ranks comes down to where there are no others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from equipoise._checks import check_metrics
from equipoise.gradients.batching import Batching
from equipoise.gradients.jacobian import Row, TaskRows, rows_of
from equipoise.gradients.one_pass import one_pass
from equipoise.gradients.ranks.order import Order
from equipoise.gradients.step import Step

T = TypeVar("T")


class Alone:
    """The process that trains.

    `Several` and `Sharded` do the same for many, with the numbers that one process would give on all their samples.

    Args:
        order: the common order of the parameters.
    """

    active = False
    """Whether there are other ranks."""
    sharded = False
    """Whether parameters are spread over the ranks."""

    def __init__(self, order: Order) -> None:
        self.order = order

    def read(self, read: Callable[[], Step], tasks: Sequence[str], called: Sequence[int], batching: Batching) -> Step:
        """Returns what `read` gives, of all ranks together; `called`: what has to be the same on all of them.

        Once the quicker way of batching is known, it is kept.
        """
        step = read()
        batching.settle([batching.vote])
        return step

    def checked(self, check: Callable[..., T], *arguments: Any) -> T:
        """Returns what the check returns, or raises on all ranks if it fails on one."""
        return check(*arguments)

    def leaves(self, step: Step) -> list[list[Tensor]]:
        """Returns for each task the trained leaves that it reaches on any rank."""
        inputs = self.order.inputs(step.graph.every_leaf)
        return [[leaf for leaf in row if leaf not in inputs] if inputs else row for row in step.graph.leaves]

    def rows(self, step: Step, wanted: Sequence[list[Tensor]], coefficients: Tensor, reduce: bool) -> Iterator[Row]:
        """Computes the rows `c_k ∂L_k` of the tasks, one after the other; `reduce`: added up over the ranks."""
        yield from rows_of(step, wanted, step.weights(coefficients))

    def summed(self, rows: TaskRows) -> TaskRows:
        """Returns rows added up over the ranks that were computed without."""
        return rows

    def completed(self, row: Row, leaves: Iterable[Tensor]) -> Row:
        """Adds zeros for the trained leaves that only other ranks' losses reach."""
        return row

    def one_pass(self, step: Step, coefficients: Tensor) -> list[Tensor]:
        """Adds `Σ_k c_k ∂L_k` into `.grad` in one backward pass; returns the leaves reached where it was asked to."""
        return one_pass(step, coefficients)

    def finish(self) -> None:
        """Adds up over the ranks what `one_pass` has left to each of them."""

    def forget(self) -> None:
        """Takes note that gradients have been cleared."""

    def rank_share(self, step: Step, coefficients: Tensor) -> Tensor:
        """Returns this rank's part of the coefficients `[K']`, which add up over the ranks to `coefficients`."""
        return coefficients

    def averaged(self, step: Step, coefficients: Tensor) -> Tensor:
        """Returns this rank's part of the coefficients `[K']` where gradients are then averaged over the ranks."""
        return coefficients

    def sum_(self, tensor: Tensor) -> Tensor:
        """Adds up a small tensor over the ranks, in place."""
        return tensor

    def all_true(self, flag: Tensor) -> Tensor:
        """Whether the 0-dim bool is true on every rank."""
        return flag

    def mean_metrics(self, metrics: Mapping[str, float | Tensor] | None, tasks: Sequence[str]) -> dict[str, float]:
        """Returns the accuracies, checked, each the mean over the ranks that give it."""
        return check_metrics(metrics, tasks)

    def share_state(self, module: nn.Module) -> bool:
        """Has all ranks go on from the first one's state; whether there are others."""
        return False
