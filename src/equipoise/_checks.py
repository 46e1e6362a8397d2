"""Checks of arguments: each message says what was found, what was expected and what to do."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor


def check_number(
    name: str,
    value: float | Tensor,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> float:
    """Returns `value` as a float if it is finite and within the bounds.

    Raises:
        ValueError: it is not.
    """
    bounds = {"> ": above, "≥ ": at_least, "< ": below, "≤ ": at_most}
    expected = "".join(
        f"{' and' if index else ''} {sign}{bound:g}"
        for index, (sign, bound) in enumerate((sign, bound) for sign, bound in bounds.items() if bound is not None)
    )
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if (
        not math.isfinite(number)
        or (above is not None and number <= above)
        or (at_least is not None and number < at_least)
        or (below is not None and number >= below)
        or (at_most is not None and number > at_most)
    ):
        raise ValueError(f"{name} must be a finite number{expected}, found {value!r}.")
    return number


def check_count(name: str, value: int, at_least: int) -> int:
    """Returns `value` if it is an integer of at least that.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name} must be an integer ≥ {at_least}, found {value!r}.")
    return value


def check_seed(seed: int) -> int:
    """Returns `seed` if a random generator takes it.

    Raises:
        ValueError: it is no integer, or too large.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(1 << 63) <= seed < 1 << 64:
        raise ValueError(f"seed must be an integer of at most 64 bits, found {seed!r}.")
    return seed


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """Returns `value` if it is one of `choices`.

    Raises:
        ValueError: it is not.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, found {value!r}.")
    return value


def check_tasks(tasks: Iterable[str]) -> tuple[str, ...]:
    """Returns `tasks` as a tuple of distinct, non-empty names.

    Raises:
        TypeError: `tasks` is a single string or nothing with names in it, or a name is not a string.
        ValueError: there is no task, an empty name, or a name that occurs twice.
    """
    if isinstance(tasks, str):
        raise TypeError(f"tasks must be a sequence of names, found the single string {tasks!r}.")
    if not isinstance(tasks, Iterable):
        raise TypeError(f"tasks must be a sequence of names, found {tasks!r}.")
    names = tuple(tasks)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"Task names must be strings, found {name!r} of type {type(name).__name__}.")
        if not name:
            raise ValueError("A task's name must not be empty.")
    if not names:
        raise ValueError("tasks is empty: name at least one task.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Every task needs a name of its own; found twice: {', '.join(map(repr, twice))}.")
    return names


def check_known(what: str, names: Iterable[str], tasks: Collection[str]) -> None:
    """Checks that every name is one of `tasks`; `what` says where the names were found.

    Raises:
        ValueError: a name is not among `tasks`.
    """
    unknown = [name for name in names if name not in tasks]
    if unknown:
        near = difflib.get_close_matches(str(unknown[0]), list(tasks), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{what}: unknown task {', '.join(map(repr, unknown))}; the tasks are {', '.join(map(repr, tasks))}.{hint}"
        )


def check_metrics(metrics: Mapping[str, float | Tensor] | None, tasks: Collection[str]) -> dict[str, float]:
    """Returns the accuracies as floats if each is of a known task and lies in [0, 1].

    Raises:
        TypeError: `metrics` is not a mapping.
        ValueError: unknown task, or an accuracy outside [0, 1].
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics must be a mapping from task to accuracy, found {type(metrics).__name__}.")
    check_known("metrics", metrics, tasks)
    return {
        task: check_number(f"The accuracy of task {task!r}", value, at_least=0, at_most=1)
        for task, value in metrics.items()
    }


def check_counts(counts: Mapping[str, Any], losses: Collection[str], tasks: Collection[str]) -> None:
    """Checks that every loss has a count; looks at no count.

    Raises:
        TypeError: `counts` is not a mapping.
        ValueError: an unknown task, or a loss without a count.
    """
    if not isinstance(counts, Mapping):
        raise TypeError(f"counts must be a mapping from task to number, found {type(counts).__name__}.")
    check_known("counts", counts, tasks)
    missing = [task for task in losses if task not in counts]
    if missing:
        raise ValueError(
            f"counts lacks task {', '.join(map(repr, missing))}: give the number of labelled samples of every loss."
        )


def check_priorities(priorities: Mapping[str, float] | None, tasks: Sequence[str]) -> dict[str, float]:
    """Returns every task's priority, 1 where none is given; nothing where all are the same, for that says nothing.

    Raises:
        TypeError: `priorities` is no mapping.
        ValueError: a name is no task's, or a priority is not above 0.
    """
    if priorities is None:
        return {}
    if not isinstance(priorities, Mapping):
        raise TypeError(f"priorities must be a mapping from task to factor, found {priorities!r}.")
    check_known("priorities", priorities, tasks)
    given = {task: check_number(f"priorities[{task!r}]", factor, above=0) for task, factor in priorities.items()}
    every = {task: given.get(task, 1.0) for task in tasks}
    return every if len(set(every.values())) > 1 else {}


def check_losses(losses: Mapping[str, Tensor], tasks: Collection[str] | None, *, graph: bool = True) -> None:
    """Checks what is passed to a backward pass: task → scalar tensor with a graph.

    Args:
        losses: the mapping.
        tasks: the known tasks; None accepts any name.
        graph: every loss must have a graph.

    Raises:
        TypeError: `losses` is not a mapping of tensors.
        ValueError: it is empty or has an unknown task, a loss that is not a scalar, or one without a graph.
    """
    if not isinstance(losses, Mapping):
        named = ", ".join(f"{task!r}: ..." for task in tasks or ("depth", "normals"))
        raise TypeError(
            f"losses must be a mapping from task to scalar tensor, found {type(losses).__name__}: pass {{{named}}}."
        )
    if not losses:
        raise ValueError(
            "losses is empty: pass the loss of every task that has a label in this batch, or skip the step."
        )
    if tasks is not None:
        check_known("losses", losses, tasks)
    for task, loss in losses.items():
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"The loss of task {task!r} must be a tensor, found {type(loss).__name__}. Leave the task out of "
                "losses if it has no label in this batch."
            )
        if loss.dim() != 0:
            raise ValueError(
                f"The loss of task {task!r} must be a scalar (0-dim) tensor, found shape {tuple(loss.shape)}: "
                "reduce it, for example with .mean()."
            )
        if loss.is_complex():
            raise ValueError(f"The loss of task {task!r} must be a real number, found {loss.dtype}: take its .abs().")
        if graph and not loss.requires_grad:
            raise ValueError(
                f"The loss of task {task!r} has no graph: no trainable parameter leads to it, or it was detached "
                "or computed under torch.no_grad(). Leave the task out of losses if it has no label in this batch."
            )
