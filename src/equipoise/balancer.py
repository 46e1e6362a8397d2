"""Balancer: the object in the training loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from equipoise._checks import check_tasks
from equipoise._collect import Collect
from equipoise._notices import Notices
from equipoise._parts import as_aggregator, as_objective, check_balancer_arguments, check_state, describe
from equipoise._sharing import Sharing
from equipoise._weigh import Weigh
from equipoise.aggregators import Aggregator
from equipoise.gradients.batching import Batching
from equipoise.gradients.graph.compiled import keep_buffers
from equipoise.gradients.micro_batches import Waiting
from equipoise.gradients.places import Representation
from equipoise.gradients.ranks import Alone, Company
from equipoise.gradients.reading import Reader
from equipoise.gradients.rows import Rows
from equipoise.gradients.shared import Parameters, SharedParameters, parameter_set
from equipoise.gradients.watching import Watcher, Watching
from equipoise.objectives import Objective, Weighting


class Balancer(nn.Module):
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
        chunk_size: how many tasks go at once, under `torch.vmap`, through what they share; 1: one after the other.
            None: on a CPU all, where eight or more are little to compute, else one; on an accelerator the quicker in
            the first steps, saved in `state_dict`. What has no rule (compiled graphs, some operators) goes one by one.
        engine: "rows": the task gradients are held, `[K]` times the shared parameters. "layers": only their Gramian is,
            for Gramian aggregators, in one process, without accumulation, and rows elsewhere; hooks in the trunk then
            see tensors of `torch.vmap`'s, and the tasks' weighted sum. None: layers on a CPU where shapes say that they
            save, unless chunk_size is given or something in the trunk can tell that sum from the tasks: a hook, or an
            `autograd.Function`. Then, and from then on, rows. `way` tells what was done, and why.
        model: the model that is trained, wrapped or not: parameters of others take no part. Needed for a checkpoint
            that resumes bit for bit where the first step after it lacks tasks: it gives the shared parameters names
            that `state_dict` can keep. And where ranks hold labels of different tasks.
        process_group: the ranks that train together, where torch.distributed runs; None: the default group. Give a
            group of one rank to keep it from the others.
        check_finite: raise for a NaN or infinite loss, before anything changes. None: on the CPU only, since elsewhere
            it costs a synchronisation, and where no `GradScaler` is there to drop the step. Without it such a step
            changes no balancing state, and the loss shows in the gradients.

    A loss that the method cannot use in a step (0 or below, for one that divides by it or takes its logarithm) is left
    out of it, with one warning, and the other tasks are balanced among themselves. On an accelerator, where the host
    does not look at losses, parameters that such a task alone reaches get a gradient of zeros. Hooks run in every
    backward pass, once a task where there are K.

    Task gradients wait between micro-batches, beside `.grad`. Whatever clears `.grad` in between (the optimizer's or
    the model's `zero_grad`, setting it to None) forgets them: to see that, small parameters without `.grad` get one
    that is as good as zero.

    On several ranks a step gives the numbers of one process on all ranks' samples together. Every rank makes the same
    calls; where one has no label of a task it leaves it out, and `backward({})` says that it has none at all: give
    `model` for that. Under `fully_shard`, give a loss of 0 connected to the model, with the count 0, instead.

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
        chunk_size: int | None = None,
        engine: Literal["rows", "layers"] | None = None,
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
        check_balancer_arguments(self.aggregator, shared is not None, bool(self._probe), engine, model)
        for part in (self.objective, self.aggregator):
            if part is not None:
                part.bind(self.tasks)
        self._company = Company(self._shared.given or (), model, process_group)
        self._same_state = False
        self._counts: Mapping[str, float | Tensor] | None = None
        self._notices = Notices()
        self._watching = Watching()
        self._rows = Rows(self._company, self.tasks, Waiting())
        self._batching = Batching(chunk_size)
        self._reader = Reader(self._company, self.tasks, check_finite, self._rows.waiting, self._batching)
        self._weigh = Weigh(self.tasks, self.objective, self.aggregator, self._notices)
        about = (self._shared, self._probe, self._company, self._rows.waiting, self._notices)
        sharing = Sharing(self.tasks, self.aggregator, *about)
        self._collect = Collect(self.aggregator, sharing, self._company, self._rows, self._watching, engine)
        self.register_load_state_dict_pre_hook(check_state)  # type: ignore[no-untyped-call]
        keep_buffers()

    @property
    def ranks(self) -> Alone:
        """What goes over the ranks that train together."""
        return self._company.now()

    @property
    def method(self) -> str:
        """The classes of objective and aggregator, which a checkpoint has to agree with."""
        return " + ".join(describe(part) for part in (self.objective, self.aggregator) if part is not None)

    @property
    def way(self) -> str:
        """Which way the last step took through the graphs, and why."""
        return self._collect.way

    def extra_repr(self) -> str:
        """The tasks, and the way of the last step."""
        return f"tasks={list(self.tasks)}, way={self.way!r}"

    @property
    def needs_after_step(self) -> bool:
        """Whether `after_step` has to be called (FAMO)."""
        return any(part.needs_after_step for part in self.objective.task_modules())

    @property
    def needs_accuracies(self) -> bool:
        """Whether `end_epoch` has to be given accuracies (DTP, Achievement)."""
        return any(part.needs_accuracies for part in self.objective.task_modules())

    @property
    def takes_empty(self) -> bool:
        """Whether `backward({})` means something: other ranks can have labels, or there are micro-batches to end."""
        return self.ranks.active or bool(self._rows.waiting.micro_batches)

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
        step = self._reader.read(
            losses,
            counts,
            scaler,
            empty=self.takes_empty,
            accumulate=accumulate,
            retain_graph=retain_graph,
            also=self._collect.reading(representation, losses, accumulate),
        )
        if step.cleared:
            self._weigh.take_back()
        self._notices.poll()
        vars(self)["_counts"] = counts  # past `nn.Module.__setattr__`, which looks whether it is a parameter
        self._follow(step.values.device)
        step = self._weigh.usable(step, self._reader.looks(step))
        earlier = self._rows.waiting.micro_batches
        if not step.tasks:
            if not accumulate:  # a step whose last micro-batch has no label on any rank
                valid = self._collect.finish(step)
                self._weigh.end(step, earlier.total(self.tasks) if earlier else None, None, valid)
            return {}
        with self._weigh.step(step, begins=accumulate and not earlier) as state:
            valid = self._reader.validity(step)
            coefficients, learned = self._weigh.coefficients(step.values, step.usable, valid)
            outcome = self._collect.run(step, coefficients, valid)
            state.commit(outcome.valid)
        if not accumulate:
            total = earlier.plus(step, {}, {}).total(self.tasks) if earlier else None
            self._weigh.end(step, total, learned, outcome.valid)
        own = zip(step.tasks, coefficients.unbind(), strict=True)
        result = {task: c * outcome.weights[task] if task in outcome.weights else c for task, c in own}
        if self._watching.now is not None:
            self._watching.now.see_result(result)
        return result

    def after_step(self, losses: Mapping[str, Tensor]) -> None:
        """Takes the same batch's losses again, after the optimizer's step, for objectives that ask for it (FAMO).

        Args:
            losses: task → scalar loss, computed anew; needs no graph.

        Raises:
            TypeError: losses is not a mapping of tensors.
            ValueError: unknown task, no loss, a loss that is not a scalar, or is NaN or infinite.
        """
        if not self.needs_after_step:
            return
        known = isinstance(losses, Mapping) and all(task in (self._counts or {}) for task in losses)
        step = self._reader.read(losses, self._counts if known else None, None, empty=self.ranks.active, graph=False)
        step = self._weigh.usable(step, self._reader.looks(step))
        if not step.tasks:
            return
        self._weigh.after_step(step, self._reader.validity(step))

    def end_epoch(self, metrics: Mapping[str, float | Tensor] | None = None) -> None:
        """Tells the methods that an epoch has ended (DWA), and how accurate each task now is (DTP, Achievement).

        Args:
            metrics: task → accuracy in [0, 1], higher is better; tasks that were not evaluated are left out.

        Raises:
            TypeError: metrics is not a mapping.
            ValueError: unknown task, or an accuracy outside [0, 1].
        """
        accuracies = self.ranks.mean_metrics(metrics, self.tasks)
        self._weigh.end_epoch(accuracies)

    def watch(self, watcher: Watcher | None) -> None:
        """Has a watcher, such as `BalanceMonitor`, see the steps it asks for; None: no longer."""
        self._watching.begin(watcher)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of the objective's own parameters, and task gradients kept by `accumulate=True`."""
        super().zero_grad(set_to_none)
        self._rows.waiting.forget()
        self.ranks.forget()
        self._weigh.take_back()

    def get_extra_state(self) -> dict[str, Any]:
        """What a checkpoint is checked against: tasks and method; with `model`, the names of shared parameters."""
        own = {"tasks": list(self.tasks), "method": self.method, "shared": self._shared.names}
        return {**own, "chunk_size": self._batching.chosen, "no_layers": self._collect.no_layers}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Takes over what `get_extra_state` gave; `load_state_dict` has checked it before."""
        self._shared.restore(state["shared"])
        self._batching.choose(state.get("chunk_size"))
        self._collect.no_layers = state.get("no_layers", {})
        self._same_state = False

    def _follow(self, device: torch.device) -> None:
        """Moves to the losses' device, so that a forgotten `.to(device)` is not an error."""
        if self._weigh.device not in (None, device):
            self.to(device)
        if not self._same_state and self.ranks.share_state(self):
            self._same_state = True
