"""Ranks over which `fully_shard` (FSDP2) spreads parameters: gradients come through its hooks, and only from losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from equipoise.gradients.batching import Batching
from equipoise.gradients.jacobian import Row, TaskRows
from equipoise.gradients.ranks.alone import Alone
from equipoise.gradients.ranks.communication import Reduction
from equipoise.gradients.ranks.several import Several
from equipoise.gradients.shards import is_sharded
from equipoise.gradients.step import Step
from equipoise.gradients.writing import write

FULLY_SHARD_AGAIN = (2, 7)
"""PyTorch's first version whose `fully_shard` gathers parameters again for a second backward pass of one graph."""


class Sharded(Several):
    """As `Several`; a rank runs every task's backward pass, and all pass through the whole model."""

    sharded = True

    @property
    def active(self) -> bool:  # type: ignore[override]
        """Whether there are other ranks."""
        return self.ranks.active

    def read(self, read: Callable[[], Step], tasks: Sequence[str], called: Sequence[int], batching: Batching) -> Step:
        """See `Alone`."""
        kind = Several if self.active else Alone
        return kind.read(self, read, tasks, called, batching)

    def leaves(self, step: Step) -> list[list[Tensor]]:
        """Returns for each task nothing: what it reaches is known after its backward pass."""
        return [[] for _ in step.losses]

    def rows(self, step: Step, wanted: Sequence[list[Tensor]], coefficients: Tensor, reduce: bool) -> Iterator[Row]:
        """See `Alone`. The leaves are those that a row has, whatever is wanted; and rows are always reduced.

        FSDP's graphs hold the gathered parameters, and it is at the end of a backward pass that it averages their
        gradients over the ranks into the sharded parameters' `.grad`. That is taken from there, and what was there is
        put back.

        Raises:
            RuntimeError: PyTorch's `fully_shard` does not allow a second backward pass.
        """
        if _version() < FULLY_SHARD_AGAIN:
            raise RuntimeError(
                "With a backward pass a task, a model under fully_shard is gone through several times, which takes "
                f"PyTorch {'.'.join(map(str, FULLY_SHARD_AGAIN))} or later; this is {torch.__version__}. Take a method "
                "of one backward pass, such as 'uw' or 'ema', or DistributedDataParallel."
            )
        weights = step.weights(self.averaged(step, coefficients))  # FSDP gives the mean over the ranks
        step.batching.reason = "one after the other: parameters are sharded"
        before = {leaf: leaf.grad for leaf in [*self.order.parameters(), *self.walked(step, repeatable=True)]}
        last = len(step.held) - 1
        rows: list[Row] = []
        try:
            for index, (loss, weight) in enumerate(zip(step.held, weights, strict=True)):
                for leaf in before:
                    leaf.grad = None
                torch.autograd.backward(loss, weight, retain_graph=step.retain_graph or index < last)
                rows.append({leaf: leaf.grad for leaf in before if leaf.grad is not None})
        finally:
            for leaf, gradient in before.items():
                leaf.grad = gradient
        yield from self._reduced(rows) if self.active else rows

    def _reduced(self, rows: Sequence[Row]) -> list[Row]:
        """Adds up over the ranks what FSDP has not: parameters that are not sharded. Inputs stay each rank's own."""
        reduction = Reduction(self.ranks, 1 / self.ranks.size)
        replicated = [{leaf: g for leaf, g in row.items() if not is_sharded(leaf)} for row in rows]
        for row in replicated:
            row.update({leaf: g / self.ranks.size for leaf, g in row.items() if not self.order.is_trained(leaf)})
        sums = [self._started(row, reduction) for row in replicated]
        reduction.wait()
        return [row | added for row, added in zip(rows, sums, strict=True)]

    def summed(self, rows: TaskRows) -> TaskRows:
        """See `Alone`: they are."""
        return rows

    def one_pass(self, step: Step, coefficients: Tensor) -> list[Tensor]:
        """See `Alone`."""
        leaves = dict.fromkeys([*self.order.parameters(), *self.walked(step, step.retain_graph)])
        weights = self.averaged(step, coefficients)
        # what is not trained, but for parameters, which FSDP may have gathered
        inputs = {p: p.grad for p in leaves if not (isinstance(p, nn.Parameter) or self.order.is_trained(p))}
        for leaf in inputs:
            leaf.grad = None
        step.backward(weights)
        own = {leaf: leaf.grad / self.ranks.size for leaf in inputs if leaf.grad is not None}
        for leaf, before in inputs.items():
            leaf.grad = before
        write(own)
        found = [leaf for leaf in leaves if leaf.grad is not None]
        self._unreduced |= dict.fromkeys(leaf for leaf in found if leaf not in inputs and not is_sharded(leaf))
        if not step.accumulate:
            self.finish()
        return found

    def finish(self) -> None:
        """See `Alone`."""
        if self.active:
            super().finish()
        self._unreduced = {}


def _version() -> tuple[int, int]:
    major, minor, *_ = torch.__version__.split(".")
    return int(major), int(minor)
