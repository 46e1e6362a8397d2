"""The lists that PyTorch's kernels take of every task: made once, and anew when what they are of is another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from equipoise.gradients.jacobian import Row, TaskRows
from equipoise.optim._base import NO_TASK
from equipoise.optim._reduced import Factors
from equipoise.optim.moments import Lists, Moments, listed

is_sparse = attrgetter("is_sparse")


def counts_device(parameter: Tensor, group: Mapping[str, Any]) -> torch.device:
    """Where the parameter's step counts lie: as in `torch.optim.AdamW`, on the host if kernels do not read them."""
    return parameter.device if group["capturable"] or group["fused"] else torch.device("cpu")


class Listing:
    """Keeps, for every task and parameter group, what the task reaches of it and its moments, as lists.

    They hold as long as the task reaches the same leaves with gradients as sparse as before, and the groups hold the
    same parameters and the state the same tensors, on the same devices, in the same dtypes.

    Args:
        tasks: their names.
        state_dtype: of the tasks' first moments; None: the parameter's.
        factored: whether their second moments are kept as `Factors`, where a parameter has two dimensions or more.
    """

    def __init__(self, tasks: Sequence[str], state_dtype: torch.dtype | None = None, factored: bool = False) -> None:
        self._state_dtype, self._factored = state_dtype, factored
        self._place = {task: index for index, task in enumerate(tasks)}
        self.forget()

    def forget(self) -> None:
        """Forgets the lists, which hold on to the state's tensors."""
        self._kept: dict[str, _Kept] = {}
        self._seen = _look([], {})

    def of(
        self, rows: TaskRows, groups: Sequence[dict[str, Any]], state: Mapping[Tensor, dict[str, Tensor]]
    ) -> dict[str, tuple[list[Lists], list[Tensor]]]:
        """Returns task → what its row reaches of each group, in the order of the groups; and its gradients.

        Args:
            rows: task → its row; `NO_TASK` → what `.grad` holds.
            groups: the optimizer's parameter groups.
            state: its state; moments that are not there are made.
        """
        if not self._seen.same(_look(groups, state)):
            self.forget()
        found, made = {}, False
        for task, row in rows.items():
            gradients = self._kept[task].gradients(row) if task in self._kept else None
            if gradients is None:
                self._kept[task], gradients, made = self._make(task, row, groups, state), list(row.values()), True
            found[task] = self._kept[task].lists, gradients
        if made:
            self._seen = _look(groups, state)
        return found

    def moments(self, task: str, parameter: Tensor, group: Mapping[str, Any], state: dict[str, Tensor]) -> Moments:
        """Returns the task's moments of the parameter, its step count as a view; made when first needed.

        Args:
            task: its name.
            parameter: of the group.
            group: says by `fused` and `capturable` where step counts lie.
            state: the parameter's.
        """
        if task == NO_TASK:
            names = ("grad_step", "grad_exp_avg", "grad_exp_avg_sq")
            shape: tuple[int, ...] = ()
        else:
            names = ("step", f"exp_avg.{task}", f"exp_avg_sq.{task}")
            shape = (len(self._place),)
        if names[0] not in state:
            state[names[0]] = torch.zeros(shape, dtype=torch.float32, device=counts_device(parameter, group))
        dtype = None if task == NO_TASK else self._state_dtype
        average = _zeros(state, names[1], parameter, dtype)
        square: Tensor | Factors
        if self._factored and task != NO_TASK and parameter.dim() >= 2:
            rows, columns = parameter.flatten(1).shape
            square = Factors(
                *(
                    state.setdefault(f"{name}.{task}", parameter.new_zeros(size, requires_grad=False))
                    for name, size in (("row_mean_sq", rows), ("column_mean_sq", columns))
                )
            )
        else:
            square = _zeros(state, names[2], parameter, None)
        steps = state[names[0]] if task == NO_TASK else state[names[0]][self._place[task]]
        return Moments(steps, average, square)

    def _make(
        self, task: str, row: Row, groups: Sequence[dict[str, Any]], state: Mapping[Tensor, dict[str, Tensor]]
    ) -> _Kept:
        places = {leaf: place for place, leaf in enumerate(row)}
        lists = [
            listed(  # in the group's order, which is that of new entries of the state
                (places[p], p, row[p].is_sparse, self.moments(task, p, group, state[p]))
                for p in group["params"]
                if p in places
            )
            for group in groups
        ]
        return _Kept(list(row), list(map(is_sparse, row.values())), lists)


def _zeros(state: dict[str, Tensor], name: str, parameter: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Returns an entry of a parameter's state, made in its shape when first needed."""
    if name not in state:
        state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format, dtype=dtype)
    return state[name]


class _Kept(NamedTuple):
    """A task's lists, and which leaves its row had, each with whether its gradient was sparse."""

    leaves: list[Tensor]
    sparse: list[bool]
    lists: list[Lists]

    def gradients(self, row: Row) -> list[Tensor] | None:
        """Returns a row's gradients in the order of the leaves; None if it has others, or other ones are sparse."""
        gradients = list(row.values())
        if not _same(self.leaves, list(row)):
            if row.keys() != set(self.leaves):
                return None
            gradients = [row[leaf] for leaf in self.leaves]
        return gradients if list(map(is_sparse, gradients)) == self.sparse else None


class _Seen(NamedTuple):
    """What all lists depend on: parameters and state by identity, and what can be compared."""

    tensors: list[Tensor]
    facts: list[Any]

    def same(self, other: _Seen) -> bool:
        return self.facts == other.facts and _same(self.tensors, other.tensors)


def _look(groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, dict[str, Tensor]]) -> _Seen:
    parameters = [parameter for group in groups for parameter in group["params"]]
    facts: list[Any] = [(len(group["params"]), group["fused"], group["capturable"]) for group in groups]
    facts += [(parameter.device, parameter.dtype) for parameter in parameters]
    # the lists hold views of the step counts, which `.data` leaves behind in the old memory
    facts += [own["step"].data_ptr() for own in state.values() if "step" in own]
    return _Seen([*parameters, *chain.from_iterable(own.values() for own in state.values())], facts)


def _same(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(tensors) == len(others) and all(map(is_, tensors, others))
