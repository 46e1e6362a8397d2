"""Whether what a network predicts and what a batch holds fit a ready-made task.

It is asked in every step, and so of names, shapes and types alone, which no device has to be waited for; and of the
values of labels only where that is free.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from equipoise.bench.problems._errors import MisfitError

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
CLASSES = (torch.int64, torch.uint8)
"""What PyTorch's cross-entropy takes as labels."""

YES_OR_NO = (*CLASSES, torch.bool, torch.int32, torch.int16, torch.int8)


def input_of(batch: Any) -> Any:
    """Returns the network's input.

    Raises:
        MisfitError: the batch has none.
    """
    return _entry("predict", batch, "input", "A batch holds", "it holds")


def labels_of(task: str, batch: Any, types: Sequence[torch.dtype], form: Sequence[str] = ("B",)) -> Tensor:
    """Returns a task's labels.

    Args:
        task: the task's name, under which they are.
        batch: what holds them.
        types: those that they may have.
        form: what its dimensions are called.

    Raises:
        MisfitError: there are none, or they are of another type or form.
    """
    labels = _entry(f"task {task}", batch, task, "A batch holds", "it holds")
    if not isinstance(labels, Tensor):
        raise MisfitError(f"task {task}", f"Labels must be a tensor [{', '.join(form)}], found {_kind(labels)}.")
    if labels.dtype not in types:
        wanted, write = ("floats", ".float()") if types is FLOATS else ("int64", ".long(), and -1 where there is none")
        raise MisfitError(f"task {task}", f"Labels must be {wanted}, found {labels.dtype}: write {write}.")
    if labels.dim() != len(form):
        raise MisfitError(f"task {task}", f"Labels must be [{', '.join(form)}], found {list(labels.shape)}.")
    return labels


def prediction_of(task: str, predictions: Any, labels: Tensor, wanted: str, sizes: Collection[Sequence[int]]) -> Tensor:
    """Returns what is predicted for a task.

    Args:
        task: the task's name, under which it is.
        predictions: all tasks'.
        labels: the task's, for the message.
        wanted: what is expected, in words.
        sizes: the shapes that it may have.

    Raises:
        MisfitError: there is nothing, or it is of another shape, or no floats.
    """
    found = _entry(f"task {task}", predictions, task, "The network predicts", "it predicts")
    if not isinstance(found, Tensor):
        raise MisfitError(f"task {task}", f"Predictions must be {wanted}, found {_kind(found)}.")
    if tuple(found.shape) not in sizes or not found.is_floating_point():
        kind = "" if found.is_floating_point() else f" of {found.dtype}"
        raise MisfitError(
            f"task {task}",
            f"Predictions must be {wanted} for labels {list(labels.shape)}, found {list(found.shape)}{kind}.",
        )
    return found


def numbers_of(
    task: str, predictions: Any, batch: Any, types: Sequence[torch.dtype], what: str
) -> tuple[Tensor, Tensor]:
    """Returns a task's one number a sample and its labels, `[B]` each.

    Raises:
        MisfitError: as `labels_of` and `prediction_of`.
    """
    labels = labels_of(task, batch, types)
    count = len(labels)
    found = prediction_of(task, predictions, labels, f"{what}[B] or [B, 1]", ((count,), (count, 1)))
    return found.reshape(count), labels


def check_classes(task: str, labels: Tensor, classes: int) -> None:
    """Checks the values of labels; waits for them, if they are on another device.

    Raises:
        MisfitError: one is no class.
    """
    odd = labels[(labels < -1) | (labels >= classes)]
    if len(odd):
        raise MisfitError(
            f"task {task}",
            f"A label is {int(odd[0])}; with {classes} classes they are 0 to {classes - 1}, and -1 where there is "
            "none.",
        )


def check_measured(task: str, labels: Tensor, classes: int) -> None:
    """Checks the values of labels before metrics get them, where it is free: metrics take any.

    Raises:
        MisfitError: as `check_classes`.
    """
    if labels.device.type == "cpu":
        check_classes(task, labels, classes)


def cross_entropy(task: str, logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """Returns PyTorch's cross-entropy.

    Raises:
        MisfitError: as `check_classes`; on the CPU, where PyTorch refuses such labels.
    """
    try:
        return functional.cross_entropy(logits, labels, **options)
    except IndexError:
        check_classes(task, labels, logits.shape[1])
        raise


def _entry(part: str, given: Any, name: str, says: str, it: str) -> Any:
    """What a mapping has under a name."""
    try:
        return given[name]
    except (KeyError, IndexError, TypeError) as error:
        there = f"{it}: {', '.join(map(str, given)) or 'nothing'}" if isinstance(given, Mapping) else ""
        raise MisfitError(
            part, f"{says} no {name!r}; {there or f'expected a mapping that has it, found {_kind(given)}'}."
        ) from error


def _kind(given: object) -> str:
    return f"a {type(given).__name__}"
