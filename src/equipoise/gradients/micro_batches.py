"""What several calls of `backward` add up to."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from equipoise.gradients.clearing import Marks
from equipoise.gradients.jacobian import Row, TaskRows
from equipoise.gradients.owning import owned
from equipoise.gradients.scale import times
from equipoise.gradients.sparse import added
from equipoise.gradients.step import Step


@dataclass(frozen=True)
class MicroBatches:
    """Task gradients and losses of the micro-batches so far; `plus` gives new ones, so a failed call changes nothing.

    Without counts, gradients and losses add up, as in plain PyTorch. With counts they are kept as sums over the
    samples, and `total` divides by the number of samples, so that the result is that of one large batch.

    Attributes:
        rows: task → its row; empty where gradients went into `.grad` at once.
        values: task → its loss, 0-dim.
        counts: task → its number of labelled samples, 0-dim; None without counts.
        usable: task → whether it takes part in any of them, 0-dim bool, where the host does not know it.
        reached: task → the trained leaves that it reaches.
    """

    rows: TaskRows = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] | None = None
    usable: dict[str, Tensor] = field(default_factory=dict)
    reached: dict[str, dict[Tensor, None]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.values)

    def written(self) -> Iterator[Tensor]:
        """Returns what `.grad` holds of these micro-batches, where their gradients went there at once."""
        leaves = [] if self.rows else dict.fromkeys(leaf for row in self.reached.values() for leaf in row)
        return (leaf.grad for leaf in leaves if leaf.grad is not None)

    def check_counted(self, counted: bool) -> None:
        """Checks that another micro-batch comes with counts if these do.

        Raises:
            ValueError: counts are given for some micro-batches and not for others.
        """
        if self and (self.counts is not None) != counted:
            raise ValueError("Give counts for every micro-batch that is accumulated, or for none.")

    def reached_with(self, tasks: Sequence[str], leaves: Sequence[Sequence[Tensor]]) -> dict[str, list[Tensor]]:
        """Returns what each task reaches in these micro-batches and another one, in which `tasks` reach `leaves`."""
        new = dict(zip(tasks, leaves, strict=True))
        if not self.reached:
            return {task: list(row) for task, row in new.items()}
        every = dict.fromkeys([*self.reached, *tasks])
        return {task: list(dict.fromkeys([*self.reached.get(task, {}), *new.get(task, ())])) for task in every}

    def plus(self, step: Step, rows: TaskRows, reached: Mapping[str, Iterable[Tensor]]) -> MicroBatches:
        """Adds a micro-batch; takes the rows over."""
        taking = {} if step.usable is None else dict(zip(step.tasks, step.usable.unbind(), strict=True))
        values = _numbers_of_taking(taking, dict(zip(step.tasks, step.values.unbind(), strict=True)))
        counts = None
        if step.counts is None:
            rows = {task: owned(row) for task, row in rows.items()}
        else:
            new = _numbers_of_taking(taking, dict(zip(step.tasks, step.counts.unbind(), strict=True)))
            counts = _sums(self.counts or {}, new)
            values = {task: value * new[task] for task, value in values.items()}
            rows = {task: times(row, new[task]) for task, row in rows.items()}
        seen = {task: {**self.reached.get(task, {}), **dict.fromkeys(leaves)} for task, leaves in reached.items()}
        return MicroBatches(
            {**self.rows, **{task: _summed(self.rows.get(task, {}), row) for task, row in rows.items()}},
            _sums(self.values, values),
            counts,
            taking_part(self.values, self.usable, step.tasks, taking),
            {**self.reached, **seen},
        )

    def total(self, tasks: Sequence[str]) -> Collected:
        """Returns all micro-batches together, in the order of `tasks`."""
        names = tuple(task for task in tasks if task in self.values)
        values = torch.stack([self.values[task] for task in names])
        rows = {task: self.rows[task] for task in names if task in self.rows}
        usable = None
        if self.usable:
            certain = torch.ones((), dtype=torch.bool, device=values.device)
            usable = torch.stack([self.usable.get(task, certain) for task in names])
        if self.counts is not None:
            counts = torch.stack([self.counts[task] for task in names])
            counts = torch.where(counts > 0, counts, 1.0)
            values = values / counts
            inverse = dict(zip(names, counts.reciprocal().unbind(), strict=True))
            rows = {task: times(row, inverse[task]) for task, row in rows.items()}
        reached = {task: list(self.reached.get(task, {})) for task in names}
        return Collected(names, rows, values, usable, reached)


@dataclass(frozen=True)
class Collected:
    """The rows of a whole step.

    Attributes:
        tasks: the K' tasks of the step.
        rows: task → its row `c_k ∂L_k`, over all micro-batches and ranks, unscaled.
        values: their losses `[K']`.
        usable: which of them take part, `[K']` bool, where the host does not know it; None: all.
        reached: task → the trained leaves that it reaches.
    """

    tasks: tuple[str, ...]
    rows: TaskRows
    values: Tensor
    usable: Tensor | None
    reached: dict[str, list[Tensor]]

    def of(self, tasks: Sequence[str]) -> Collected:
        """Returns what is there of these tasks, which are in order."""
        if len(tasks) == len(self.tasks):
            return self
        places = [index for index, task in enumerate(self.tasks) if task in tasks]

        def entries(vector: Tensor) -> Tensor:
            return torch.cat([vector[:0], *(vector[index : index + 1] for index in places)])

        return Collected(
            tuple(tasks),
            {task: self.rows[task] for task in tasks},
            entries(self.values),
            None if self.usable is None else entries(self.usable),
            {task: self.reached[task] for task in tasks},
        )


class Waiting:
    """What waits for the end of a step, and is forgotten as one: by whoever clears the gradients."""

    def __init__(self) -> None:
        self.micro_batches = MicroBatches()
        self.marks = Marks()

    def keep(self, micro_batches: MicroBatches) -> None:
        """Has micro-batches wait for the next one."""
        self.micro_batches = micro_batches
        leaves = dict.fromkeys(leaf for leaves in micro_batches.reached.values() for leaf in leaves)
        self.marks.put(leaves, sparse_in(micro_batches.rows))

    def cleared(self) -> bool:
        """Whether the gradients have been cleared while something waited; errors as in `Marks.cleared`."""
        return bool(self.micro_batches) and self.marks.cleared()

    def end(self) -> None:
        """Takes note that the micro-batches have become a step."""
        if self.micro_batches:
            self.micro_batches = MicroBatches()
        self.marks.remove()

    def forget(self) -> None:
        """Forgets all."""
        self.end()


def add_rows(old: TaskRows, new: TaskRows) -> TaskRows:
    """Adds gradients task by task, leaf by leaf; changes neither argument."""
    return {**old, **{task: _summed(old.get(task, {}), row) for task, row in new.items()}}


def move_into(total: Row, row: Row) -> None:
    """Adds a row's gradients into `total`, changing none in place, and empties it: nobody else holds them then."""
    for leaf in list(row):
        gradient = row.pop(leaf)
        total[leaf] = added(total[leaf], gradient) if leaf in total else gradient


def sparse_in(rows: TaskRows) -> set[Tensor]:
    """Returns the leaves that have a sparse gradient."""
    return {leaf for row in rows.values() for leaf, gradient in row.items() if gradient.is_sparse}


def _summed(old: Row, new: Row) -> Row:
    return {**old, **{leaf: added(old[leaf], g) if leaf in old else g for leaf, g in new.items()}}


def taking_part(
    there: Container[str], usable: Mapping[str, Tensor], tasks: Sequence[str], new: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Says of which tasks the host does not know whether they take part, and whether they do, after one more step.

    Args:
        there: the tasks before.
        usable: task → whether it takes part, 0-dim bool, for those of them of which the host does not know it.
        tasks: the tasks of the step.
        new: the same for them.
    """
    either = {task: takes for task, takes in usable.items() if task not in tasks}
    for task, takes in new.items():
        if task in usable:
            either[task] = usable[task] | takes
        elif task not in there:
            either[task] = takes
    return either


def _numbers_of_taking(taking: Mapping[str, Tensor], numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {task: torch.where(taking[task], n, 0.0) if task in taking else n for task, n in numbers.items()}


def _sums(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {**old, **{key: old[key] + value if key in old else value for key, value in new.items()}}
