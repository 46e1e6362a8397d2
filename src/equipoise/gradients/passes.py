"""The backward passes of a step: on one process, or on many ranks with the numbers that one process would give."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from equipoise._checks import check_metrics
from equipoise.gradients.accumulate import accumulate_gradients
from equipoise.gradients.batch import Batch, read_batch, stack
from equipoise.gradients.graph import reached_leaves, untouched_leaves
from equipoise.gradients.jacobian import Rows, joint_row, rows_by_hooks, task_rows
from equipoise.gradients.ranks import Ranks, Reduction
from equipoise.gradients.sharded import is_sharded
from equipoise.gradients.watching import Watcher
from equipoise.gradients.wrappers import Wrapped

LEFT_OUT, LABELLED, UNLABELLED = range(3)
"""What a rank holds of a task: no loss; a loss; a loss of no labelled sample, which it computes for FSDP's sake."""


FULLY_SHARD_AGAIN = "2.7"
"""PyTorch's first version whose `fully_shard` gathers parameters again for a second backward pass of one graph."""


class Passes:
    """Runs the backward passes of `Balancer.backward` and `MAO.backward`.

    On several ranks, a task's loss is its mean over the labelled samples of all ranks, `Σ_r n_r L_r / Σ_r n_r`, and so
    is its gradient: rank r weighs its loss with its share `n_r / Σ_r n_r`. Before a backward pass the ranks agree on
    what they hold: on the tasks, and on the parameters that each task reaches, since a rank that lacks a task's labels
    takes part in the sum with zeros. What is wrong on one rank is an error on all.

    Args:
        parameters: what is trained, in an order that is the same on all ranks, as far as it is known.
        process_group: the ranks; None: the default group.

    Attributes:
        sharded: parameters are sharded, so that FSDP reduces the gradients.
    """

    def __init__(self, parameters: Iterable[Tensor] = (), process_group: Any = None) -> None:
        self.ranks = Ranks(process_group)
        self._position: Any = WeakIdKeyDictionary()  # known parameter → its place in the common order
        self._known = 0
        self.sharded = False
        self._wrapped: Wrapped | None = None
        self._unreduced: dict[Tensor, None] = {}  # leaves to whose `.grad` this rank has added its own part only
        self._watcher: Watcher | None = None
        self.know(parameters)

    def __getstate__(self) -> dict[str, Any]:
        return {"parameters": list(self._position), "ranks": self.ranks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(vars(Passes(state["parameters"], state["ranks"].process_group)))

    def know(self, parameters: Iterable[Tensor]) -> None:
        """Appends parameters to the common order; to be called on all ranks alike."""
        for parameter in parameters:
            if parameter not in self._position:
                self._position[parameter] = self._known
                self._known += 1
                self.sharded = self.sharded or is_sharded(parameter)

    def forget(self) -> None:
        """Takes note that gradients have been cleared."""
        self._unreduced = {}

    def watch(self, watcher: Watcher | None) -> None:
        """Has a watcher see the steps it asks for; None: no longer. A copy is not watched.

        Raises:
            ValueError: another one does already.
        """
        if watcher is not None and self._watcher is not None:
            raise ValueError("This Balancer or MAO has a monitor already: detach() that one first.")
        self._watcher = watcher

    @property
    def watching(self) -> Watcher | None:
        """The watcher, in a step it asks for."""
        return self._watcher if self._watcher is not None and self._watcher.due else None

    def read(
        self,
        tasks: Sequence[str],
        losses: Mapping[str, Tensor],
        counts: Mapping[str, float | Tensor] | None,
        check_finite: bool | None,
        empty: bool,
        *,
        graph: bool = True,
        accumulate: bool = False,
        also: Callable[[], object] | None = None,
    ) -> Batch:
        """Checks what was given, as `read_batch` does, and takes the losses of all ranks together.

        `empty` allows a rank without any task, and so a batch without any; `also` checks more of what was given.

        Raises:
            TypeError: as `read_batch`, for what this rank was given.
            ValueError: as `read_batch`, on every rank if anything is wrong on one; ranks were called differently; under
                FSDP, a task is left out on some ranks only.
        """
        self._find_wrapped()
        device = next((p.device for p in self._position), torch.device("cpu")) if empty else None

        def read(**options: Any) -> Batch:
            batch = read_batch(tasks, losses, counts, check_finite, graph=graph, empty=device, **options)
            if also is not None:
                also()
            return batch

        if not self.ranks.active:
            return read()
        error, mine = None, None
        held = [LEFT_OUT] * len(tasks)
        try:
            mine = read(keep_unlabelled=self.sharded)
            for task in mine.tasks:
                held[tasks.index(task)] = UNLABELLED if task in mine.unlabelled else LABELLED
        except (TypeError, ValueError) as found:
            error = found
        called = [int(graph), int(accumulate), int(counts is not None), int(also is not None)]
        everyone = self.ranks.agree(error, [*called, *held])
        assert mine is not None
        if any(others[: len(called)] != called for others in everyone):
            raise ValueError(
                "The ranks were called differently: backward or after_step, accumulate, and whether counts and "
                "representation are given have to be the same on all ranks. Pass counts on every rank, and {} as "
                "losses (with [] as representation) on one without labels."
            )
        return self._merged(tasks, mine, [others[len(called) :] for others in everyone])

    def _merged(self, tasks: Sequence[str], mine: Batch, held: list[list[int]]) -> Batch:
        present = [index for index in range(len(tasks)) if any(rank[index] == LABELLED for rank in held)]
        names = tuple(tasks[index] for index in present)
        lacking = [(tasks[i], rank) for i in present for rank, has in enumerate(held) if has[i] == LEFT_OUT]
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
        return Batch(
            tasks=names,
            losses=tuple(own[task][0] if task in own else None for task in names),
            values=totals / divisor,
            counts=None if mine.counts is None else samples,
            shares=counts / divisor,
            everywhere=not lacking,
        )

    def mean_metrics(self, metrics: Mapping[str, float | Tensor] | None, tasks: Sequence[str]) -> dict[str, float]:
        """Checks accuracies, as `check_metrics` does, and averages each over the ranks that give it.

        Raises:
            TypeError: as `check_metrics`.
            ValueError: as `check_metrics`, on every rank if anything is wrong on one.
        """
        mine = self.ranks.checked(check_metrics, metrics, tasks)
        if not self.ranks.active:
            return mine
        sums = torch.tensor([[mine.get(task, 0.0), float(task in mine)] for task in tasks], dtype=torch.float64)
        return {task: total / n for task, (total, n) in zip(tasks, self.ranks.sum_(sums).tolist(), strict=True) if n}

    def leaves(self, batch: Batch) -> list[list[Tensor]]:
        """Returns for each task the leaves that it reaches on any rank, in the common order.

        Raises:
            ValueError: ranks differ in what they reach, and the parameters have no common order.
        """
        reached = iter(reached_leaves(batch.graphs))
        if not self.ranks.active:
            return list(reached)
        rows = [[] if loss is None else self.ordered(next(reached)) for loss in batch.losses]
        walk: dict[Tensor, int] = {}
        for row in rows:
            for leaf in row:
                walk.setdefault(leaf, len(walk))
        described = [[(self._position.get(leaf, -1), walk[leaf], *leaf.shape) for leaf in row] for row in rows]
        signature = zlib.crc32(repr(described).encode())
        unknown = any(leaf not in self._position for leaf in walk)
        everyone = self.ranks.gather([signature, self._known, int(unknown)])
        if batch.everywhere and all(others == everyone[0] for others in everyone):
            self.know(leaf for leaf in walk if isinstance(leaf, nn.Parameter))
            return rows
        if any(has_unknown or known != self._known for _, known, has_unknown in everyone):
            raise ValueError(
                "The losses of this step reach different parameters on different ranks, so the ranks have to name "
                "parameters to each other: pass the model to the Balancer, model=..., on every rank. Every parameter "
                "that the losses reach has to belong to it."
            )
        mask = torch.zeros(len(rows), self._known, dtype=torch.uint8)
        for index, row in enumerate(rows):
            mask[index, [self._position[leaf] for leaf in row]] = 1
        parameters = {position: parameter for parameter, position in self._position.items()}
        return [[parameters[i] for i in row.nonzero().flatten().tolist()] for row in self.ranks.union(mask)]

    def rows(
        self,
        batch: Batch,
        leaves: Sequence[Sequence[Tensor]],
        coefficients: Tensor,
        retain_graph: bool,
        reduce: bool,
    ) -> Rows:
        """Computes the tasks' rows, as `task_rows`; `reduce` adds them up over the ranks, task by task on the way.

        FSDP has its own way: it finds the leaves, and always reduces.
        """
        if self.sharded:
            return self._sharded_rows(batch, coefficients, retain_graph)
        if batch.shares is None or not reduce:
            return task_rows(batch, leaves, self.own(batch, coefficients), retain_graph)
        reduction = Reduction(self.ranks)
        rows = task_rows(batch, leaves, self.own(batch, coefficients), retain_graph, reduction.start)
        reduction.wait()
        return rows

    def joint(
        self, batch: Batch, leaves: Sequence[Tensor], coefficients: Tensor, retain_graph: bool
    ) -> dict[Tensor, Tensor]:
        """Computes one row of all tasks, as `joint_row`, added up over the ranks."""
        row = joint_row(batch, leaves, self.own(batch, coefficients), retain_graph)
        return row if batch.shares is None else self.reduced({"": row})[""]

    def reduced(self, rows: Rows) -> Rows:
        """Adds up over the ranks what `rows` was told not to reduce."""
        if not self.ranks.active or self.sharded:
            return rows
        reduction = Reduction(self.ranks)
        rows = {task: reduction.start(row) for task, row in rows.items()}
        reduction.wait()
        return rows

    def together(
        self, batch: Batch, coefficients: Tensor, retain_graph: bool, accumulate: bool, whole: bool, find: bool
    ) -> list[Tensor]:
        """Adds `Σ_k c_k · ∂L_k/∂leaf` into `.grad` in one backward pass, which fires everyone's hooks.

        A model in DistributedDataParallel is averaged by that, and nothing is added. It cannot where the losses do not
        reach all its parameters, since it waits for them, and it need not where the caller accumulates: then gradients
        go past its hooks.

        Args:
            batch: the tasks present.
            coefficients: `c_k` `[K']`.
            retain_graph: keep the graph.
            accumulate: ranks may keep their own parts for now.
            whole: no task is missing.
            find: the leaves are wanted.

        Returns:
            The leaves that were reached, if they are wanted.
        """
        if self.sharded:
            return self._sharded_together(batch, coefficients, retain_graph, accumulate)
        if batch.shares is None:
            return _local_together(batch, coefficients, retain_graph, whole, find)
        assert self._wrapped is not None
        weights = self.own(batch, coefficients) * self.ranks.size
        if self._wrapped.averaged and batch.everywhere and not accumulate:
            leaves = self._walked(batch, retain_graph)
            if self._wrapped.averages(leaves) and all(leaf in leaves for leaf in self._unreduced):
                torch.autograd.backward(batch.graphs, batch.weights(weights), retain_graph=retain_graph)
                self._unreduced = {}
                return list(leaves)
        leaves = dict.fromkeys(leaf for row in self.leaves(batch) for leaf in row)
        accumulate_gradients(joint_row(batch, list(leaves), weights, retain_graph))
        self._unreduced |= leaves
        if not accumulate:
            self.finish()
        return list(leaves)

    def finish(self) -> None:
        """Averages over the ranks what `together` has left to each of them."""
        if self.ranks.active:
            self._average(leaf for leaf in self._unreduced if leaf.grad is not None)
        self._unreduced = {}

    def own(self, batch: Batch, coefficients: Tensor) -> Tensor:
        """Returns this rank's part of the coefficients, which add up over the ranks to `coefficients`."""
        return coefficients if batch.shares is None else coefficients * batch.shares

    def ordered(self, leaves: Iterable[Tensor]) -> list[Tensor]:
        """Puts the known leaves in the common order, and the others behind."""
        return sorted(leaves, key=lambda leaf: self._position.get(leaf, self._known))

    def _walked(self, batch: Batch, retain_graph: bool) -> dict[Tensor, None]:
        """Returns the leaves that one backward pass reaches on this rank."""
        rows = reached_leaves(batch.graphs, together=True, repeatable=retain_graph)
        return dict.fromkeys(leaf for row in rows for leaf in row)

    def _sharded_rows(self, batch: Batch, coefficients: Tensor, retain_graph: bool) -> Rows:
        if torch.__version__ < FULLY_SHARD_AGAIN:
            raise RuntimeError(
                "With a backward pass a task, a model under fully_shard is gone through several times, which takes "
                f"PyTorch {FULLY_SHARD_AGAIN} or later; this is {torch.__version__}. Take a method of one backward "
                "pass, such as 'uw' or 'ema', or DistributedDataParallel."
            )
        size = self.ranks.size  # FSDP gives the mean over the ranks, where a sum is wanted
        leaves = dict.fromkeys([*self._position, *self._walked(batch, retain_graph=True)])
        rows = rows_by_hooks(batch, leaves, self.own(batch, coefficients) * size, retain_graph)
        if self.ranks.active:
            reduction = Reduction(self.ranks, 1 / size)
            plain = {task: {p: g for p, g in row.items() if not is_sharded(p)} for task, row in rows.items()}
            sums = {task: reduction.start(row) for task, row in plain.items()}
            reduction.wait()
            rows = {task: row | sums[task] for task, row in rows.items()}
        return rows

    def _sharded_together(
        self, batch: Batch, coefficients: Tensor, retain_graph: bool, accumulate: bool
    ) -> list[Tensor]:
        leaves = dict.fromkeys([*self._position, *self._walked(batch, retain_graph)])
        weights = self.own(batch, coefficients) * self.ranks.size
        torch.autograd.backward(batch.graphs, batch.weights(weights), retain_graph=retain_graph)
        found = [leaf for leaf in leaves if leaf.grad is not None]
        self._unreduced |= dict.fromkeys(leaf for leaf in found if not is_sharded(leaf))
        if not accumulate:
            self.finish()
        return found

    def _average(self, leaves: Iterable[Tensor]) -> None:
        """Averages `.grad` over the ranks. Averaging it twice is averaging it once."""
        row = {leaf: leaf.grad for leaf in leaves if leaf.grad is not None}
        reduction = Reduction(self.ranks, 1 / self.ranks.size)
        means = reduction.start(row)
        reduction.wait()
        if row:
            torch._foreach_copy_(list(row.values()), list(means.values()))

    def _find_wrapped(self) -> None:
        if self._wrapped is None and torch.distributed.is_available() and torch.distributed.is_initialized():
            self._wrapped = Wrapped(sharded=not self._known)
            if not self._known:
                self.know([*self._wrapped.sharded, *(p for group in self._wrapped.averaged for p in group)])


def _local_together(batch: Batch, coefficients: Tensor, retain_graph: bool, whole: bool, find: bool) -> list[Tensor]:
    reached: dict[Tensor, None] = {}
    if find or retain_graph:
        rows = reached_leaves(batch.graphs, together=True, repeatable=retain_graph)
        reached = dict.fromkeys(leaf for row in rows for leaf in row)
    alone = len(batch.tasks) == 1  # the heads of other tasks may be there
    untouched, certain = ([], True) if whole and not alone else untouched_leaves(batch.graphs)
    untouched = [leaf for leaf in untouched if leaf.grad is None]
    torch.autograd.backward(batch.graphs, batch.weights(coefficients), retain_graph=retain_graph)
    for leaf in untouched:
        if certain or (leaf.grad is not None and not leaf.grad.any()):  # sync: only where PyTorch does not tell
            leaf.grad = None
    return list(reached)
