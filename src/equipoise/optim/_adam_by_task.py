"""Adam's moments, a set for every task: what MAO and its neighbours keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from equipoise._checks import check_number
from equipoise._intersection import put
from equipoise.gradients.jacobian import Row, TaskRows
from equipoise.gradients.shards import total_norm
from equipoise.gradients.sparse import coalesced
from equipoise.optim._base import NO_TASK, BalancingOptimizer
from equipoise.optim._fused import can_fuse
from equipoise.optim._listing import Listing, counts_device
from equipoise.optim._pending import by_taking
from equipoise.optim.moments import Lists, decay, update
from equipoise.search_space import Range

VECTORS = {"step", "norm"}
"""Entries of a parameter's state that hold a number a task, `[K]`."""

NUMBERS = {"grad_step", "norm"}
"""Entries of a parameter's state that are kept in float32 at least, whatever the parameter's dtype is."""

EPSILONS = Range(1e-10, 1e-4, log=True)
"""What Adam's ε may be when it is tuned."""


class AdamByTask(BalancingOptimizer):
    """An optimizer with Adam's moments for every task and parameter, and Adam's options.

    `state[parameter]` has "step", the number of updates of each task `[K]`, and "exp_avg.<task>" and
    "exp_avg_sq.<task>"; what `.grad` holds beside the tasks' gradients has "grad_step" and so on.
    """

    _betas: ClassVar[int] = 2
    """How many moving averages there are."""

    def _furnish(self, held: Iterable[Tensor], process_group: Any) -> None:
        super()._furnish(held, process_group)
        self._listing = Listing(list(self.groups))

    def _register(self) -> None:
        super()._register()
        self.register_load_state_dict_pre_hook(_number_counts)
        self.register_load_state_dict_post_hook(_restore_counts)
        self.register_load_state_dict_post_hook(_drop_unused)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, with options of its own.

        Raises:
            ValueError: a hyperparameter is out of range.
        """
        group = {**self.defaults, **param_group}
        check_number("lr", group["lr"], at_least=0)
        if not isinstance(group["betas"], Sequence) or len(group["betas"]) != self._betas:
            count = {2: "two", 3: "three"}[self._betas]
            raise ValueError(f"betas must be {count} numbers in [0, 1), found {group['betas']!r}.")
        for index, beta in enumerate(group["betas"], 1):
            check_number(f"beta{index}", beta, at_least=0, below=1)
        check_number("eps", group["eps"], at_least=0)
        check_number("weight_decay", group["weight_decay"], at_least=0)
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        if added["fused"] is None:
            added["fused"] = can_fuse(added["params"])

    def _update(self, rows: TaskRows, free: Row) -> None:
        if not rows and not self.state and all(float(group["lr"]) == 0 for group in self.param_groups):
            gradients = [coalesced(gradient) for gradient in free.values()]
            if not gradients or not total_norm(gradients):  # else it is a warm-up's first step
                self._make_room()
                return
        every = {**rows, NO_TASK: free} if free else rows
        listed = self._listing.of(every, self.param_groups, self.state)
        for index, group in enumerate(self.param_groups):
            if group["weight_decay"]:
                self._decay(group, {task: lists[index] for task, (lists, _) in listed.items()}, every)
            self._move(group, {task: (lists[index], gradients) for task, (lists, gradients) in listed.items()}, rows)

    def _move(self, group: dict[str, Any], listed: Mapping[str, tuple[Lists, list[Tensor]]], rows: TaskRows) -> None:
        """Updates the parameters of a group.

        Args:
            group: says how.
            listed: task → what it reaches of the group and its moments of that; and its gradients.
            rows: task → its row.
        """
        for task, (lists, gradients) in listed.items():
            update(lists, gradients, self._preferring(group, task), self._pending.taking.get(task))

    def _decay(self, group: dict[str, Any], lists: Mapping[str, Lists], rows: TaskRows) -> None:
        """Decays the parameters of a group that the rows move; those that streaming has moved ahead have been."""
        taking, ahead = self._pending.taking, self._pending.ahead
        certain = [own for task, own in lists.items() if task not in taking]
        whole = {id(p): p for own in certain for p in own.whole}
        decay([p for p in whole.values() if p not in ahead], group)
        rest = {id(p): p for own in lists.values() for p in own.parameters if id(p) not in whole}.values()
        moved = {p: [(row[p], taking.get(task)) for task, row in rows.items() if p in row] for p in rest}
        for takes, decayed in by_taking(rows, taking, rest):
            own = [p for p in decayed if p not in ahead]
            decay(own, group, [moved[p] for p in own], takes)

    def _make_room(self) -> None:
        """Creates zero moments for every task wherever there is a `.grad`: what of them a checkpoint can hold.

        This is how `torch.distributed.checkpoint` asks a new optimizer for its state: it takes a step with gradients
        of zero at the learning rate 0. Loading drops the moments of tasks that have never reached the parameter.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    for task in (*self.groups, NO_TASK):
                        self._listing.moments(task, parameter, group, self.state[parameter])

    def _merged(
        self, own: dict[str, Any], found: dict[str, Any], named: Mapping[str, str], at: Mapping[int, int]
    ) -> dict[str, Any]:
        called = {known_as: task for task, known_as in named.items()}
        taken: dict[str, Any] = {}
        for key, value in found.items():
            kind, task = key.partition(".")[0], _task_of(key)
            if key in VECTORS:
                taken[key] = put(own.get(key, value.new_zeros(len(self.groups))), value, at)
            elif key.startswith("grad_"):
                taken[key] = value
            elif task in called:
                taken[f"{kind}.{called[task]}"] = value
        kept = {key: value for key, value in own.items() if _task_of(key) not in named}
        return {**taken, **{key: value for key, value in kept.items() if key not in taken}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._listing.forget()


def _task_of(key: str) -> str | None:
    """Whose the entry of a parameter's state is; None: no single task's."""
    _, dot, task = key.partition(".")
    return task if dot else None


def _number_counts(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Makes numbers of what loading would cast to the parameters' dtype: it spares step counts named "step"."""
    state = {
        key: {**own, **{name: own[name].tolist() for name in NUMBERS & own.keys()}}
        for key, own in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def _restore_counts(optimizer: Optimizer) -> None:
    """Makes tensors again of the numbers."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            own = optimizer.state.get(parameter, {})
            for name in NUMBERS & own.keys():
                dtype = torch.promote_types(parameter.dtype.to_real(), torch.float32) if name == "norm" else None
                device = counts_device(parameter, group)
                own[name] = torch.tensor(own[name], dtype=dtype or torch.float32, device=device)


def _drop_unused(optimizer: Optimizer) -> None:
    """Drops the moments of tasks that have not reached a parameter: they are 0, and would cost memory."""
    for state in optimizer.state.values():
        steps = state["step"].tolist() if "step" in state else []
        names = optimizer.defaults["groups"] or optimizer.defaults["tasks"]
        unused = {task for task, count in zip(names, steps, strict=False) if count == 0}
        for key in [key for key in state if _task_of(key) in unused]:
            del state[key]
        if "grad_step" in state and state["grad_step"].item() == 0:
            for key in [key for key in state if key.startswith("grad_")]:
                del state[key]
