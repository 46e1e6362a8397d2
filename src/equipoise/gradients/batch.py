"""What a call of `backward` was given, checked before anything changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from equipoise._checks import check_counts, check_losses, check_number
from equipoise.gradients.gramian import wide_dtype


@dataclass(frozen=True)
class Batch:
    """The losses of the tasks present, checked and in the Balancer's order.

    Attributes:
        tasks: names of the K' tasks present, on any rank.
        losses: their losses, with graphs; None for a task that only other ranks have.
        values: the losses detached, over all ranks, `[K']`, float64 where the device has it.
        counts: labelled samples behind each loss, over all ranks, `[K']`, or None.
        shares: of each task's labelled samples, this rank's part, `[K']`; None where there is one rank.
        everywhere: every rank has all the K' tasks.
        unlabelled: those among them that are kept though their count is 0.
    """

    tasks: tuple[str, ...]
    losses: tuple[Tensor | None, ...]
    values: Tensor
    counts: Tensor | None
    shares: Tensor | None = None
    everywhere: bool = True
    unlabelled: frozenset[str] = frozenset()

    @property
    def graphs(self) -> list[Tensor]:
        """The losses that this rank has."""
        return [loss for loss in self.losses if loss is not None]

    def only(self, index: int) -> Batch:
        """Returns the batch of one of the tasks."""
        part = slice(index, index + 1)
        return replace(
            self,
            tasks=self.tasks[part],
            losses=self.losses[part],
            values=self.values[part],
            counts=None if self.counts is None else self.counts[part],
            shares=None if self.shares is None else self.shares[part],
        )

    def joined(self, groups: Mapping[str, Sequence[str]]) -> Batch:
        """Returns the batch of the groups that have a task present: their losses are sums, without counts.

        A rank's share of each loss goes into its part of the sum.
        """
        place = {task: index for index, task in enumerate(self.tasks)}
        held = {group: [place[task] for task in members if task in place] for group, members in groups.items()}
        held = {group: indices for group, indices in held.items() if indices}
        losses: list[Tensor | None] = []
        for indices in held.values():
            parts = [
                loss if self.shares is None else loss * self.shares[index].to(loss)
                for index in indices
                if (loss := self.losses[index]) is not None
            ]
            losses.append(torch.stack(parts).sum() if parts else None)
        return replace(
            self,
            tasks=tuple(held),
            losses=tuple(losses),
            values=torch.stack([self.values[indices].sum() for indices in held.values()]),
            counts=None,
            shares=None if self.shares is None else torch.ones(len(held)).to(self.shares),
        )

    def weights(self, coefficients: Tensor) -> list[Tensor]:
        """Returns what to weigh each of `graphs` with in a backward pass: `coefficients` `[K']`, one tensor a loss.

        They are copies: autograd may make one, or a view of it, the `.grad`.
        """
        return [
            weight.to(loss.device, loss.dtype, copy=True)
            for weight, loss in zip(coefficients.unbind(), self.losses, strict=True)
            if loss is not None
        ]


def read_batch(
    tasks: Sequence[str],
    losses: Mapping[str, Tensor],
    counts: Mapping[str, float | Tensor] | None,
    check_finite: bool | None,
    *,
    graph: bool = True,
    empty: torch.device | None = None,
    keep_unlabelled: bool = False,
) -> Batch:
    """Checks the arguments of `backward` before anything changes.

    A task whose count is 0 has no label and is left out. So counts have to be known on the host: those that lie on an
    accelerator are fetched, all at once, and the host waits for them; `count_labels` spares the wait.

    Args:
        tasks: all tasks.
        losses: task → scalar loss with a graph.
        counts: task → number of labelled samples behind its mean loss.
        check_finite: raise for NaN or infinite losses; None: where it costs no synchronisation, on the CPU.
        graph: every loss must have a graph.
        empty: the device of a batch without any task; None: such a batch is an error.
        keep_unlabelled: keep tasks whose count is 0, with the value 0.

    Raises:
        TypeError: see `check_losses`.
        ValueError: see `check_losses` and `read_counts`; a loss that is NaN or infinite.
    """
    if losses or empty is None or not isinstance(losses, Mapping):
        check_losses(losses, tasks, graph=graph)
    unlabelled: frozenset[str] = frozenset()
    if counts is not None:
        counts = read_counts(tasks, losses, counts)
        unlabelled = frozenset(task for task in losses if not counts[task])
        if not keep_unlabelled:
            losses = {task: loss for task, loss in losses.items() if task not in unlabelled}
        if not losses and empty is None:
            raise ValueError("No task in losses has a labelled sample (all counts are 0): skip the step.")
    names = tuple(task for task in tasks if task in losses)
    device = losses[names[0]].device if names else empty
    assert device is not None
    dtype = wide_dtype(device)
    values = stack([0.0 if task in unlabelled else losses[task] for task in names], device, dtype)
    if checks_values(check_finite, device):
        check_each(names, values, values.isfinite(), "is {value}: a NaN or infinite loss must not enter the training")
    return Batch(
        tasks=names,
        losses=tuple(losses[task] for task in names),
        values=values,
        counts=None if counts is None else stack([counts[task] for task in names], device, dtype),
        unlabelled=unlabelled,
    )


def checks_values(check_finite: bool | None, device: torch.device) -> bool:
    """Whether values are checked on the host: as asked for, else where it costs no synchronisation."""
    return device.type == "cpu" if check_finite is None else check_finite


def on_host(count: float | Tensor) -> bool:
    """Whether looking at the count costs no synchronisation."""
    return not isinstance(count, Tensor) or count.device.type == "cpu"


def read_counts(
    tasks: Sequence[str], losses: Mapping[str, Tensor], counts: Mapping[str, float | Tensor]
) -> dict[str, float]:
    """Returns the count of every loss as a number.

    Raises:
        TypeError: see `check_counts`.
        ValueError: see `check_counts`; a count that is negative or not finite.
    """
    check_counts(counts, losses, tasks)
    given = {task: counts[task] for task in losses}
    away = {task: c for task, c in given.items() if not on_host(c)}
    if away:
        wide = [torch.as_tensor(count).to(wide_dtype(torch.as_tensor(count).device)) for count in away.values()]
        fetched = torch.stack(wide).tolist()  # sync: decides who is present
        given |= dict(zip(away, fetched, strict=True))
    return {task: check_number(f"counts[{task!r}]", count, at_least=0) for task, count in given.items()}


def check_each(
    tasks: Sequence[str], values: Tensor, passed: Tensor, message: str, bound: Tensor | float = -math.inf
) -> None:
    """Raises for the first task whose entry in the bool tensor `passed` is false; synchronises with the host.

    Raises:
        ValueError: `message` with the task's name before it, and `{value}` and `{bound}` filled in.
    """
    bounds = torch.as_tensor(bound).expand(len(tasks)).tolist()
    for task, value, least, fine in zip(
        tasks, values.tolist(), bounds, passed.tolist(), strict=True
    ):  # sync: asked for
        if not fine:
            raise ValueError(f"The loss of task {task!r} {message.format(value=f'{value:g}', bound=f'{least:g}')}.")


def check_bounds(batch: Batch, bounds: Iterable[Tensor | float], check_finite: bool | None) -> Tensor | None:
    """Checks that every loss lies above every bound: a number for all tasks, or one a task `[K']`.

    Returns:
        None if that is checked on the host, else whether all losses are finite and above, a 0-dim bool.

    Raises:
        ValueError: on the host, a loss is not.
    """
    on_host = checks_values(check_finite, batch.values.device)
    valid = batch.values.isfinite()
    for bound in bounds:
        if isinstance(bound, float) and bound == -math.inf:
            continue
        above = batch.values > bound
        if on_host:
            message = "is {value}, but this method needs it to be above {bound}"
            check_each(batch.tasks, batch.values, above, message, bound)
        valid = valid & above
    return None if on_host else valid.all()


def stack(scalars: Sequence[float | Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Stacks numbers and 0-dim tensors of any dtype and device into a detached vector."""
    if not scalars:
        return torch.empty(0, dtype=dtype, device=device)
    return torch.stack([torch.as_tensor(s, dtype=dtype).detach().to(device, dtype, non_blocking=True) for s in scalars])
