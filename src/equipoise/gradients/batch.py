"""What a call of `backward` was given, checked before anything changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from equipoise._checks import check_losses, check_number
from equipoise.gradients.gramian import wide_dtype


@dataclass(frozen=True)
class Batch:
    """The losses of the tasks present, checked and in the Balancer's order.

    Attributes:
        tasks: names of the K' tasks present.
        losses: their losses, with graphs.
        values: the losses detached, `[K']`, float64 where the device has it.
        counts: labelled samples behind each loss, `[K']`, or None.
    """

    tasks: tuple[str, ...]
    losses: tuple[Tensor, ...]
    values: Tensor
    counts: Tensor | None


def read_batch(
    tasks: Sequence[str],
    losses: Mapping[str, Tensor],
    counts: Mapping[str, float | Tensor] | None,
    check_finite: bool | None,
    *,
    graph: bool = True,
) -> Batch:
    """Checks the arguments of `backward` before anything changes.

    A task whose count is 0 has no label and is left out; a count on an accelerator is taken to be positive, since
    looking at it would cost a synchronisation.

    Args:
        tasks: all tasks.
        losses: task → scalar loss with a graph.
        counts: task → number of labelled samples behind its mean loss.
        check_finite: raise for NaN or infinite losses; None: where it costs no synchronisation, on the CPU.
        graph: every loss must have a graph.

    Raises:
        TypeError: see `check_losses`.
        ValueError: see `check_losses`; a loss that is NaN or infinite; a count that is missing or negative.
    """
    check_losses(losses, tasks, graph=graph)
    if counts is not None:
        check_counts(losses, counts)
        losses = {task: loss for task, loss in losses.items() if not _on_host(counts[task]) or counts[task]}
        if not losses:
            raise ValueError("No task in losses has a labelled sample (all counts are 0): skip the step.")
    names = tuple(task for task in tasks if task in losses)
    device = losses[names[0]].device
    dtype = wide_dtype(device)
    values = stack([losses[task] for task in names], device, dtype)
    if checks_values(check_finite, device):
        check_each(names, values, values.isfinite(), "is {value}: a NaN or infinite loss must not enter the training")
    return Batch(
        tasks=names,
        losses=tuple(losses[task] for task in names),
        values=values,
        counts=None if counts is None else stack([counts[task] for task in names], device, dtype),
    )


def checks_values(check_finite: bool | None, device: torch.device) -> bool:
    """Whether values are checked on the host: as asked for, else where it costs no synchronisation."""
    return device.type == "cpu" if check_finite is None else check_finite


def check_counts(losses: Mapping[str, Tensor], counts: Mapping[str, float | Tensor]) -> None:
    """Checks that every loss has a count ≥ 0.

    Raises:
        ValueError: one has not.
    """
    missing = [task for task in losses if task not in counts]
    if missing:
        raise ValueError(
            f"counts lacks task {', '.join(map(repr, missing))}: give the number of labelled samples of every loss."
        )
    for task, count in counts.items():
        if _on_host(count):
            check_number(f"counts[{task!r}]", float(count), at_least=0)


def _on_host(count: float | Tensor) -> bool:
    return not isinstance(count, Tensor) or count.device.type == "cpu"


def check_each(tasks: Sequence[str], values: Tensor, passed: Tensor, message: str) -> None:
    """Raises for the first task whose entry in the bool tensor `passed` is false; synchronises with the host.

    Raises:
        ValueError: `message` with the task's name before it and `{value}` filled in.
    """
    for task, value, fine in zip(tasks, values.tolist(), passed.tolist(), strict=True):  # sync: asked for
        if not fine:
            raise ValueError(f"The loss of task {task!r} {message.format(value=f'{value:g}')}.")


def stack(scalars: Sequence[float | Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Stacks numbers and 0-dim tensors of any dtype and device into a detached vector."""
    return torch.stack([torch.as_tensor(s, dtype=dtype).detach().to(device, dtype, non_blocking=True) for s in scalars])
