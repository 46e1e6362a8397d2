"""Balancer: the object in the training loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from equipoise._balancing import Balancing
from equipoise._between_steps import BetweenSteps
from equipoise._checks import check_priorities, check_tasks
from equipoise._parts import as_aggregator, as_objective, check_balancer_arguments
from equipoise._saving import Saving
from equipoise.aggregators import Aggregator
from equipoise.gradients.graph.compiled import keep_buffers
from equipoise.gradients.places import Representation
from equipoise.gradients.ranks import Company
from equipoise.gradients.shared import Parameters, SharedParameters, parameter_set
from equipoise.gradients.step import Step
from equipoise.gradients.watching import Watcher
from equipoise.objectives import Objective, Weighting


class Balancer(BetweenSteps, Saving):
    """Takes the place of `loss.backward()`: decides how much each task moves each shared parameter.

    The objective turns the K losses into one scalar and thereby gives every task a coefficient
    `c_k = ∂objective/∂L_k`. Without an aggregator there is one backward pass, of `Σ_k c_k L_k`. With one, there is a
    backward pass a task; the rows `c_k g_k` on the shared parameters are reduced by the aggregator, and every other
    parameter receives the sum of its tasks' `c_k g_k`. A parameter is shared when two or more tasks reach it in one
    step, all its micro-batches together; once found shared it stays so in steps where tasks are missing. Tensors that
    require a gradient and are not trained (inputs; with `model`, parameters of others) get that plain sum.

    Args:
        tasks: the tasks' names, the order of every `[K]` tensor.
        objective: an `Objective`; a `Weighting`, for its `WeightedSum`; a scalarizer of TorchJD's; None: `Equal()`.
        aggregator: an `Aggregator`, or an aggregator or Gramian weighting of TorchJD's; None: one backward pass of the
            objective.
        shared: a module or parameters to take as shared instead of those found from the graphs.
        probe: a module or parameters on which the aggregator's gradient statistics are taken (say, the last shared
            layer); the weights found there are applied in one more backward pass: two through the trunk instead of K.
            In a step with a task that does not reach it, they are taken on all that is shared.
        priorities: task → factor > 0 (else 1): how much a task is wanted, on top of what balances; equal ones change
            nothing. It multiplies the objective's weight, or is the preference that the aggregator takes (see there).
        chunk_size: how many tasks go at once, under `torch.vmap`, through what they share; 1: one after the other.
            None: one on a CPU; on an accelerator the quicker in the first steps, saved in `state_dict`. What has no
            rule (compiled graphs, some operators) goes one by one.
        engine: "rows": the task gradients are held, `[K]` times the shared parameters. "layers": only their Gramian is,
            for Gramian aggregators, in one process, without accumulation, and rows elsewhere; hooks in the trunk then
            see tensors of `torch.vmap`'s, and the tasks' weighted sum. None: layers on a CPU where shapes say that they
            save, unless chunk_size is given or something in the trunk can tell that sum from the tasks: a hook, or an
            `autograd.Function`. Then, and from then on, rows. `way` tells what was done, and why.
        every: n: an aggregator with weights takes its statistics in every nth step, and its weights are held in
            between, in steps of one backward pass. They are not normalised anew where tasks are missing; a task that
            has none yet has statistics taken in that step (in a later micro-batch it takes their mean). A step that a
            scaler drops does not count. No pass is saved under `fully_shard`, nor by micro-batches with counts.
        model: the model that is trained, wrapped or not: parameters of others take no part. Needed for a checkpoint
            that resumes bit for bit where the first step after it lacks tasks: it gives the shared parameters names
            that `state_dict` can keep. And where ranks hold labels of different tasks.
        process_group: the ranks that train together, where torch.distributed runs; None: the default group. Give a
            group of one rank to keep it from the others.
        check_finite: raise for a NaN or infinite loss, before anything changes. None: on the CPU only, since elsewhere
            it costs a synchronisation, and where no `GradScaler` is there to drop the step. Without it such a step
            changes no balancing state, and the loss shows in the gradients.

    A loss that the method cannot use in a step (0 or below, for one that divides by it or takes its logarithm) is left
    out, with one warning, and the others are balanced. On an accelerator, where the host looks at no loss, parameters
    of such a task alone get a gradient of 0. Hooks run in every backward pass, K times where there are K.

    Task gradients wait between micro-batches, beside `.grad`. Whatever clears `.grad` in between (the optimizer's or
    the model's `zero_grad`, setting it to None) forgets them: to see that, small parameters without `.grad` get one
    that is as good as zero.

    On several ranks a step gives the numbers of one process on all ranks' samples. Every rank makes the same calls;
    where one has no label of a task it leaves it out, and `backward({})` says that it has none at all: give `model` for
    that. Under `fully_shard`, give a loss of 0 connected to the model, with the count 0, instead.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: no task, a task named twice, or an objective or aggregator that does not fit the tasks.

    An objective can have parameters of its own (`UW`, `IMTLL`): give `balancer.parameters()` to the optimizer.

    Example:
        >>> import torch, equipoise as eq
        >>> trunk, heads = torch.nn.Linear(4, 8), torch.nn.ModuleList(torch.nn.Linear(8, 1) for _ in range(2))
        >>> balancer = eq.Balancer(["left", "right"], eq.EMA(), eq.PCGrad())
        >>> z = trunk(torch.randn(16, 4)).relu()
        >>> weights = balancer.backward({"left": heads[0](z).square().mean(), "right": heads[1](z).exp().mean()})
    """

    def __init__(
        self,
        tasks: Iterable[str],
        objective: Objective | Weighting | nn.Module | None = None,
        aggregator: Aggregator | nn.Module | None = None,
        shared: Parameters | None = None,
        probe: Parameters | None = None,
        *,
        priorities: Mapping[str, float] | None = None,
        chunk_size: int | None = None,
        engine: Literal["rows", "layers"] | None = None,
        every: int = 1,
        model: nn.Module | None = None,
        check_finite: bool | None = None,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        self.tasks = check_tasks(tasks)
        self.objective = as_objective(objective)
        self.aggregator = as_aggregator(aggregator)
        self.check_finite = check_finite
        self._shared = SharedParameters(shared, model)
        self._probe = {} if probe is None else parameter_set("probe", probe)
        check_balancer_arguments(self.aggregator, shared is not None, bool(self._probe), engine, every, model)
        for part in (self.objective, self.aggregator):
            if part is not None:
                part.bind(self.tasks)
        self._company = Company(self._shared.given or (), model, process_group)
        self._frozen = False
        self._balancing = Balancing(
            self.tasks,
            self.objective,
            self.aggregator,
            self._shared,
            self._probe,
            self._company,
            check_priorities(priorities, self.tasks),
            check_finite=check_finite,
            chunk_size=chunk_size,
            engine=engine,
            every=every,
        )
        keep_buffers()

    @property
    def way(self) -> str:
        """Which way the last step took through the graphs, and why."""
        return self._balancing.collect.way

    def extra_repr(self) -> str:
        """The tasks, and the way of the last step."""
        return f"tasks={list(self.tasks)}, way={self.way!r}"

    @property
    def takes_empty(self) -> bool:
        """Whether `backward({})` means something: other ranks can have labels, or there are micro-batches to end."""
        return self._balancing.takes_empty

    def backward(
        self,
        losses: Mapping[str, Tensor],
        accumulate: bool = False,
        counts: Mapping[str, float | Tensor] | None = None,
        scaler: torch.amp.GradScaler | None = None,
        retain_graph: bool = False,
        representation: Representation | None = None,
    ) -> dict[str, Tensor]:
        """Adds the balanced gradient into `.grad`, as `Tensor.backward()` adds a loss's gradient.

        Args:
            losses: task → scalar loss; leave out the tasks that have no label in this batch.
            accumulate: True on all micro-batches of a step but the last: the task gradients are kept and balanced
                together at the last one. Gradients add up as in plain PyTorch, so divide the losses, or pass `counts`.
                Weights that depend on losses are each micro-batch's: EMA, REMA, DWEMA undo a division: give `counts`.
            counts: task → number of labelled samples behind its mean loss. Micro-batches are then averaged exactly,
                at the price of a backward pass a task even without an aggregator. A count of 0 leaves the task out.
            scaler: the `torch.amp.GradScaler` that will step the optimizer. `.grad` is then scaled, as the scaler
                expects; what the aggregator sees is not. A step that overflows changes no balancing state.
            retain_graph: keep the graph for another backward pass.
            representation: where the trunk ends and the tasks begin: the tensor, or tensors, that the trunk returned
                and all losses were computed from. The aggregator takes its statistics on the task gradients there, in
                place of `probe` (with `MGDA` that is MGDA-UB): K backward passes down to it, and one through the trunk.
                All that is trained and leads to it counts as shared.

        Returns:
            Task → 0-dim detached weight of the task's gradient: `c_k`, times the aggregator's weight if it has weights
            and the task reaches a shared parameter (else it takes no part in the balancing).

        Raises:
            TypeError: losses is not a mapping of tensors, or representation no tensor or sequence of tensors.
            ValueError: unknown task, no loss, a loss that is not a scalar, has no graph, is NaN or infinite; losses
                without a common trunk where there is an aggregator; gradients cleared in part between micro-batches; a
                representation that no loss depends on, whose tensors depend on one another, or that does not go with
                the rest (an aggregator that needs the whole Jacobian, accumulate, shared=, fully_shard). Nothing has
                changed then. What is wrong on one rank is an error on all.
        """
        options = {"accumulate": accumulate, "retain_graph": retain_graph, "representation": representation}
        return self._balancing.backward(self._read(losses, counts, scaler, **options))

    def forward(self, losses: Mapping[str, Tensor], counts: Mapping[str, float | Tensor] | None = None) -> Tensor:
        """Returns a scalar whose backward pass balances, for frameworks that call `loss.backward()` themselves.

        Its value is the objective's. `balancer(losses).backward()` is a step of its own and puts the gradients where
        `balancer.backward(losses)` does; a factor (a gradient scaler's, `1/n`) multiplies them, and what is added, as
        in `balancer(losses) + penalty`, gets its plain gradient. Without an aggregator it is an expression with
        constant weights that goes wherever a loss goes, and state is committed at once; on several ranks the gradients
        have to be averaged, as DistributedDataParallel does. With one, all happens in the scalar's backward pass.

        Under `torch.no_grad()`, in evaluation mode and within `frozen()` nothing is learned: the value is `Σ_k w_k L_k`
        with the weights of the last step, which `backward` returned; so is its gradient, on what all tasks share.

        Args:
            losses: as in `backward`.
            counts: as in `backward`.

        Raises:
            TypeError: as in `backward`.
            ValueError: as in `backward`; micro-batches of `backward` wait; an aggregator under `fully_shard`.
            RuntimeError: in the backward pass, for `create_graph=True` with an aggregator.
        """
        return self._balancing.loss(self._read(losses, counts, graph=torch.is_grad_enabled()))

    forward._torchdynamo_disable = True  # type: ignore[attr-defined]  # compiled steps go around it

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Holds the weights: within, losses move no state, and weights are those of the last step.

        For what computes the losses of one step several times, such as the closures of `torch.optim.LBFGS` or SAM.
        Methods without weights (GradDrop) draw anew. Before the first step, the weights that it would have are held.

        Example:
            >>> import torch, equipoise as eq
            >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
            >>> balancer = eq.Balancer(["a", "b"], eq.EMA())
            >>> with balancer.frozen():
            ...     loss = balancer({"a": w.sum(), "b": w.square().sum()})
        """
        before, self._frozen = self._frozen, True
        try:
            yield
        finally:
            self._frozen = before

    def watch(self, watcher: Watcher | None) -> None:
        """Has a watcher, such as `BalanceMonitor`, see the steps it asks for; None: no longer."""
        self._balancing.watching.begin(watcher)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of the objective's own parameters, and task gradients kept by `accumulate=True`."""
        super().zero_grad(set_to_none)
        self._balancing.forget()

    def _read(self, *given: Any, **options: Any) -> Step:
        learns = self.training and not self._frozen and torch.is_grad_enabled()
        return self._balancing.read(self, *given, learns=learns, **options)
