"""Trains with equal weights and measures: the losses, who moves what, and which way the tasks pull."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from equipoise._checks import check_losses
from equipoise.balancer import Balancer
from equipoise.gradients.gramian import gramian
from equipoise.gradients.graph.walk import reached_leaves
from equipoise.gradients.jacobian import Row, TaskRows, task_gradients
from equipoise.gradients.sparse import compact
from equipoise.monitor.balance_monitor import BalanceMonitor
from equipoise.monitor.recording import Recording

SAMPLES = 50
"""Of the steps so many are measured, spread evenly: a measured step takes two backward passes a task."""

LossesOf = Callable[[Any], Mapping[str, Tensor]]
"""What computes the losses of a batch."""


@dataclass(frozen=True)
class Measured:
    """What was seen of T steps with equal weights, n of them measured. float64; NaN where a task had no label.

    Attributes:
        tasks: the K tasks.
        optimizer: the optimizer's class.
        losses: `[T, K]`.
        contributions: `[n, K]`, how far a task moves an element of the shared layers; see `BalanceMonitor`.
        within: `[n, K, K]`, cosines between the tasks' gradients of a batch, on what two or more tasks reach.
        across: `[n, K, K]`, cosines between gradients of two batches at the same parameters: of two tasks, the mean of
            both ways; on the diagonal those of a task with itself, which would be 1 without noise.
        recording: the monitor's, of the measured steps.
    """

    tasks: tuple[str, ...]
    optimizer: str
    losses: Tensor
    contributions: Tensor
    within: Tensor
    across: Tensor
    recording: Recording

    @property
    def shared(self) -> bool:
        """Whether two tasks reach a parameter together."""
        return not bool(self.across.isnan().all()) or bool(self.recording.shared_layers)


def losses_for(losses_of: LossesOf, batch: Any, tasks: Sequence[str] | None, step: int) -> dict[str, Tensor]:
    """Returns the losses of a batch; none where no task has a label.

    Raises:
        TypeError: they are no mapping of tensors.
        ValueError: a task is unknown, a loss is not a scalar or has no graph, or is NaN or infinite.
    """
    losses = losses_of(batch)
    if isinstance(losses, Mapping) and not losses:
        return {}
    check_losses(losses, tasks)
    for task, loss in losses.items():
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ValueError(
                f"The loss of {task!r} is {value} at step {step}, so nothing can be said about balance: "
                + ("look at the data and the loss." if step == 0 else "train with a lower learning rate.")
            )
    return dict(losses)


def measure(
    model: nn.Module,
    batches: Iterator[Any],
    losses_of: LossesOf,
    optimizer: Optimizer,
    tasks: tuple[str, ...],
    steps: int,
) -> Measured:
    """Trains `steps` steps and measures some `SAMPLES` of them.

    Raises:
        TypeError, ValueError: the losses are not what they should be; see `losses_for`.
        ValueError: a task has no loss in any step.
    """
    balancer = Balancer(tasks, model=model)
    monitor = _Scattered(balancer, model, max(1, steps // SAMPLES), optimizer=optimizer)
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    known = {*trained, *model.parameters()}
    found = torch.full((steps, len(tasks)), math.nan, dtype=torch.float64, device="cpu")
    sharing = _Shared()
    cosines: list[tuple[Tensor, Tensor]] = []
    recent: dict[str, Any] = {}  # task → the last batch that had it
    batch = next(batches)
    for step in range(steps):
        following = next(batches)
        losses = losses_for(losses_of, batch, tasks, step)
        for task, loss in losses.items():
            found[step, tasks.index(task)] = loss.detach().double()
        given, batch = batch, following
        if not losses:
            continue
        others = {leaf for leaves in reached_leaves(list(losses.values())) for leaf in leaves} - known
        kept = {leaf: leaf.grad for leaf in others}  # say a batch's inputs
        balancer.backward(losses)
        for leaf, gradient in kept.items():
            leaf.grad = gradient
        seen = None
        if monitor.due:
            again: TaskRows = {}
            for other in (following, *recent.values()):
                if len(again) < len(tasks):
                    found_there = losses_for(losses_of, other, tasks, step)
                    again |= _rows({task: loss for task, loss in found_there.items() if task not in again}, trained)
            seen = sharing.cosines(tasks, monitor.rows, again)
        count = len(monitor.records)
        optimizer.step()
        optimizer.zero_grad()
        if len(monitor.records) > count and seen is not None:
            cosines.append(seen)
        recent |= dict.fromkeys(losses, given)
    monitor.detach()
    missing = [task for task, lost in zip(tasks, found.isnan().all(0).tolist(), strict=True) if lost]
    if missing:
        raise ValueError(
            f"No batch of {steps} steps had a loss of {', '.join(map(repr, missing))}: take more steps, or name the "
            "tasks that there are with tasks=."
        )
    contributions = monitor.recording.by_step("contribution").values()
    return Measured(
        tasks=tasks,
        optimizer=type(optimizer).__name__,
        losses=found,
        contributions=torch.tensor(
            [[math.nan if value is None else value for value in row] for row in contributions], dtype=torch.float64
        ).T,
        within=torch.stack([within for within, _ in cosines]),
        across=torch.stack([across for _, across in cosines]),
        recording=monitor.recording,
    )


class _Scattered(BalanceMonitor):
    """Samples one step of every `every`, at random: tasks that take turns would be measured at the same turn."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._draws = torch.Generator("cpu").manual_seed(0)
        self._chosen: dict[int, int] = {}

    @property
    def due(self) -> bool:
        """Whether this step is sampled."""
        turn, place = divmod(self._step, self.recording.every)
        if turn not in self._chosen:
            self._chosen[turn] = int(torch.randint(self.recording.every, (), generator=self._draws, device="cpu"))
        return self._chosen[turn] == place


def _rows(losses: Mapping[str, Tensor], parameters: set[Tensor]) -> TaskRows:
    """The task gradients of a batch that is not trained on in this step."""
    if not losses:
        return {}
    wanted = [p for p in parameters if p.requires_grad]
    rows = task_gradients(losses, wanted)
    return {task: {p: g for p, g in zip(wanted, row, strict=True) if g is not None} for task, row in rows.items()}


class _Shared:
    """Compares gradients on the parameters that two or more tasks have reached so far."""

    def __init__(self) -> None:
        self._reached: defaultdict[Tensor, set[str]] = defaultdict(set)

    def cosines(self, tasks: Sequence[str], one: TaskRows, other: TaskRows) -> tuple[Tensor, Tensor]:
        """Returns `within` (of the first batch) and `across`, `[K, K]` each, of the gradients on two batches."""
        for task, row in itertools.chain(one.items(), other.items()):
            for p in row:
                self._reached[p].add(task)
        shared = [p for p, reached in self._reached.items() if len(reached) > 1 and p.numel()]
        rows: list[Row] = [*one.values(), *other.values()]
        columns = [compact([row.get(p) for row in rows])[0] for p in shared if any(p in row for row in rows)]
        result = torch.full((2, 2, len(tasks), len(tasks)), math.nan, dtype=torch.float64, device="cpu")
        if columns:
            products = gramian(list(zip(*columns, strict=True))).double().cpu()
            lengths = products.diagonal().sqrt()
            cosines = products / lengths[:, None] / lengths
            first = [tasks.index(task) for task in one]
            second = [tasks.index(task) for task in other]
            places = torch.tensor(first), torch.tensor(second, dtype=torch.long)
            result[0, 0][places[0][:, None], places[0]] = cosines[: len(first), : len(first)]
            result[1, 0][places[0][:, None], places[1]] = cosines[: len(first), len(first) :]
        result[1, 1] = result[1, 0].T
        return result[0, 0], result[1].nanmean(0)
