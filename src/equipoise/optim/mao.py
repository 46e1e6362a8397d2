"""MAO: Multi-Adaptive Optimization, moments per task and per parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from equipoise._checks import check_known, check_number, check_tasks
from equipoise.gradients.accumulate import accumulate_gradients, unscale_rows
from equipoise.gradients.batch import Batch, checks_values
from equipoise.gradients.compiled import keep_buffers
from equipoise.gradients.jacobian import Rows
from equipoise.gradients.micro_batches import MicroBatches, add_rows
from equipoise.gradients.passes import Passes
from equipoise.gradients.ranks.shards import local, locals_of, total_norm
from equipoise.gradients.watching import Watcher
from equipoise.optim.moments import Moments, decay, update

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


@dataclass
class _Pending:
    """Task gradients that wait for `step`: one object, which wrappers that copy an optimizer's attributes share."""

    micro_batches: MicroBatches = field(default_factory=MicroBatches)
    rows: Rows = field(default_factory=dict)
    ahead: dict[Tensor, Tensor] = field(default_factory=dict)  # streaming: parameter → its value after `step`


class MAO(Optimizer):
    """Adam with moments of its own for every task: each task moves each parameter by a step of like size.

    Per task n and parameter θ, with exponential moving averages `m_n` of the gradient `g_n` and `v_n` of its square:

    `θ ← θ − Σ_n η m̂_n / (√v̂_n + ε) − η λ θ`, where `m̂ = m / (1 − β₁^t)`, `v̂ = v / (1 − β₂^t)`.

    The bias correction and ε are Adam's, as the paper says they are (it prints them otherwise): with one task MAO is
    `torch.optim.AdamW`, number for number. `t` counts, per task and parameter, the steps the task took part in. Weight
    decay is applied once, not once a task. A task that does not reach a parameter, or is left out of a step, leaves its
    moments of that parameter as they are and contributes nothing. The scale of a loss does not matter, so there
    are no loss weights. `betas=(0, β₂)` is the paper's form without a first moment (Eq. 8-9).

    The sum over tasks is a sum: K tasks that agree take K Adam steps at once. Tune the learning rate anew.

    Args:
        params: parameters, or groups of them with `lr`, `betas`, `eps`, `weight_decay` of their own.
        tasks: the tasks' names.
        lr: learning rate η; a float or a tensor.
        betas: decay rates β₁ and β₂ of the two moving averages, in [0, 1).
        eps: ε, at least 0.
        weight_decay: λ, decoupled, at least 0.
        groups: let tasks share moments: a mapping from group to tasks, or a number of groups that the tasks are dealt
            to in turn. A group's losses are summed, with one backward pass and one set of moments, so that a step costs
            what as many tasks as groups cost; within a group the losses' scales matter. None: every task by itself.
        max_norm: clip each task's gradient over all parameters held to this norm before the moments see it.
            (Clipping `.grad` does nothing here: MAO works with the task gradients.)
        streaming: make each task's update as soon as its gradient is there, on a copy of the parameters whose values
            they take in `step()`. A step then holds two copies of the parameters, that one and a gradient, in place
            of K gradients; the numbers are the same. There is one `backward` a step, without `accumulate` and
            `scaler`; the learning rate and other options are those at `backward`; what changes parameters before
            `step()` is undone by it; and `zero_grad()` in its place leaves what the moments have taken in.
        capturable: keep the step counts on the device, as `torch.optim.AdamW` does, for use in CUDA graphs.
        fused: use PyTorch's fused kernels; None: where they are available.
        check_finite: raise for a NaN or infinite loss before anything changes. None: on the CPU only, since elsewhere
            it costs a synchronisation; there such a loss's gradient counts as 0.
        process_group: as in `Balancer`, which says how a step on several ranks gives the numbers of one process.

    Under `fully_shard` the moments are sharded like their parameters. A checkpoint of `torch.distributed.checkpoint`
    loads on any number of ranks with `DefaultLoadPlanner(allow_partial_load=True)`: a new optimizer does not know which
    tasks reach which parameters, and asks for all moments there could be.

    Raises:
        TypeError: `groups` is neither a number nor a mapping.
        ValueError: a hyperparameter out of range; no task, or one named twice; groups that do not fit the tasks.

    Parameters that the losses reach but this optimizer does not hold get `.grad`, as from `sum(losses).backward()`.

    Source: Hervella et al., "Multi-Adaptive Optimization for multi-task learning with deep neural networks", Neural
    Networks 2024, Eq. 7-12.

    Example:
        >>> import torch, equipoise as eq
        >>> trunk, heads = torch.nn.Linear(4, 8), torch.nn.ModuleList(torch.nn.Linear(8, 1) for _ in range(2))
        >>> optimizer = eq.MAO([*trunk.parameters(), *heads.parameters()], ["left", "right"], lr=1e-3)
        >>> z = trunk(torch.randn(16, 4)).relu()
        >>> weights = optimizer.backward({"left": heads[0](z).square().mean(), "right": heads[1](z).exp().mean()})
        >>> optimizer.step()
        >>> optimizer.zero_grad()
    """

    def __init__(
        self,
        params: ParamsT,
        tasks: Iterable[str],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        groups: int | Mapping[str, Iterable[str]] | None = None,
        max_norm: float | None = None,
        streaming: bool = False,
        capturable: bool = False,
        fused: bool | None = None,
        check_finite: bool | None = None,
        process_group: Any = None,
    ) -> None:
        self.tasks = check_tasks(tasks)
        self.groups = _grouped(self.tasks, groups)
        self._place = {group: index for index, group in enumerate(self.groups)}
        self.streaming = streaming
        self.max_norm = None if max_norm is None else check_number("max_norm", max_norm, above=0)
        self.check_finite = check_finite
        self._pending = _Pending()
        self._passes = Passes(process_group=process_group)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "capturable": capturable,
            "fused": fused,
            "tasks": list(self.tasks),
            "groups": None if groups is None else {group: list(members) for group, members in self.groups.items()},
        }
        super().__init__(params, defaults)
        self.register_load_state_dict_pre_hook(_check_state)
        self.register_load_state_dict_post_hook(_drop_unused)
        keep_buffers()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, with options of its own.

        Raises:
            ValueError: a hyperparameter is out of range.
        """
        group = {**self.defaults, **param_group}
        check_number("lr", group["lr"], at_least=0)
        if not isinstance(group["betas"], Sequence) or len(group["betas"]) != 2:
            raise ValueError(f"betas must be two numbers in [0, 1), found {group['betas']!r}.")
        for name, beta in zip(("beta1", "beta2"), group["betas"], strict=True):
            check_number(name, beta, at_least=0, below=1)
        check_number("eps", group["eps"], at_least=0)
        check_number("weight_decay", group["weight_decay"], at_least=0)
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        self._passes.know(added["params"])
        if added["fused"] is None:
            added["fused"] = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in added["params"])

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
            scaler: the `torch.amp.GradScaler` that will step this optimizer. The scaled sum of the task gradients is
                then added into `.grad`, where the scaler looks for an overflow; the moments see unscaled gradients.
            retain_graph: keep the graph for another backward pass.

        Returns:
            Task → 1: MAO has no loss weights.

        Raises:
            TypeError: losses is not a mapping of tensors.
            ValueError: unknown task, no loss, a loss that is not a scalar, has no graph, or is NaN or infinite. Nothing
                has changed then.
        """
        if self.streaming and (accumulate or scaler is not None or self._pending.ahead):
            raise ValueError(
                "With streaming=True the moments take each gradient in at once: there is one backward() between two "
                "calls of step(), without accumulate= and scaler=. Make MAO with streaming=False for those."
            )
        empty = self._passes.ranks.active or bool(self._pending.micro_batches)
        batch = self._passes.read(self.tasks, losses, counts, self.check_finite, empty, accumulate=accumulate)
        if not batch.tasks:
            self._keep(self._pending.micro_batches, accumulate, reduced=False)
            return {}
        present = batch.tasks
        if self.defaults["groups"] is not None:
            if accumulate and counts is not None:
                raise ValueError("groups sums losses before counts could weigh them: accumulate without counts.")
            batch = batch.joined(self.groups)
        ones = torch.ones_like(batch.values)
        if self.streaming:
            leaves = [[] for _ in batch.tasks] if self._passes.sharded else self._passes.leaves(batch)
            accumulate_gradients(self._stream(batch, leaves, ones, retain_graph))
            return dict.fromkeys(present, ones[0])
        scale = None if scaler is None else scaler.scale(ones[0])
        reduced = not accumulate and not self._pending.micro_batches
        leaves = [] if self._passes.sharded else self._passes.leaves(batch)
        rows = self._passes.rows(batch, leaves, ones if scale is None else ones * scale, retain_graph, reduced)
        held = {parameter for group in self.param_groups for parameter in group["params"]}
        others: dict[Tensor, Tensor] = {}
        for row in rows.values():
            for leaf, gradient in row.items():
                if scale is not None or leaf not in held:
                    others[leaf] = others[leaf] + gradient if leaf in others else gradient.clone()
        if not reduced:
            others = self._passes.reduced({"": others})[""]
        rows = {task: {leaf: g for leaf, g in row.items() if leaf in held} for task, row in rows.items()}
        if scale is not None:
            unscale_rows(rows, scale)
        self._guard(batch, rows)
        self._keep(self._pending.micro_batches.plus(batch, rows), accumulate, reduced)
        accumulate_gradients(others)
        return dict.fromkeys(present, ones[0])

    def _keep(self, micro_batches: MicroBatches, accumulate: bool, reduced: bool) -> None:
        """Keeps the micro-batches for the next call, or their task gradients for `step()`."""
        if accumulate or not micro_batches:
            self._pending.micro_batches = micro_batches
            return
        if not reduced:
            micro_batches = replace(micro_batches, rows=self._passes.reduced(micro_batches.rows))
        self._pending.micro_batches = MicroBatches()
        self._pending.rows = add_rows(self._pending.rows, micro_batches.total(list(self.groups))[0])

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates the parameters from the task gradients of `backward()`.

        Args:
            closure: computes the losses anew and calls `backward()`; its value is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._pending.rows and not self.state and all(float(group["lr"]) == 0 for group in self.param_groups):
            self._make_room()
        if self.max_norm is not None:
            for row in self._pending.rows.values():
                _clip(list(row.values()), self.max_norm)
        moved = {p for row in self._pending.rows.values() for p in row}
        for group in self.param_groups:
            reached = [p for p in group["params"] if p in moved]
            if reached:
                decay(reached, group)
            for task, row in self._pending.rows.items():
                own = [p for p in reached if p in row]
                if own:
                    update(own, [row[p] for p in own], [self._moments(group, task, p) for p in own], group)
        if self._pending.rows and self._passes.watching is not None:
            self._passes.watching.see_taken(self, self._pending.rows)
        if self._pending.ahead:
            torch._foreach_copy_(locals_of(self._pending.ahead), list(self._pending.ahead.values()))
            self._pending.ahead = {}
        return loss

    def _moments(self, group: dict[str, Any], task: str, parameter: Tensor) -> Moments:
        """The task's moments of the parameter, its step count as a view; created when first needed."""
        state = self.state[parameter]
        if "step" not in state:
            on_device = group["capturable"] or group["fused"]
            device = parameter.device if on_device else torch.device("cpu")
            state["step"] = torch.zeros(len(self.groups), dtype=torch.float32, device=device)
        for moment in ("exp_avg", "exp_avg_sq"):
            if f"{moment}.{task}" not in state:
                state[f"{moment}.{task}"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return Moments(state["step"][self._place[task]], state[f"exp_avg.{task}"], state[f"exp_avg_sq.{task}"])

    def _stream(
        self, batch: Batch, leaves: list[list[Tensor]], ones: Tensor, retain_graph: bool
    ) -> dict[Tensor, Tensor]:
        """Streaming: makes each task's update on copies, as its gradient comes; returns what other parameters get."""
        held = {parameter for group in self.param_groups for parameter in group["params"]}
        others: dict[Tensor, Tensor] = {}
        last = len(batch.tasks) - 1
        for index, task in enumerate(batch.tasks):
            part = batch.only(index)
            keep = retain_graph or index < last
            row = self._passes.rows(part, leaves[index : index + 1], ones[:1], keep, reduce=True)[task]
            for leaf in [leaf for leaf in row if leaf not in held]:
                gradient = row.pop(leaf)
                others[leaf] = others[leaf].add_(gradient) if leaf in others else gradient
            self._guard(part, {task: row})
            if self.max_norm is not None:
                _clip(list(row.values()), self.max_norm)
            for group in self.param_groups:
                self._update_ahead(group, task, row)
            if self._passes.watching is not None:
                self._passes.watching.see_taken(self, {task: row})
            del row  # before the next one is computed
        return others

    def _update_ahead(self, group: dict[str, Any], task: str, row: Mapping[Tensor, Tensor]) -> None:
        """Makes the task's update of the group's parameters on their copies, which are made when first needed."""
        ahead = self._pending.ahead
        own = [p for p in group["params"] if p in row]
        new = {p: local(p).detach().clone() for p in own if p not in ahead}
        if new:
            decay(new.values(), group)
            ahead.update(new)
        if own:
            moments = [self._moments(group, task, p) for p in own]
            update([ahead[p] for p in own], [row[p] for p in own], moments, group)

    def _guard(self, batch: Batch, rows: Rows) -> None:
        """Where losses are not checked on the host, makes the gradient of a NaN or infinite one count as 0."""
        if not checks_values(self.check_finite, batch.values.device):
            for row, finite in zip(rows.values(), batch.values.isfinite(), strict=True):
                for gradient in locals_of(row.values()):
                    gradient.copy_(torch.where(finite, gradient, 0))

    def _make_room(self) -> None:
        """Creates zero moments for every task wherever there is a `.grad`: what of them a checkpoint can hold.

        This is how `torch.distributed.checkpoint` asks a new optimizer for its state: it takes a step with gradients
        of zero at the learning rate 0. Loading drops the moments of tasks that have never reached the parameter.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    for task in self.groups:
                        self._moments(group, task, parameter)

    def watch(self, watcher: Watcher | None) -> None:
        """Has a watcher, such as `BalanceMonitor`, see the steps it asks for; None: no longer."""
        self._passes.watch(watcher)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the task gradients, and clears `.grad`."""
        super().zero_grad(set_to_none)
        self._pending.micro_batches = MicroBatches()
        self._pending.rows = {}
        self._pending.ahead = {}

    def __getstate__(self) -> dict[str, Any]:
        own = {
            "tasks": self.tasks,
            "groups": self.groups,
            "_place": self._place,
            "max_norm": self.max_norm,
            "streaming": self.streaming,
            "check_finite": self.check_finite,
            "_ranks": self._passes.ranks,
        }
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not self._optimizer_load_state_dict_pre_hooks:  # a copy: torch.optim hands on no hooks
            self.register_load_state_dict_pre_hook(_check_state)
            self.register_load_state_dict_post_hook(_drop_unused)
        keep_buffers()
        self._pending = _Pending()
        if "_ranks" in state:  # a copy; loading a state_dict passes here too
            held = [parameter for group in self.param_groups for parameter in group["params"]]
            self._passes = Passes(held, self.__dict__.pop("_ranks").process_group)


def _clip(gradients: list[Tensor], max_norm: float) -> None:
    if gradients:
        factor = max_norm / (total_norm(gradients) + 1e-6)
        torch._foreach_mul_(locals_of(gradients), factor.clamp(max=1.0))


def _drop_unused(optimizer: Optimizer) -> None:
    """Drops the moments of tasks that have not reached a parameter: they are 0, and would cost memory."""
    for state in optimizer.state.values():
        for task, steps in zip(
            optimizer.defaults["groups"] or optimizer.defaults["tasks"], state["step"].tolist(), strict=True
        ):
            if steps == 0:
                state.pop(f"exp_avg.{task}", None)
                state.pop(f"exp_avg_sq.{task}", None)


def _check_state(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Refuses the state of another optimizer or of other tasks before anything is loaded."""
    if "param_groups" not in state_dict:
        raise ValueError("This is no state_dict of an optimizer: it has no 'param_groups'.")
    for group in state_dict["param_groups"]:
        if "tasks" not in group:
            raise ValueError("This state_dict is not of MAO: it names no tasks. Load it into the optimizer it is of.")
        for what in ("tasks", "groups"):
            expected = optimizer.defaults[what]
            if group[what] != expected:
                raise ValueError(
                    f"This state_dict is of other {what}: found {group[what]}, expected {expected}. "
                    f"Load it into a MAO made with the same {what} in the same order."
                )


def _grouped(tasks: tuple[str, ...], groups: int | Mapping[str, Iterable[str]] | None) -> dict[str, tuple[str, ...]]:
    """Group → its tasks; every task by itself if there are no groups."""
    if groups is None:
        return {task: (task,) for task in tasks}
    if isinstance(groups, int) and not isinstance(groups, bool):
        if not 1 <= groups <= len(tasks):
            raise ValueError(f"groups must lie between 1 and the number of tasks, {len(tasks)}; found {groups}.")
        return {f"group{index}": tasks[index::groups] for index in range(groups)}
    if not isinstance(groups, Mapping) or not all(
        isinstance(members, Iterable) and not isinstance(members, str) for members in groups.values()
    ):
        raise TypeError(f"groups must be a number of groups, or a mapping from group to its tasks, found {groups!r}.")
    members = {group: tuple(names) for group, names in groups.items()}
    named = [task for names in members.values() for task in names]
    check_known("groups", named, tasks)
    if sorted(named) != sorted(tasks):
        found = ", ".join(named) or "none"
        raise ValueError(f"groups must hold every task once, found {found}; the tasks are {', '.join(tasks)}.")
    empty = [group for group, names in members.items() if not names]
    if empty:
        raise ValueError(f"groups must not be empty, found no task in {', '.join(map(repr, empty))}.")
    return members
