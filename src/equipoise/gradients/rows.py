"""Rows: a backward pass a task, its gradients kept over micro-batches and added up over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from torch import Tensor

from equipoise.gradients.micro_batches import Collected, MicroBatches, Waiting
from equipoise.gradients.ranks import Alone, Company
from equipoise.gradients.step import Step


class Rows:
    """Collects the rows of a step: what `Balancer` and `MAO` have in common.

    Args:
        company: how to go over ranks.
        tasks: all tasks.
        waiting: holds the micro-batches so far.
    """

    def __init__(self, company: Company, tasks: Sequence[str], waiting: Waiting) -> None:
        self._company = company
        self._tasks = tasks
        self.waiting = waiting

    def run(self, step: Step, coefficients: Tensor, leaves: list[list[Tensor]] | None = None) -> Collected | None:
        """Computes the rows `c_k ∂L_k` of a micro-batch.

        Args:
            step: the K' tasks present.
            coefficients: `c_k` `[K']`.
            leaves: for each task the trained leaves that it reaches on any rank; None: they are found.

        Returns:
            The whole step, or None if further micro-batches follow.
        """
        ranks = self._company.now()
        before = self.waiting.micro_batches
        last = not step.accumulate
        leaves = ranks.leaves(step) if leaves is None else leaves
        wanted = with_inputs(ranks, step, leaves)
        found = ranks.rows(step, wanted, step.scale.coefficients(coefficients), reduce=last and not before)
        rows = step.scale.unscaled(dict(zip(step.tasks, found, strict=True)))
        reached = dict(zip(step.tasks, leaves, strict=True))
        if ranks.sharded:
            reached = {task: list(filter(ranks.order.is_trained, row)) for task, row in rows.items()}
        if last and not before:
            return Collected(step.tasks, rows, step.values, step.usable, reached)
        micro_batches = before.plus(step, rows, reached)
        if step.accumulate:
            self.waiting.keep(micro_batches)
            return None
        return self._finished(micro_batches)

    def finish(self) -> Collected | None:
        """Returns the step whose last micro-batch has no task; None if there were none before."""
        return self._finished(self.waiting.micro_batches) if self.waiting.micro_batches.rows else None

    def _finished(self, micro_batches: MicroBatches) -> Collected:
        total = micro_batches.total(self._tasks)
        rows = self._company.now().summed(total.rows)
        return Collected(total.tasks, rows, total.values, total.usable, total.reached)


def with_inputs(ranks: Alone, step: Step, leaves: Sequence[list[Tensor]]) -> list[list[Tensor]]:
    """Adds to each task's trained leaves the other ones that it reaches, for they get their gradients, too."""
    if ranks.sharded:
        return list(leaves)
    trained = set(map(id, chain.from_iterable(leaves)))
    inputs = {id(leaf) for leaf in step.graph.every_leaf if id(leaf) not in trained}
    if not inputs:
        return list(leaves)
    own = iter(step.graph.leaves)
    return [
        row if loss is None else [*row, *(leaf for leaf in next(own) if id(leaf) in inputs)]
        for loss, row in zip(step.losses, leaves, strict=True)
    ]
