"""The task gradients that wait for the optimizer's `step`."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

import torch
from torch import Tensor

from equipoise.gradients.jacobian import Row, TaskRows
from equipoise.gradients.micro_batches import Waiting, add_rows, move_into, sparse_in, taking_part
from equipoise.gradients.scale import Factor, Scale, times
from equipoise.gradients.sparse import zero_unless


class Pending(Waiting):
    """What waits for the end of a step, and what waits for the optimizer after it.

    It is one object, which wrappers that copy an optimizer's attributes share.

    Attributes:
        rows: task → its row, of the steps since gradients were cleared.
        taking: task → whether it takes part, 0-dim bool, where the host does not know it.
        ahead: streaming: parameter → its value after `step`.
        factors: what the scalars were multiplied by whose gradients are in the rows, 0-dim.
        without: whether there are gradients in the rows that no factor is in.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: TaskRows = {}
        self.taking: dict[str, Tensor] = {}
        self.ahead: dict[Tensor, Tensor] = {}
        self.factors: list[Tensor] = []
        self.without = False

    def note(self, scale: Scale) -> None:
        """Takes note of the scale of rows that are added."""
        if isinstance(scale, Factor):
            self.factors.append(scale.factor)
        else:
            self.without = True

    def add(self, rows: TaskRows, taking: dict[str, Tensor]) -> None:
        """Adds the rows of a step."""
        self.end()
        again = [task for task in rows if task in self.rows]
        old = {**self.rows, **{task: _zero_unless_taking(self.rows[task], self.taking.get(task)) for task in again}}
        rows = {**rows, **{task: _zero_unless_taking(rows[task], taking.get(task)) for task in again}}
        self.taking = taking_part(self.rows, self.taking, list(rows), taking)
        self.rows = add_rows(old, rows)
        leaves = {id(leaf): leaf for row in self.rows.values() for leaf in row}  # a tensor's own hash takes longer
        self.marks.put(leaves.values(), sparse_in(self.rows))

    def move_ahead(self, ahead: dict[Tensor, Tensor]) -> None:
        """Takes the parameters' values after `step`."""
        self.ahead = ahead
        self.marks.put(ahead)

    def unscaled(self) -> TaskRows:
        """Returns the rows, multiplied by what `.grad` has been multiplied by since: a scaler unscales that alone.

        Raises:
            RuntimeError: there was a factor, and it cannot be seen whether it has been taken back; or it has been, and
                other gradients are without.
        """
        if not self.factors:
            return self.rows
        multiplied_by = self.marks.multiplied_by()
        if multiplied_by is not None:
            if self.without and float(multiplied_by) != 1:  # sync: only where both are there
                raise RuntimeError(
                    "Task gradients of backward() wait beside those of loss(), which a gradient scaler has unscaled; "
                    "the former are not scaled. Call one of both between two steps."
                )
            return {task: times(row, multiplied_by) for task, row in self.rows.items()}
        if any(float(factor) != 1 for factor in self.factors):  # sync: only where nothing else tells
            raise RuntimeError(
                "The scalar of loss() was multiplied, by a gradient scaler perhaps, and every small parameter has "
                "other gradients in .grad, so that it cannot be seen whether it has been unscaled: call "
                "backward(losses, scaler=...) in place of loss()."
            )
        return self.rows

    def cleared(self) -> bool:
        """See `Waiting`."""
        return bool(self.micro_batches or self.rows or self.ahead) and self.marks.cleared()

    def forget(self) -> None:
        """Forgets all."""
        super().forget()
        self.rows = {}
        self.taking = {}
        self.ahead = {}
        self.factors = []
        self.without = False


def _zero_unless_taking(row: Row, taking: Tensor | None) -> Row:
    """Returns a row that others are added to: zeros of a task that takes no part, whatever its gradients are."""
    return row if taking is None else {leaf: zero_unless(taking, gradient) for leaf, gradient in row.items()}


def by_taking(
    rows: Mapping[str, Container[Tensor]], taking: Mapping[str, Tensor], parameters: Iterable[Tensor]
) -> list[tuple[Tensor | None, list[Tensor]]]:
    """Sorts the parameters that rows move by whether a task that moves them takes part.

    Returns:
        That as a 0-dim bool, None where the host knows that one does; and the parameters.
    """
    found: dict[tuple[str, ...], list[Tensor]] = {}
    for parameter in parameters:
        moving = tuple(task for task, row in rows.items() if parameter in row)
        if moving:
            found.setdefault(moving if all(task in taking for task in moving) else (), []).append(parameter)
    return [(torch.stack([taking[t] for t in moving]).any() if moving else None, own) for moving, own in found.items()]


def split(rows: TaskRows, parameters: Container[Tensor]) -> tuple[TaskRows, Row]:
    """Takes rows apart: those of the parameters, and the sum of what other leaves get."""
    held: TaskRows = {}
    others: Row = {}
    for task, row in rows.items():
        held[task] = {leaf: row.pop(leaf) for leaf in list(row) if leaf in parameters}
        move_into(others, row)
    return held, others


def guarded(rows: TaskRows, finite: Tensor) -> TaskRows:
    """Makes the gradients of losses that are not finite, by the bool `[K']`, count as 0."""
    return {
        task: {leaf: zero_unless(good, gradient) for leaf, gradient in row.items()}
        for (task, row), good in zip(rows.items(), finite.unbind(), strict=True)
    }
