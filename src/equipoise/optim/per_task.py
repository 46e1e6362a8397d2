"""PerTask: any optimizer, with a state of its own for every task."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import (
    ASGD,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
)
from torch.optim.optimizer import Optimizer, ParamsT

from equipoise.gradients.jacobian import Row, TaskRows
from equipoise.gradients.sparse import coalesced
from equipoise.optim._base import KIND, NO_TASK, BalancingOptimizer
from equipoise.optim._fused import can_fuse
from equipoise.optim.moments import decay
from equipoise.optim.muon import MuonAndAdamW

MUON = (torch.optim.Muon,) if hasattr(torch.optim, "Muon") else ()

BY_GRADIENTS_ALONE = {SGD, Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad, Adadelta, Rprop, MuonAndAdamW, *MUON}
"""Optimizers whose updates, weight decay aside, do not depend on where the parameters are: made one after the other,
they add up."""

DECOUPLED = {AdamW, Adafactor, MuonAndAdamW, *MUON}
COUPLED = {SGD, Adam, NAdam, RAdam, Adamax, RMSprop, Adagrad, Adadelta, ASGD}
"""Where PyTorch's optimizers have weight decay, unless a group's `decoupled_weight_decay` says otherwise."""

OF_TASKS = {"tasks", "groups", "chunk_size", KIND}
"""Options of a group that the base has nothing to do with."""


class PerTask(BalancingOptimizer):
    """Any optimizer, with a state of its own for every task: what MAO is to AdamW, for another one.

    With `U(s, g)` the update that the base optimizer makes of its state s and a gradient g, per task k:

    `θ ← θ + Σ_k U(s_k, g_k)`, where `s_k` is advanced by `g_k` alone.

    All updates are those at the same θ. With one task this is the base optimizer, number for number; with
    `torch.optim.SGD` and tasks that are all there, that of the summed losses, for its update is linear; with
    `torch.optim.AdamW` it is `MAO`, bit for bit, which has all tasks' moments in PyTorch's kernels, streams, takes
    sparse gradients and is sharded: prefer MAO there.

    Weight decay is applied once and not once a task. Where the base has it decoupled, `θ ← (1 − η λ) θ` comes first;
    where it is part of the gradient, each of the K' tasks that move a parameter gets `λ θ / K'` of it.

    A task that is left out of a step leaves its state as it is. The base's `step` is called once a task, with the
    task's gradients in `.grad`: what it waits for, the host waits for K times. Where the numbers of labels lie on a
    device alone, the host waits for them, too; MAO waits for nothing.

    Args:
        base: class of an optimizer, such as `torch.optim.Muon`; not one whose `step` needs a closure.
        params: parameters, or groups of them with options of the base's.
        tasks: the tasks' names.
        priorities: task → factor > 0, 1 where left out, that multiplies the task's learning rate.
        chunk_size: as in `MAO`.
        groups: as in `MAO`.
        max_norm: as in `MAO`.
        decoupled: whether the base's weight decay is apart from the gradient. None: as it is, of PyTorch's optimizers.
        check_finite: as in `MAO`.
        process_group: as in `MAO`.
        **options: the base's, such as `lr` and `momentum`, its defaults where left out. Kernels of Adam's and AdamW's
            are fused where they are available.

    What `.grad` holds beside the tasks' gradients is as in `MAO` no task's, and has a state of its own. Sparse
    gradients become dense.

    Raises:
        TypeError: `base` is no optimizer's class, or does not take an option.
        ValueError: its `step` needs a closure; weight decay of a class that is not PyTorch's, and no `decoupled`;
            or as `MAO` and the base raise it.

    Source: Hervella et al. 2024 (see `MAO`), section 4: the method goes with any optimizer.

    Example:
        >>> import torch, equipoise as eq
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = eq.PerTask(torch.optim.SGD, model.parameters(), ["left", "right"], lr=0.1, momentum=0.9)
        >>> left, right = model(torch.randn(8, 4)).square().mean(0)
        >>> weights = optimizer.backward({"left": left, "right": right})
        >>> optimizer.step()
        >>> optimizer.zero_grad()
    """

    _copied: ClassVar[tuple[str, ...]] = (*BalancingOptimizer._copied, "base", "_options", "_decoupled")

    def __init__(
        self,
        base: type[Optimizer],
        params: ParamsT,
        tasks: Iterable[str],
        *,
        priorities: Mapping[str, float] | None = None,
        chunk_size: int | None = None,
        groups: int | Mapping[str, Iterable[str]] | None = None,
        max_norm: float | None = None,
        decoupled: bool | None = None,
        check_finite: bool | None = None,
        process_group: Any = None,
        **options: Any,
    ) -> None:
        if not isinstance(base, type) or not issubclass(base, Optimizer) or issubclass(base, BalancingOptimizer):
            raise TypeError(f"base must be the class of an optimizer, such as torch.optim.SGD; found {base!r}.")
        closure = inspect.signature(base.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ValueError(f"{base.__name__}.step needs a closure, and cannot make an update of a task's gradient.")
        self.base, self._options, self._decoupled = base, options, decoupled
        self._bases: dict[str, Optimizer] = {}
        first = base(params, **options)
        super().__init__(
            first.param_groups,
            tasks,
            {**first.defaults, KIND: f"PerTask of {base.__module__}.{base.__qualname__}"},
            priorities=priorities,
            chunk_size=chunk_size,
            groups=groups,
            max_norm=max_norm,
            check_finite=check_finite,
            process_group=process_group,
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, with options of its own.

        Raises:
            ValueError: see the class.
        """
        for group in self.base([param_group], **self._options).param_groups:
            self._check_decay({**self.defaults, **group})
            super().add_param_group(group)
            added = self.param_groups[-1]
            if self.base in (Adam, AdamW) and added["fused"] is None and not added["foreach"]:
                added["fused"] = can_fuse(added["params"])
        self._bases = {}

    def _check_decay(self, group: Mapping[str, Any]) -> None:
        if group.get("weight_decay") and self._is_decoupled(group) is None:
            raise ValueError(
                f"{self.base.__name__} has a weight decay of {group['weight_decay']!r}, and it is not known whether "
                "that is apart from the gradient: say decoupled=True or decoupled=False, or weight_decay=0."
            )

    def _is_decoupled(self, group: Mapping[str, Any]) -> bool | None:
        """Whether weight decay is apart from the gradient; None: it is not known."""
        if self._decoupled is not None:
            return self._decoupled
        if "decoupled_weight_decay" in group:
            return bool(group["decoupled_weight_decay"])
        return self.base in DECOUPLED if self.base in DECOUPLED | COUPLED else None

    def of_task(self, task: str) -> Optimizer:
        """Returns the base optimizer with the state of a task (with groups, of a group of tasks)."""
        if task not in self._bases:
            made = self.base([self._of_base(group, task) for group in self.param_groups], **self._options)
            for parameter, kept in self.state.items():
                if task in kept:
                    made.state[parameter] = kept[task]
            self._bases[task] = made
        made = self._bases[task]
        for own, group in zip(made.param_groups, self.param_groups, strict=True):
            own.update(self._of_base(group, task))
        return made

    def _of_base(self, group: dict[str, Any], task: str) -> dict[str, Any]:
        """Returns a group as the base has it for a task: with its learning rate, and without weight decay."""
        own = {key: value for key, value in self._preferring(group, task).items() if key not in OF_TASKS}
        return {**own, "weight_decay": 0} if "weight_decay" in own else own

    def _update(self, rows: TaskRows, free: Row) -> None:
        taking = self._pending.taking
        every = {task: row for task, row in rows.items() if task not in taking or bool(taking[task])}  # sync: see above
        if free:
            every[NO_TASK] = free
        movers = Counter(parameter for row in every.values() for parameter in row)
        decoupled, pulls = self._decays(movers)
        at_once = self.base in BY_GRADIENTS_ALONE
        starts = {p: p.detach().clone() for p in movers if p in pulls or not at_once}
        if at_once:
            for group, moved in decoupled:
                decay(moved, group)
        gradients = [(p, p.grad) for group in self.param_groups for p in group["params"]]
        others: dict[Tensor, Tensor] = {}
        try:
            for p, _ in gradients:
                p.grad = None
            for task, row in every.items():
                dense = {p: coalesced(g).to_dense() if g.is_sparse else g for p, g in row.items()}
                self._step(task, {p: g.add(starts[p], alpha=pulls[p]) if p in pulls else g for p, g in dense.items()})
                movers.subtract(list(row))
                for p in row if not at_once else ():
                    if movers[p]:  # more are to come, at the same parameters
                        others[p] = p - starts[p] + others.get(p, 0.0)
                        p.copy_(starts[p])
                    elif p in others:
                        p.add_(others[p])
        finally:
            for p, gradient in gradients:
                p.grad = gradient
        if not at_once:
            for group, moved in decoupled:
                for p in moved:
                    p.sub_(starts[p] * (group["lr"] * group["weight_decay"]))

    def _decays(
        self, movers: Mapping[Tensor, int]
    ) -> tuple[list[tuple[dict[str, Any], list[Tensor]]], dict[Tensor, float]]:
        """Sorts the parameters that are moved and decay by where the base has its weight decay.

        Returns:
            Each group that decays apart from the gradient, with its parameters; and parameter → what of it is added to
            each task's gradient.
        """
        decoupled: list[tuple[dict[str, Any], list[Tensor]]] = []
        pulls: dict[Tensor, float] = {}
        for group in self.param_groups:
            moved = [p for p in group["params"] if p in movers]
            if not group.get("weight_decay"):
                continue
            if self._is_decoupled(group):
                decoupled.append((group, moved))
            else:
                sign = -1 if group.get("maximize") else 1
                pulls |= {p: sign * group["weight_decay"] / movers[p] for p in moved}
        return decoupled, pulls

    def _step(self, task: str, gradients: Row) -> None:
        """Has the base make a task's update."""
        base = self.of_task(task)
        for p, gradient in gradients.items():
            p.grad = gradient
        base.step()
        for p in gradients:
            p.grad = None
            self.state[p][task] = base.state[p]

    def _merged(
        self, own: dict[str, Any], found: dict[str, Any], named: Mapping[str, str], at: Mapping[int, int]
    ) -> dict[str, Any]:
        known = {**named, NO_TASK: NO_TASK}
        kept = {task: state for task, state in own.items() if task not in named}
        return {**kept, **{task: found[found_as] for task, found_as in known.items() if found_as in found}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bases = {}
