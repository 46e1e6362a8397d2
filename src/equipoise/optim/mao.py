"""MAO: Multi-Adaptive Optimization, moments per task and per parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from equipoise._checks import check_number, check_priorities, check_tasks
from equipoise._scalar import balanced, refuse_sharded, refuse_waiting
from equipoise.gradients.batching import Batching
from equipoise.gradients.graph.compiled import keep_buffers
from equipoise.gradients.jacobian import Row, TaskRows
from equipoise.gradients.micro_batches import Collected, move_into
from equipoise.gradients.owning import owned
from equipoise.gradients.ranks import Company
from equipoise.gradients.reading import Reader
from equipoise.gradients.rows import Rows, with_inputs
from equipoise.gradients.scale import Factor
from equipoise.gradients.shards import local, locals_of, total_norm
from equipoise.gradients.sparse import coalesced
from equipoise.gradients.step import Step
from equipoise.gradients.watching import Watcher, Watching
from equipoise.gradients.writing import all_finite, write
from equipoise.optim._fused import can_fuse
from equipoise.optim._groups import grouped, of_groups
from equipoise.optim._listing import NO_TASK, Listing
from equipoise.optim._pending import Pending, by_taking, guarded, split
from equipoise.optim._states import SavedByTask
from equipoise.optim.moments import Lists, clipped, decay, update

ONE_BACKWARD = (
    "With streaming=True the moments take each gradient in at once: there is one backward() between two calls of "
    "step(), without accumulate= and scaler=. Make MAO with streaming=False for those."
)


class MAO(SavedByTask):
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
        priorities: task → factor > 0, 1 where left out, that multiplies the task's update: how much it is wanted. Equal
            ones change nothing. Tasks of one group have to have the same.
        chunk_size: as in `Balancer`: how many tasks go at once through what they share. `streaming` takes one.
        groups: let tasks share moments: a mapping from group to tasks, or a number of groups that the tasks are dealt
            to in turn. A group's losses are summed, with one backward pass and one set of moments, so that a step costs
            what as many tasks as groups cost; within a group the losses' scales matter. None: every task by itself.
        max_norm: clip each task's gradient over all parameters held to this norm before the moments see it.
            (Clipping `.grad` does nothing here: MAO works with the task gradients.)
        streaming: make each task's update as soon as its gradient is there, on a copy of the parameters whose values
            they take in `step()`. A step then holds two copies of the parameters, that one and a gradient, in place
            of K gradients; the numbers are the same. There is one `backward` a step, without `accumulate` and
            `scaler`; the learning rate and other options are those at `backward`; what changes parameters before
            `step()` is undone by it; and `zero_grad()` in its place, like an error in a later task's backward pass,
            leaves what the moments have taken in. Sparse gradients become dense.
        capturable: keep the step counts on the device, as `torch.optim.AdamW` does, for use in CUDA graphs.
        fused: use PyTorch's fused kernels; None: where they are available.
        check_finite: raise for a NaN or infinite loss before anything changes. None: on the CPU only, since elsewhere
            it costs a synchronisation; there such a loss's gradient counts as 0, or, with a scaler, as an overflow.
        process_group: as in `Balancer`, which says how a step on several ranks gives the numbers of one process.

    Under `fully_shard` the moments are sharded like their parameters. A checkpoint of `torch.distributed.checkpoint`
    loads on any number of ranks with `DefaultLoadPlanner(allow_partial_load=True)`: a new optimizer does not know which
    tasks reach which parameters, and asks for all moments there could be.

    Raises:
        TypeError: `groups` is neither a number nor a mapping.
        ValueError: a hyperparameter out of range; no task, or one named twice; groups that do not fit the tasks.

    The task gradients wait for `step()` beside `.grad`, and are forgotten when `.grad` is cleared, by whatever does it:
    to see that, small parameters without `.grad` get one that is as good as zero until then. What other code puts into
    `.grad` of a parameter held here (a penalty's backward pass, a framework that calls `loss.backward()`) is no task's,
    and moves it by an Adam update with moments of its own; `max_norm` leaves it as it is. Parameters that the losses
    reach but this optimizer does not hold get `.grad`, as from `sum(losses).backward()`. Hooks run in every task's
    backward pass.

    Of a sparse gradient (`nn.Embedding(sparse=True)`) only the touched rows are updated, as in
    `torch.optim.SparseAdam`; so is weight decay, where all that moves a parameter is sparse. On several ranks, and with
    `streaming`, it becomes dense, and the update is that of a dense gradient. What `.grad` holds beside the tasks'
    gradients is each rank's own: it has to be the same on all, as a penalty of the parameters is, or averaged, as by
    the backward pass of DistributedDataParallel.

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
        priorities: Mapping[str, float] | None = None,
        chunk_size: int | None = None,
        groups: int | Mapping[str, Iterable[str]] | None = None,
        max_norm: float | None = None,
        streaming: bool = False,
        capturable: bool = False,
        fused: bool | None = None,
        check_finite: bool | None = None,
        process_group: Any = None,
    ) -> None:
        self.tasks = check_tasks(tasks)
        self.groups = grouped(self.tasks, groups)
        self.priorities = of_groups(check_priorities(priorities, self.tasks), self.groups)
        self.streaming = streaming
        self.max_norm = None if max_norm is None else check_number("max_norm", max_norm, above=0)
        self.check_finite = check_finite
        self._batching = Batching(1 if streaming else chunk_size)
        self._furnish([], process_group)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "capturable": capturable,
            "fused": fused,
            "tasks": list(self.tasks),
            "groups": None if groups is None else {group: list(members) for group, members in self.groups.items()},
            "chunk_size": None,  # what has been chosen, for checkpoints
        }
        super().__init__(params, defaults)
        self._register()
        keep_buffers()

    def _furnish(self, held: Iterable[Tensor], process_group: Any) -> None:
        """Makes what a step needs beside the parameters and their state."""
        self._company = Company(held, process_group=process_group)
        self._watching = Watching()
        self._pending = Pending()
        self._listing = Listing(list(self.groups))
        self._reader = Reader(self._company, self.tasks, self.check_finite, self._pending, self._batching)
        self._rows = Rows(self._company, list(self.groups), self._pending)

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
        self._company.order.know(added["params"])
        if added["fused"] is None:
            added["fused"] = can_fuse(added["params"])

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
            Task → 1: MAO has no loss weights.

        Raises:
            TypeError: losses is not a mapping of tensors.
            ValueError: unknown task, no loss, a loss that is not a scalar, has no graph, or is NaN or infinite;
                gradients were cleared in part. Nothing has changed then.
        """
        if self.streaming and (
            accumulate or scaler is not None or (self._pending.ahead and not self._pending.cleared())
        ):
            raise ValueError(ONE_BACKWARD)
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
            ValueError: as in `backward`; `streaming`, whose updates are made before `.grad` is unscaled; micro-batches
                of `backward` wait; parameters are sharded.
        """
        if self.streaming:
            raise ValueError(ONE_BACKWARD + " For the same reason there is no loss().")
        ranks, with_graph = self._company.now(), torch.is_grad_enabled()
        step = self._reader.read(losses, counts, None, empty=ranks.active, graph=with_graph)
        total = step.taking(step.values, 0.0).sum()
        if not with_graph:
            return total
        refuse_sharded(ranks, "MAO.loss()")
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
        if self.streaming:
            self._stream(step, ones)
        else:
            self._take(self._rows.run(step, ones), step)
        return dict.fromkeys(names, ones[0])

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
        if not pending.rows and not self.state and all(float(group["lr"]) == 0 for group in self.param_groups):
            gradients = [coalesced(gradient) for gradient in free.values()]
            if not gradients or not total_norm(gradients):  # else it is a warm-up's first step
                self._make_room()
                return loss
        rows = pending.unscaled()
        if self.max_norm is not None:
            rows = {task: clipped(row, self.max_norm) for task, row in rows.items()}
        if pending.ahead:
            torch._foreach_copy_(locals_of(pending.ahead), list(pending.ahead.values()))
        every = {**rows, NO_TASK: free} if free else rows
        listed = self._listing.of(every, self.param_groups, self.state)
        for index, group in enumerate(self.param_groups):
            if group["weight_decay"]:
                self._decay(group, {task: lists[index] for task, (lists, _) in listed.items()}, every)
            for task, (lists, gradients) in listed.items():
                update(lists[index], gradients, self._preferring(group, task), pending.taking.get(task))
        watcher = self._watching.now
        if rows and watcher is not None:
            watcher.see_taken(self, rows)
        pending.ahead = {}
        return loss

    @property
    def _held(self) -> set[Tensor]:
        return {parameter for group in self.param_groups for parameter in group["params"]}

    def _preferring(self, group: dict[str, Any], task: str) -> dict[str, Any]:
        """The group's options with the task's learning rate."""
        priority = self.priorities.get(task, 1.0)
        return group if priority == 1 else {**group, "lr": group["lr"] * priority}

    def _decay(self, group: dict[str, Any], lists: Mapping[str, Lists], rows: TaskRows) -> None:
        """Decays the parameters of a group that the rows move; those that streaming has moved ahead have been."""
        taking, ahead = self._pending.taking, self._pending.ahead
        certain = [own for task, own in lists.items() if task not in taking]
        whole = {id(p): p for own in certain for dense in own.dense for p in dense.parameters}
        decay([p for p in whole.values() if p not in ahead], group)
        rest = {id(p): p for own in lists.values() for p in own.parameters if id(p) not in whole}.values()
        moved = {p: [(row[p], taking.get(task)) for task, row in rows.items() if p in row] for p in rest}
        for takes, decayed in by_taking(rows, taking, rest):
            own = [p for p in decayed if p not in ahead]
            decay(own, group, [moved[p] for p in own], takes)

    def _stream(self, step: Step, ones: Tensor) -> None:
        """Streaming: makes each task's update on copies, as its gradient comes, and writes what others get."""
        ranks = self._company.now()
        wanted = with_inputs(ranks, step, ranks.leaves(step))
        others: Row = {}
        ahead: dict[Tensor, Tensor] = {}
        finite = step.values.isfinite()
        rows: Iterable[Row] = ranks.rows(step, wanted, ones, reduce=True)
        reached: Sequence[Iterable[Tensor]] = wanted
        if ranks.sharded:  # what a task reaches is known by its row, and by the first one all have been computed
            made = list(rows)
            rows, reached = made, made
        reaching = dict(zip(step.tasks, map(set, reached), strict=True))
        taking = {} if step.usable is None else dict(zip(step.tasks, step.usable.unbind(), strict=True))
        for task, row, good in zip(step.tasks, rows, finite[:, None].unbind(), strict=True):
            held, rest = split({task: row}, self._held)
            move_into(others, rest)
            if not self._reader.looks(step):
                held = guarded(held, good)
            own = {leaf: coalesced(g).to_dense() if g.is_sparse else g for leaf, g in owned(held.pop(task)).items()}
            if self.max_norm is not None:
                own = clipped(own, self.max_norm)
            every, gradients = self._listing.of({task: own}, self.param_groups, self.state)[task]
            for group, lists in zip(self.param_groups, every, strict=True):
                new = [p for p in lists.parameters if p not in ahead]
                ahead.update({p: local(p).detach().clone() for p in new})
                for takes, decayed in by_taking(reaching, taking, new):
                    decay([ahead[p] for p in decayed], group, taking=takes)
                update(lists.on(ahead), gradients, self._preferring(group, task), taking.get(task))
            if self._watching.now is not None:
                self._watching.now.see_taken(self, {task: own})
            del own, gradients  # before the next one is computed
        self._pending.move_ahead(ahead)
        write(others)

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

    def watch(self, watcher: Watcher | None) -> None:
        """Has a watcher, such as `BalanceMonitor`, see the steps it asks for; None: no longer."""
        self._watching.begin(watcher)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the task gradients, and clears `.grad`."""
        self._pending.forget()
        super().zero_grad(set_to_none)

    def __getstate__(self) -> dict[str, Any]:
        own = {
            "tasks": self.tasks,
            "groups": self.groups,
            "priorities": self.priorities,
            "max_norm": self.max_norm,
            "streaming": self.streaming,
            "check_finite": self.check_finite,
            "_ranks": self._company.ranks,
            "_batching": self._batching,
        }
        return {**super().__getstate__(), **own}

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
            self._listing.forget()
            self._batching.choose(self.param_groups[0].setdefault("chunk_size", None))
