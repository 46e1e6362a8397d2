"""Many ranks that train one model together, plain or in `DistributedDataParallel`."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from equipoise.gradients.batching import Batching
from equipoise.gradients.graph.walk import reached_leaves
from equipoise.gradients.graph.wrappers import Wrapped
from equipoise.gradients.jacobian import Row, TaskRows, gradients_of, rows_of
from equipoise.gradients.ranks.alone import Alone
from equipoise.gradients.ranks.communication import Ranks, Reduction
from equipoise.gradients.ranks.order import Order
from equipoise.gradients.step import Step, stack
from equipoise.gradients.writing import write

T = TypeVar("T")

LEFT_OUT, LABELLED, UNLABELLED = range(3)
"""What a rank holds of a task: no loss; a loss; a loss of no labelled sample, which it computes for FSDP's sake."""


class Several(Alone):
    """Ranks that each have a part of the samples.

    A task's loss is its mean over the labelled samples of all ranks, `Σ_r n_r L_r / Σ_r n_r`, and so is its gradient:
    rank r weighs its loss with its share `n_r / Σ_r n_r`. Before a backward pass the ranks agree on what they hold: on
    the tasks, and on the parameters that each task reaches, since a rank that lacks a task's labels takes part in the
    sum with zeros. What is wrong on one rank is an error on all. Leaves that are not trained are each rank's own.

    Args:
        order: the common order of the parameters.
        ranks: the ranks.
        wrapped: the wrappers around models in this process.
    """

    active = True

    def __init__(self, order: Order, ranks: Ranks, wrapped: Wrapped) -> None:
        super().__init__(order)
        self.ranks = ranks
        self._wrapped = wrapped
        self._unreduced: dict[Tensor, None] = {}  # leaves to whose `.grad` this rank has added its own part only

    def read(self, read: Callable[[], Step], tasks: Sequence[str], called: Sequence[int], batching: Batching) -> Step:
        """See `Alone`. How the first rank that knows the quicker way of batching goes on is how all do.

        Raises:
            TypeError: as `read`, for what this rank was given.
            ValueError: as `read`, on every rank if anything is wrong on one; ranks were called differently; parameters
                are sharded and a task is left out on some ranks only.
        """
        error, mine = None, None
        held = [LEFT_OUT] * len(tasks)
        try:
            mine = read()
            for task in mine.tasks:
                held[tasks.index(task)] = UNLABELLED if task in mine.unlabelled else LABELLED
        except (TypeError, ValueError) as found:
            error = found
        on_device = mine is not None and mine.usable is not None
        everyone = self.ranks.agree(error, [*map(int, called), int(on_device), batching.vote, *held])
        assert mine is not None
        if any(others[: len(called)] != list(called) for others in everyone):
            raise ValueError(
                "The ranks were called differently: backward or after_step, accumulate, whether counts, scaler and "
                "representation are given, and when gradients are cleared have to be the same on all ranks. Pass "
                "counts on every rank, and {} as losses (with [] as representation) on one without labels."
            )
        flags, votes, *columns = zip(*(numbers[len(called) :] for numbers in everyone), strict=True)
        batching.settle(votes)
        return self._merged(tasks, mine, columns, any(flags))

    def _merged(self, tasks: Sequence[str], mine: Step, held: Sequence[tuple[int, ...]], on_device: bool) -> Step:
        holders = {task: ranks for task, ranks in zip(tasks, held, strict=True) if LABELLED in ranks}
        names = tuple(holders)
        lacking = [(task, ranks.index(LEFT_OUT)) for task, ranks in holders.items() if LEFT_OUT in ranks]
        if lacking and self.sharded:
            task, rank = lacking[0]
            raise ValueError(
                f"Task {task!r} is left out of losses on rank {rank} and not on others. Under fully_shard every rank "
                "has to run every task's backward pass: where a rank has no label of a task, pass a loss of 0 that is "
                "connected to the model (output.sum() * 0), and counts with the count 0 for it."
            )
        own = dict(zip(mine.tasks, zip(mine.losses, mine.values.unbind(), strict=True), strict=True))
        count = {} if mine.counts is None else dict(zip(mine.tasks, mine.counts.unbind(), strict=True))
        device, dtype = mine.values.device, mine.values.dtype
        values = stack([own[task][1] if task in own else 0.0 for task in names], device, dtype)
        counts = stack([count.get(task, 1.0) if task in own else 0.0 for task in names], device, dtype)
        sums = torch.stack([torch.where(counts > 0, values * counts, 0.0), counts])
        totals, samples = self.ranks.sum_(sums) if names else sums
        divisor = torch.where(samples > 0, samples, 1.0)
        return replace(
            mine,
            tasks=names,
            losses=tuple(own[task][0] if task in own else None for task in names),
            values=totals / divisor,
            counts=None if mine.counts is None else samples,
            usable=samples > 0 if on_device else None,  # one that has no label has no count on its device either
            shares=counts / divisor,
            everywhere=not lacking,
            complete=1 < len(tasks) == len(names),
        )

    def checked(self, check: Callable[..., T], *arguments: Any) -> T:
        """See `Alone`."""
        return self.ranks.checked(check, *arguments)

    def mean_metrics(self, metrics: Mapping[str, float | Tensor] | None, tasks: Sequence[str]) -> dict[str, float]:
        """See `Alone`."""
        mine = self.checked(super().mean_metrics, metrics, tasks)
        sums = torch.tensor(
            [[mine.get(task, 0.0), float(task in mine)] for task in tasks], dtype=torch.float64, device="cpu"
        )
        return {task: total / n for task, (total, n) in zip(tasks, self.ranks.sum_(sums).tolist(), strict=True) if n}

    def leaves(self, step: Step) -> list[list[Tensor]]:
        """See `Alone`; in the common order.

        Raises:
            ValueError: ranks differ in what they reach, and the parameters have no common order.
        """
        reached = iter(super().leaves(step))
        rows = [[] if loss is None else self.order.ordered(next(reached)) for loss in step.losses]
        walk: dict[Tensor, int] = {}
        for row in rows:
            for leaf in row:
                walk.setdefault(leaf, len(walk))
        described = [[(self.order.position(leaf), walk[leaf], *leaf.shape) for leaf in row] for row in rows]
        signature = zlib.crc32(repr(described).encode())
        known = len(self.order)
        unknown = any(self.order.position(leaf) < 0 for leaf in walk)
        everyone = self.ranks.gather([signature, known, int(unknown)])
        if step.everywhere and all(others == everyone[0] for others in everyone):
            self.order.know(walk)
            return rows
        if any(has_unknown or others != known for _, others, has_unknown in everyone):
            raise ValueError(
                "The losses of this step reach different parameters on different ranks, so the ranks have to name "
                "parameters to each other: pass the model to the Balancer, model=..., on every rank. Every parameter "
                "that the losses reach has to belong to it."
            )
        mask = torch.zeros(len(rows), known, dtype=torch.uint8, device="cpu")
        for index, row in enumerate(rows):
            mask[index, [self.order.position(leaf) for leaf in row]] = 1
        parameters = self.order.parameters()
        return [[parameters[i] for i in row.nonzero().flatten().tolist()] for row in self.ranks.union(mask)]

    def rows(self, step: Step, wanted: Sequence[list[Tensor]], coefficients: Tensor, reduce: bool) -> Iterator[Row]:
        """See `Alone`. A row is reduced while the next one is computed."""
        reached = [set(leaves) for leaves in step.graph.leaves]
        asked = [[p for p in row if p in own] for row, own in zip(step.at_held(wanted), reached, strict=True)]
        weights = step.weights(self.rank_share(step, coefficients))
        passes = rows_of(step, asked, weights)
        before: tuple[Row, Reduction] | None = None
        for loss, leaves in zip(step.losses, wanted, strict=True):
            row = self.completed({} if loss is None else next(passes), leaves)
            if not reduce:
                yield row
                continue
            reduction = Reduction(self.ranks)
            row = self._started(row, reduction)
            if before is not None:
                before[1].wait()
                yield before[0]
            before = row, reduction
        if before is not None:
            before[1].wait()
            yield before[0]

    def completed(self, row: Row, leaves: Iterable[Tensor]) -> Row:
        """See `Alone`; first these leaves, in their order, and then the row's others."""
        known = {
            leaf: row[leaf] if leaf in row else torch.zeros_like(leaf, requires_grad=False)
            for leaf in leaves
            if leaf in row or self.order.is_trained(leaf)
        }
        return known | row

    def summed(self, rows: TaskRows) -> TaskRows:
        """See `Alone`."""
        reduction = Reduction(self.ranks)
        rows = {task: self._started(row, reduction) for task, row in rows.items()}
        reduction.wait()
        return rows

    def _started(self, row: Row, reduction: Reduction) -> Row:
        own = {leaf: gradient for leaf, gradient in row.items() if not self.order.is_trained(leaf)}
        return reduction.start({leaf: g for leaf, g in row.items() if leaf not in own}) | own

    def one_pass(self, step: Step, coefficients: Tensor) -> list[Tensor]:
        """See `Alone`.

        A model in DistributedDataParallel is averaged by its own hooks, and nothing is added. It cannot where the
        losses do not reach all its parameters, since it waits for them, and it need not where the caller accumulates:
        then gradients go past its hooks.
        """
        weights = self.averaged(step, coefficients)
        if self._wrapped.averaged and step.everywhere and not step.accumulate:
            leaves = self.walked(step, step.retain_graph)
            averages = self._wrapped.averages(leaves) and all(leaf in leaves for leaf in self._unreduced)
            if all(alike for [alike] in self.ranks.gather([int(averages)])):  # a rank can have skipped a layer
                step.backward(weights)
                self._unreduced = {}
                return list(leaves)
        trained = dict.fromkeys(leaf for row in self.leaves(step) for leaf in row)
        reached = dict.fromkeys(leaf for row in step.graph.leaves for leaf in row)
        row = gradients_of(step.held, list(reached), step.weights(weights), step.retain_graph)
        row.update({leaf: gradient / self.ranks.size for leaf, gradient in row.items() if leaf not in trained})
        row = self.completed(row, trained)
        write(row)
        self._unreduced |= trained
        if not step.accumulate:
            self.finish()
        return list(trained)

    def finish(self) -> None:
        """See `Alone`: averages what `one_pass` has left. Averaging it twice is averaging it once."""
        row = {leaf: leaf.grad for leaf in self._unreduced if leaf.grad is not None}
        reduction = Reduction(self.ranks, 1 / self.ranks.size)
        means = reduction.start(row)
        reduction.wait()
        dense = [leaf for leaf, gradient in row.items() if not gradient.is_sparse]
        if dense:
            torch._foreach_copy_([row[leaf] for leaf in dense], [means.pop(leaf) for leaf in dense])
        for leaf, mean in means.items():
            leaf.grad = mean
        self._unreduced = {}

    def forget(self) -> None:
        """Takes note that gradients have been cleared."""
        self._unreduced = {}

    def rank_share(self, step: Step, coefficients: Tensor) -> Tensor:
        """See `Alone`."""
        return coefficients if step.shares is None else coefficients * step.shares

    def averaged(self, step: Step, coefficients: Tensor) -> Tensor:
        """See `Alone`."""
        return self.rank_share(step, coefficients) * self.ranks.size

    def sum_(self, tensor: Tensor) -> Tensor:
        """See `Alone`."""
        return self.ranks.sum_(tensor)

    def all_true(self, flag: Tensor) -> Tensor:
        """See `Alone`."""
        return self.ranks.all_true(flag)

    def share_state(self, module: nn.Module) -> bool:
        """See `Alone`."""
        return self.ranks.share_state(module)

    def walked(self, step: Step, repeatable: bool) -> dict[Tensor, None]:
        """Returns the leaves that one backward pass reaches on this rank."""
        rows = reached_leaves(step.held, together=True, repeatable=repeatable)
        return dict.fromkeys(leaf for row in rows for leaf in row)
