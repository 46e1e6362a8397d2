"""What the optimizers that balance by themselves have in common: a gradient a task comes in, and waits for `step`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from equipoise._checks import check_choice, check_number, check_priorities, check_tasks
from equipoise._intersection import MATCHES, Match, in_common, optimizer_state
from equipoise._scalar import balanced, refuse_sharded, refuse_waiting
from equipoise.gradients.batching import Batching
from equipoise.gradients.graph.compiled import keep_buffers
from equipoise.gradients.jacobian import Row, TaskRows
from equipoise.gradients.micro_batches import Collected
from equipoise.gradients.owning import owned
from equipoise.gradients.ranks import Company
from equipoise.gradients.reading import Reader
from equipoise.gradients.rows import Rows
from equipoise.gradients.scale import Factor
from equipoise.gradients.step import Step
from equipoise.gradients.watching import Watcher, Watching
from equipoise.gradients.writing import all_finite, write
from equipoise.optim._groups import grouped, of_groups
from equipoise.optim._pending import Pending, guarded, split
from equipoise.optim.moments import clipped

NO_TASK = ""
"""The name, which no task has, of what `.grad` holds."""

KIND = "optimizer"
"""The key of a parameter group under which its state tells whose it is; of MAO's, which has none, it is MAO."""

MAO = "MAO"


class BalancingOptimizer(Optimizer):
    """An optimizer that balances by itself: `backward` keeps a gradient a task, `step` makes one update of them.

    What the update is, a subclass says in `_update`; `state` is by parameter, as PyTorch has it, and what of it is a
    task's the subclass tells in `_merged`.

    Attributes:
        tasks: the tasks' names.
        groups: group → its tasks, which are one task to the optimizer; by default every task by itself.
        priorities: group → factor of its update; nothing where all are alike.
        max_norm: to which norm each task's gradient is clipped; None: to none.
        check_finite: see `MAO`.
    """

    _copied: ClassVar[tuple[str, ...]] = ("tasks", "groups", "priorities", "max_norm", "check_finite", "_batching")
    """Attributes that a copy has."""

    def __init__(
        self,
        params: ParamsT,
        tasks: Iterable[str],
        defaults: dict[str, Any],
        *,
        priorities: Mapping[str, float] | None,
        chunk_size: int | None,
        check_finite: bool | None,
        process_group: Any,
        groups: int | Mapping[str, Iterable[str]] | None = None,
        max_norm: float | None = None,
    ) -> None:
        self.tasks = check_tasks(tasks)
        self.groups = grouped(self.tasks, groups)
        self.priorities = of_groups(check_priorities(priorities, self.tasks), self.groups)
        self.max_norm = None if max_norm is None else check_number("max_norm", max_norm, above=0)
        self.check_finite = check_finite
        self._batching = Batching(chunk_size)
        self._furnish([], process_group)
        of_tasks = {
            "tasks": list(self.tasks),
            "groups": None if groups is None else {group: list(members) for group, members in self.groups.items()},
            "chunk_size": None,  # what has been chosen, for checkpoints
        }
        super().__init__(params, {**defaults, **of_tasks})
        self._register()
        keep_buffers()

    def _furnish(self, held: Iterable[Tensor], process_group: Any) -> None:
        """Makes what a step needs beside the parameters and their state."""
        self._company = Company(held, process_group=process_group)
        self._watching = Watching()
        self._pending = Pending()
        self._reader = Reader(self._company, self.tasks, self.check_finite, self._pending, self._batching)
        self._rows = Rows(self._company, list(self.groups), self._pending)

    def _register(self) -> None:
        self.register_state_dict_pre_hook(_note_chunk_size)
        self.register_load_state_dict_pre_hook(_check_state)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, with options of its own.

        Raises:
            ValueError: a hyperparameter is out of range.
        """
        super().add_param_group(param_group)
        self._company.order.know(self.param_groups[-1]["params"])

    def backward(
        self,
        losses: Mapping[str, Tensor],
        accumulate: bool = False,
        counts: Mapping[str, float | Tensor] | None = None,
        scaler: torch.amp.GradScaler | None = None,
        retain_graph: bool = False,
    ) -> dict[str, Tensor]:
        """Computes and keeps the task gradients, one backward pass a task, for `step()`.

        Args:
            losses: task → scalar loss; leave out the tasks that have no label in this batch.
            accumulate: True on all micro-batches of a step but the last. Gradients add up until `zero_grad()`, as in
                plain PyTorch, so divide the losses, or pass `counts`.
            counts: task → number of labelled samples behind its mean loss: micro-batches are averaged exactly. A
                count of 0 leaves the task out.
            scaler: the `torch.amp.GradScaler` that will step this optimizer. The moments see unscaled gradients; where
                they overflow, the scaler finds it in `.grad`.
            retain_graph: keep the graph for another backward pass.

        Returns:
            Task → 1: there are no loss weights.

        Raises:
            TypeError: losses is not a mapping of tensors.
            ValueError: unknown task, no loss, a loss that is not a scalar, has no graph, or is NaN or infinite;
                gradients were cleared in part. Nothing has changed then.
        """
        empty = self._company.now().active or bool(self._pending.micro_batches)
        step = self._reader.read(losses, counts, scaler, empty=empty, accumulate=accumulate, retain_graph=retain_graph)
        if accumulate and counts is not None and step.tasks and self.defaults["groups"] is not None:
            raise ValueError("groups sums losses before counts could weigh them: accumulate without counts.")
        return self._collect(step)

    def loss(self, losses: Mapping[str, Tensor], counts: Mapping[str, float | Tensor] | None = None) -> Tensor:
        """Returns the sum of the losses as a scalar whose backward pass does what `backward(losses)` does.

        For frameworks that call `loss.backward()` themselves; see `Balancer.forward`. A factor in front of it stays in
        the task gradients; what `.grad` is multiplied by before `step()` multiplies them, too, so that a gradient
        scaler that steps this optimizer unscales them.

        Args:
            losses: as in `backward`.
            counts: as in `backward`.

        Raises:
            TypeError: as in `backward`.
            ValueError: as in `backward`; micro-batches of `backward` wait; parameters are sharded.
        """
        ranks, with_graph = self._company.now(), torch.is_grad_enabled()
        step = self._reader.read(losses, counts, None, empty=ranks.active, graph=with_graph)
        total = step.taking(step.values, 0.0).sum()
        if not with_graph:
            return total
        refuse_sharded(ranks, f"{type(self).__name__}.loss()")
        refuse_waiting(self._pending)
        return balanced(step, total, self._collect, scale=Factor)

    def _collect(self, step: Step) -> dict[str, Tensor]:
        """Computes the task gradients of a step, and keeps them unless further micro-batches follow."""
        if not step.tasks:
            if not step.accumulate:
                self._take(self._rows.finish(), step)
            return {}
        names = step.tasks
        if self.defaults["groups"] is not None:
            step = step.joined(self.groups)
        ones = torch.ones_like(step.values)
        self._run(step, ones)
        return dict.fromkeys(names, ones[0])

    def _run(self, step: Step, ones: Tensor) -> None:
        """Computes the task gradients of a step that has tasks."""
        self._take(self._rows.run(step, ones), step)

    def _take(self, collected: Collected | None, step: Step) -> None:
        """Keeps the rows of a whole step for `step()`, and writes what other parameters get."""
        if collected is None:
            return
        ranks, scale = self._company.now(), step.scale
        finite = collected.values.isfinite()
        valid = finite.all()
        if scale.checked:
            every = [gradient for row in collected.rows.values() for gradient in row.values()]
            valid = valid & ranks.all_true(all_finite(every, step.values.device))
            del every
        held, others = split(collected.rows, self._held)
        if not scale.checked and not self._reader.looks(step):
            held = guarded(held, finite)
        taking = {} if collected.usable is None else dict(zip(collected.tasks, collected.usable.unbind(), strict=True))
        self._pending.add({task: owned(row) for task, row in held.items()}, taking)
        if scale.checked:
            self._pending.marks.spoil(unless=valid)
        self._pending.note(scale)
        write(scale.gradients(others))

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates the parameters from the task gradients of `backward()`, and from what else is in `.grad`.

        Args:
            closure: computes the losses anew and calls `backward()`; its value is returned.

        Raises:
            ValueError: gradients were cleared in part since `backward()`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._pending.cleared():
            self._pending.forget()
        pending = self._pending
        free = pending.marks.others(p for group in self.param_groups for p in group["params"])
        rows = pending.unscaled()
        if self.max_norm is not None:
            rows = {task: clipped(row, self.max_norm) for task, row in rows.items()}
        self._update(rows, free)
        watcher = self._watching.now
        if rows and watcher is not None:
            watcher.see_taken(self, rows)
        return loss

    @abstractmethod
    def _update(self, rows: TaskRows, free: Row) -> None:
        """Updates the parameters and the state.

        Args:
            rows: group of tasks → its row; whether those in `self._pending.taking` take part, the device alone knows.
            free: what `.grad` holds beside the tasks' gradients.
        """

    @property
    def _held(self) -> set[Tensor]:
        return {parameter for group in self.param_groups for parameter in group["params"]}

    @abstractmethod
    def _merged(
        self, own: dict[str, Any], found: dict[str, Any], named: Mapping[str, str], at: Mapping[int, int]
    ) -> dict[str, Any]:
        """Returns a parameter's state after taking over another optimizer's, of the tasks of both.

        Args:
            own: this one's; may be empty.
            found: the other's.
            named: group of tasks of this one → the same of the other.
            at: place of a group of tasks in this one → its place in the other.
        """

    def load_state_dict(self, state_dict: dict[str, Any], *, tasks: Match = "equal") -> None:
        """Takes over what `state_dict()` gave.

        Args:
            state_dict: of the same class.
            tasks: "equal": it has to be of the same tasks, groups and parameters. "intersection": of others, too: the
                state of the tasks (or of groups of the same tasks) of both is taken over, by their names; what this
                optimizer has of its other tasks stays as it is. Parameters are told by their names, where both were
                made with `model.named_parameters()`, else by their places. Options of the groups are taken over.

        Raises:
            ValueError: it is of another optimizer, of other tasks or parameters where they have to be equal, or no task
                is in both. Nothing has changed then.
        """
        if check_choice("tasks", tasks, MATCHES) == "intersection":
            _check_kind(self, state_dict)
            state_dict = self.in_common(state_dict, _names(self.param_groups), _names(state_dict["param_groups"]))
        super().load_state_dict(state_dict)

    def in_common(
        self, state: Mapping[str, Any], own_names: Sequence[str] | None, found_names: Sequence[str] | None
    ) -> dict[str, Any]:
        """Returns the state that this optimizer has after taking over another's, of the tasks and parameters of both.

        Args:
            state: the other's.
            own_names: see `optimizer_state`.
            found_names: see `optimizer_state`.

        Raises:
            ValueError: no task is in both; or see `optimizer_state`.
        """
        own_groups, found_groups = self.groups, _groups(state["param_groups"][0])
        at = in_common([set(tasks) for tasks in found_groups.values()], [set(tasks) for tasks in own_groups.values()])
        named = {list(own_groups)[own]: list(found_groups)[found] for own, found in at.items()}

        def merge(own: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
            return self._merged(own, found, named, at)

        result = optimizer_state(self, state, own_names, found_names, merge)
        for group, own in zip(result["param_groups"], self.param_groups, strict=True):
            group.update({what: own[what] for what in ("tasks", "groups", "chunk_size")})
        return result

    def _preferring(self, group: dict[str, Any], task: str) -> dict[str, Any]:
        """The group's options with the task's learning rate."""
        priority = self.priorities.get(task, 1.0)
        return group if priority == 1 else {**group, "lr": group["lr"] * priority}

    def watch(self, watcher: Watcher | None) -> None:
        """Has a watcher, such as `BalanceMonitor`, see the steps it asks for; None: no longer."""
        self._watching.begin(watcher)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the task gradients, and clears `.grad`."""
        self._pending.forget()
        super().zero_grad(set_to_none)

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in self._copied}
        return {**super().__getstate__(), **own, "_ranks": self._company.ranks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not self._optimizer_load_state_dict_pre_hooks:  # a copy: torch.optim hands on no hooks
            self._register()
        keep_buffers()
        if "_ranks" in state:  # a copy
            held = [parameter for group in self.param_groups for parameter in group["params"]]
            self._furnish(held, self.__dict__.pop("_ranks").process_group)
        else:  # loading a state_dict
            self._pending.forget()
            self._batching.choose(self.param_groups[0].setdefault("chunk_size", None))


def _groups(options: Mapping[str, Any]) -> dict[str, list[str]]:
    """Group → its tasks."""
    return options["groups"] or {task: [task] for task in options["tasks"]}


def _names(groups: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """The parameters' names, if the optimizer was given any."""
    named = [group["param_names"] for group in groups if "param_names" in group]
    return list(chain.from_iterable(named)) if len(named) == len(groups) else None


def _note_chunk_size(optimizer: Any) -> None:
    """Has `state_dict` tell how many tasks go at once, once that is known."""
    for group in optimizer.param_groups:
        group["chunk_size"] = optimizer._batching.chosen


def _check_kind(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Refuses the state of another optimizer.

    Raises:
        ValueError: it is one.
    """
    if "param_groups" not in state_dict:
        raise ValueError("This is no state_dict of an optimizer: it has no 'param_groups'.")
    expected = optimizer.defaults.get(KIND, MAO)
    for group in state_dict["param_groups"]:
        if "tasks" not in group:
            raise ValueError(
                f"This state_dict is not of {expected}: it names no tasks. Load it into the optimizer it is of."
            )
        if group.get(KIND, MAO) != expected:
            raise ValueError(
                f"This state_dict is of {group.get(KIND, MAO)}, expected one of {expected}. "
                "Load it into the optimizer it is of."
            )


def _check_state(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Refuses the state of another optimizer or of other tasks before anything is loaded."""
    _check_kind(optimizer, state_dict)
    for group in state_dict["param_groups"]:
        for what in ("tasks", "groups"):
            expected = optimizer.defaults[what]
            if group[what] != expected:
                raise ValueError(
                    f"This state_dict is of other {what}: found {group[what]}, expected {expected}. "
                    f"Load it into a {optimizer.defaults.get(KIND, MAO)} made with the same {what} in the same order."
                )
