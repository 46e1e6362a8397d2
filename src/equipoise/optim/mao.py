"""MAO: Multi-Adaptive Optimization, moments per task and per parameter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from equipoise.gradients.jacobian import Row, TaskRows
from equipoise.gradients.micro_batches import move_into
from equipoise.gradients.owning import owned
from equipoise.gradients.rows import with_inputs
from equipoise.gradients.shards import is_sharded, local, locals_of
from equipoise.gradients.sparse import coalesced
from equipoise.gradients.step import Step
from equipoise.gradients.writing import write
from equipoise.optim._adam_by_task import EPSILONS, AdamByTask
from equipoise.optim._base import KIND
from equipoise.optim._listing import Listing
from equipoise.optim._pending import by_taking, guarded, split
from equipoise.optim.moments import clipped, decay, update
from equipoise.search_space import SearchSpace

ONE_BACKWARD = (
    "With streaming=True the moments take each gradient in at once: there is one backward() between two calls of "
    "step(), without accumulate= and scaler=. Make MAO with streaming=False for those."
)

NUMBERS_OF_RANGE = (torch.float32, torch.float64, torch.bfloat16)
"""Dtypes that have bfloat16's range: as state is loaded, it takes the parameter's dtype on its way."""


class MAO(AdamByTask):
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
        state_dtype: torch.bfloat16 keeps the tasks' first moments in half the memory. What is kept is rounded, what the
            update takes is not. None: the parameter's dtype.
        factored: keep the tasks' second moments as Adafactor does (Shazeer & Stern 2018): of a parameter with two
            dimensions or more, taken as a matrix `[A, B·…]`, the means of its rows and of its columns, `A + B·…`
            numbers in place of `A·B·…`, with `v_ij ≈ r_i c_j / mean(r)`. Not for sharded parameters.
        check_finite: raise for a NaN or infinite loss before anything changes. None: on the CPU only, since elsewhere
            it costs a synchronisation; there such a loss's gradient counts as 0, or, with a scaler, as an overflow.
        process_group: as in `Balancer`, which says how a step on several ranks gives the numbers of one process.

    Under `fully_shard` the moments are sharded like their parameters. A checkpoint of `torch.distributed.checkpoint`
    loads on any number of ranks with `DefaultLoadPlanner(allow_partial_load=True)`: a new optimizer does not know which
    tasks reach which parameters, and asks for all moments there could be.

    Moments grow with the number of tasks: per parameter and task that reaches it they are 8 bytes in float32, 6 with
    `state_dtype`, 4 with `factored` and 2 with both (`benchmarks/moments.py` has what that costs). Their updates then
    are some ten operations a parameter and task in place of PyTorch's kernels, and sparse gradients become dense.

    Raises:
        TypeError: `groups` is neither a number nor a mapping.
        ValueError: a hyperparameter out of range; no task, or one named twice; groups that do not fit the tasks;
            parameters that `state_dtype` or `factored` is not for.

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

    search_space: ClassVar[SearchSpace] = {"eps": EPSILONS}
    _copied: ClassVar[tuple[str, ...]] = (*AdamByTask._copied, "streaming", "state_dtype", "factored")

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
        state_dtype: torch.dtype | None = None,
        factored: bool = False,
        check_finite: bool | None = None,
        process_group: Any = None,
    ) -> None:
        if state_dtype not in (None, torch.bfloat16):
            raise ValueError(f"state_dtype must be torch.bfloat16 or None, found {state_dtype!r}.")
        self.streaming, self.state_dtype, self.factored = streaming, state_dtype, factored
        kinds = [f"{state_dtype} first moments"] * (state_dtype is not None) + ["factored second moments"] * factored
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "capturable": capturable,
            "fused": fused,
            **({KIND: f"MAO with {' and '.join(kinds)}"} if kinds else {}),
        }
        super().__init__(
            params,
            tasks,
            defaults,
            priorities=priorities,
            chunk_size=1 if streaming else chunk_size,
            groups=groups,
            max_norm=max_norm,
            check_finite=check_finite,
            process_group=process_group,
        )

    def _furnish(self, held: Iterable[Tensor], process_group: Any) -> None:
        super()._furnish(held, process_group)
        self._listing = Listing(list(self.groups), self.state_dtype, self.factored)

    def _register(self) -> None:
        super()._register()
        self.register_load_state_dict_post_hook(_narrow)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, with options of its own.

        Raises:
            ValueError: a hyperparameter is out of range, or see the class.
        """
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            wrong = "sharded" if self.factored and is_sharded(p) else None
            if self.state_dtype is not None or self.factored:
                wrong = wrong or (None if p.dtype in NUMBERS_OF_RANGE else f"of {p.dtype}")
            if wrong:
                self.param_groups.pop()
                raise ValueError(
                    f"A parameter of the shape {tuple(p.shape)} is {wrong}: state_dtype and factored are for float32, "
                    "float64 and bfloat16, factored for parameters that are not sharded."
                )

    def backward(
        self,
        losses: Mapping[str, Tensor],
        accumulate: bool = False,
        counts: Mapping[str, float | Tensor] | None = None,
        scaler: torch.amp.GradScaler | None = None,
        retain_graph: bool = False,
    ) -> dict[str, Tensor]:
        """As `BalancingOptimizer.backward`; `streaming` takes one call a step, without `accumulate` and `scaler`."""
        if self.streaming and (
            accumulate or scaler is not None or (self._pending.ahead and not self._pending.cleared())
        ):
            raise ValueError(ONE_BACKWARD)
        return super().backward(losses, accumulate, counts, scaler, retain_graph)

    def loss(self, losses: Mapping[str, Tensor], counts: Mapping[str, float | Tensor] | None = None) -> Tensor:
        """As `BalancingOptimizer.loss`; not with `streaming`, whose updates are made before `.grad` is unscaled."""
        if self.streaming:
            raise ValueError(ONE_BACKWARD + " For the same reason there is no loss().")
        return super().loss(losses, counts)

    def _run(self, step: Step, ones: Tensor) -> None:
        if self.streaming:
            self._stream(step, ones)
        else:
            super()._run(step, ones)

    def _update(self, rows: TaskRows, free: Row) -> None:
        if self.state_dtype is not None or self.factored:
            rows, free = {task: _dense(row) for task, row in rows.items()}, _dense(free)
        ahead = self._pending.ahead
        if ahead:
            torch._foreach_copy_(locals_of(ahead), list(ahead.values()))
        super()._update(rows, free)
        self._pending.ahead = {}

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
            own = _dense(owned(held.pop(task)))
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


def _dense(row: Row) -> Row:
    return {leaf: coalesced(g).to_dense() if g.is_sparse else g for leaf, g in row.items()}


def _narrow(optimizer: Optimizer) -> None:
    """Gives first moments the dtype back that they were loaded from."""
    assert isinstance(optimizer, MAO)
    for state in optimizer.state.values():
        for name in [name for name in state if name.startswith("exp_avg.") and optimizer.state_dtype is not None]:
            state[name] = state[name].to(optimizer.state_dtype)
