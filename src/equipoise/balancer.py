"""Balancer: the object in the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from equipoise._checks import check_tasks
from equipoise._parts import as_aggregator, as_objective, check_state, describe
from equipoise.aggregators import Aggregator, GramianAggregator
from equipoise.gradients.accumulate import accumulate_gradients, all_finite, unscale_rows
from equipoise.gradients.batch import Batch, check_bounds, checks_values, stack
from equipoise.gradients.compiled import keep_buffers
from equipoise.gradients.gramian import combine, gramian, wide_dtype
from equipoise.gradients.jacobian import Rows, completed, owned
from equipoise.gradients.micro_batches import MicroBatches
from equipoise.gradients.passes import Passes
from equipoise.gradients.ranks import Ranks
from equipoise.gradients.representation import Cut, Representation, take_representation
from equipoise.gradients.ranks.shards import locals_of
from equipoise.gradients.shared import Parameters, SharedParameters, parameter_set
from equipoise.gradients.watching import Watcher
from equipoise.objectives import Objective, Weighting


class Balancer(nn.Module):
    """Takes the place of `loss.backward()`: decides how much each task moves each shared parameter.

    The objective turns the K losses into one scalar and thereby gives every task a coefficient
    `c_k = ∂objective/∂L_k`. Without an aggregator there is one backward pass, of `Σ_k c_k L_k`. With one, there is a
    backward pass a task; the rows `c_k g_k` on the shared parameters are reduced by the aggregator, and every other
    parameter receives the sum of its tasks' `c_k g_k`. A parameter is shared when the graphs of two or more losses
    reach it; once found shared it stays so in steps where tasks are missing.

    Args:
        tasks: the tasks' names, the order of every `[K]` tensor.
        objective: an `Objective`, or a `Weighting`, which means its `WeightedSum`; or a scalarizer of TorchJD's; None:
            `Equal()`.
        aggregator: an `Aggregator`, or an aggregator or Gramian weighting of TorchJD's; None: one backward pass of the
            objective.
        shared: a module or parameters to take as shared instead of those found from the graphs.
        probe: a module or parameters on which the aggregator's gradient statistics are taken (say, the last shared
            layer); the weights found there are applied in one more backward pass, so that a step costs two passes
            through the trunk instead of K. In a step whose tasks do not reach it, they are taken on all that is shared.
        model: the model that is trained, wrapped or not. Needed for a checkpoint that resumes bit for bit where the
            first step after it lacks tasks: it gives the shared parameters names that `state_dict` can keep. And where
            ranks hold labels of different tasks.
        process_group: the ranks that train together, where torch.distributed runs; None: the default group. Give a
            group of one rank to keep it from the others.
        check_finite: raise for a NaN or infinite loss, or one ≤ 0 where the method needs it positive, before anything
            changes. None: on the CPU only, since elsewhere it costs a synchronisation. Without it such a step changes
            no balancing state; a NaN or infinite loss shows in the gradients, a loss ≤ 0 makes the step contribute 0.

    On several ranks (torch.distributed), whether the model is plain, in `DistributedDataParallel` or under
    `fully_shard`, a step gives the numbers of one process on all ranks' samples together: losses, and accuracies, are
    averaged over the ranks, by `counts` where given, and all ranks take the state and the random numbers of the first.
    Every rank makes the same calls; where one has no label of a task it leaves it out, and `backward({})` says that it
    has none at all. Give `model` for that, unless the first step had all labels everywhere. Under `fully_shard` a rank
    has to run every task's backward pass: there, give a loss of 0 connected to the model, with the count 0. (A backward
    pass a task takes PyTorch 2.7 there.)

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
        self._passes = Passes([] if model is None else self._shared.named.values(), process_group)
        self._same_state = False
        self._counts: Mapping[str, float | Tensor] | None = None
        self._counted: bool | None = None  # whether the micro-batches kept so far came with counts
        self._probe = {} if probe is None else parameter_set("probe", probe)
        if self._probe and not isinstance(self.aggregator, GramianAggregator):
            raise ValueError(
                "probe needs an aggregator that finds weights from the Gramian; "
                f"found {'none' if aggregator is None else type(aggregator).__name__}. Leave probe out."
            )
        self._micro_batches = MicroBatches()
        self._seen = MicroBatches()  # losses of the micro-batches so far, for the objective's own parameters
        for part in (self.objective, self.aggregator):
            if part is not None:
                part.bind(self.tasks)
        self.register_load_state_dict_pre_hook(check_state)  # type: ignore[no-untyped-call]
        keep_buffers()

    @property
    def ranks(self) -> Ranks:
        """The ranks that train together."""
        return self._passes.ranks

    @property
    def method(self) -> str:
        """The classes of objective and aggregator, which a checkpoint has to agree with."""
        return " + ".join(describe(part) for part in (self.objective, self.aggregator) if part is not None)

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
        return self.ranks.active or bool(self._micro_batches)

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
                An objective whose weights depend on the losses takes them from each micro-batch.
            counts: task → number of labelled samples behind its mean loss. Micro-batches are then averaged exactly,
                at the price of a backward pass a task even without an aggregator. A count of 0 leaves the task out.
            scaler: the `torch.amp.GradScaler` that will step the optimizer. `.grad` is then scaled, as the scaler
                expects; what the aggregator sees is not. A step that overflows changes no balancing state.
            retain_graph: keep the graph for another backward pass.
            representation: where the trunk ends and the tasks begin: the tensor, or tensors, that the trunk returned
                and all losses were computed from. The aggregator then takes its statistics on the task gradients
                there, in place of `probe` (with `MGDA` that is MGDA-UB). A step costs K backward passes down to it, and
                one through the trunk: that of the weighted sum. All that leads to it counts as shared. Above it, as
                ever, shared parameters get the weighted sum of their tasks' gradients and others their own task's.

        Returns:
            Task → 0-dim detached weight of the task's gradient: `c_k`, times the aggregator's weight if it has weights.

        Raises:
            TypeError: losses is not a mapping of tensors, or representation no tensor or sequence of tensors.
            ValueError: unknown task, no loss, a loss that is not a scalar, has no graph, is NaN or infinite, or ≤ 0
                where the method needs it positive; no shared parameter where there is an aggregator; a representation
                that no loss depends on, whose tensors depend on one another, or that does not go with the rest (an
                aggregator that needs the whole Jacobian, accumulate, shared=, fully_shard). Nothing has changed then.
                What is wrong on one rank is an error on all.
        """
        at: list[Tensor] = []
        also = None
        if representation is not None:
            self._check_goes_with_representation(accumulate)
            also = partial(take_representation, representation, bool(losses), at)
        batch = self._passes.read(
            self.tasks, losses, counts, self.check_finite, self.takes_empty, accumulate=accumulate, also=also
        )
        if self._counted not in (None, counts is not None):
            raise ValueError("Give counts for every micro-batch that is accumulated, or for none.")
        self._counts = counts
        self._follow(batch.values.device)
        if not batch.tasks:
            if not accumulate:
                self._finish_without_tasks(scaler)
            return {}
        by_task = self.aggregator is not None or self._micro_batches or (accumulate and counts is not None)
        watcher = self._passes.watching
        with self.objective.step(self._present(batch.tasks), batch.values.dtype) as step:
            valid = self._check_values(batch)
            coefficients, learned = self._coefficients(batch.values, valid)
            scale = None if scaler is None else scaler.scale(torch.ones_like(coefficients[0]))
            scaled = coefficients if scale is None else coefficients * scale
            if representation is not None:
                weights, valid = self._backward_at(at, batch, scaled, scale, retain_graph, valid)
            elif by_task:
                weights, valid = self._backward_by_task(batch, scaled, scale, accumulate, retain_graph, valid)
            else:
                weights, whole = {}, len(batch.tasks) == len(self.tasks)
                with watcher.around(self._passes, batch, scaled, scale, accumulate) if watcher else nullcontext():
                    leaves = self._passes.together(
                        batch, scaled, retain_graph, accumulate, whole, find=scale is not None
                    )
                if scale is not None:
                    valid = self._all_finite(valid, (leaf.grad for leaf in leaves if leaf.grad is not None))
            step.commit(valid)
        if learned:
            learned = self._learned_in_all(batch, learned, accumulate)
            accumulate_gradients({p: g if scale is None else g * scale.to(g.dtype) for p, g in learned.items()})
        self._counted = (counts is not None) if accumulate else None
        own = zip(batch.tasks, coefficients.unbind(), strict=True)
        result = {task: coefficient * weights[task] if weights else coefficient for task, coefficient in own}
        if watcher is not None:
            watcher.see_result(result)
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
        known = (
            isinstance(losses, Mapping) and self._counts is not None and all(task in self._counts for task in losses)
        )
        batch = self._passes.read(
            self.tasks, losses, self._counts if known else None, self.check_finite, self.ranks.active, graph=False
        )
        if not batch.tasks:
            return
        with self.objective.step(self._present(batch.tasks), batch.values.dtype) as step:
            valid = self._check_values(batch)
            for part in self.objective.task_modules():
                part.after_step(batch.values)
            step.commit(valid)

    def end_epoch(self, metrics: Mapping[str, float | Tensor] | None = None) -> None:
        """Tells the methods that an epoch has ended (DWA), and how accurate each task now is (DTP, Achievement).

        Args:
            metrics: task → accuracy in [0, 1], higher is better; tasks that were not evaluated are left out.

        Raises:
            TypeError: metrics is not a mapping.
            ValueError: unknown task, or an accuracy outside [0, 1].
        """
        accuracies = self._passes.mean_metrics(metrics, self.tasks)
        device = self._device(torch.device("cpu"))
        measured = tuple(task for task in self.tasks if task in accuracies)
        for part in self.objective.task_modules():
            if measured:
                values = stack([accuracies[task] for task in measured], device, wide_dtype(device))
                with part.step(self._present(measured), values.dtype) as step:
                    part.observe(values)
                    step.commit()
            with part.step() as step:
                part.end_epoch()
                step.commit()

    def watch(self, watcher: Watcher | None) -> None:
        """Has a watcher, such as `BalanceMonitor`, see the steps it asks for; None: no longer."""
        self._passes.watch(watcher)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of the objective's own parameters, and task gradients kept by `accumulate=True`."""
        super().zero_grad(set_to_none)
        self._micro_batches = MicroBatches()
        self._seen = MicroBatches()
        self._counted = None
        self._passes.forget()

    def get_extra_state(self) -> dict[str, Any]:
        """What a checkpoint is checked against: tasks and method; with `model`, the names of shared parameters."""
        return {
            "tasks": list(self.tasks),
            "method": self.method,
            "shared": self._shared.names,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Takes over what `get_extra_state` gave; `load_state_dict` has checked it before."""
        self._shared.restore(state["shared"])
        self._same_state = False

    def _device(self, otherwise: torch.device) -> torch.device:
        """Where the state is; `otherwise` if there is none."""
        return next((t.device for t in chain(self.buffers(), self.parameters())), otherwise)

    def _follow(self, device: torch.device) -> None:
        """Moves to the losses' device, so that a forgotten `.to(device)` is not an error."""
        if self._device(device) != device:
            self.to(device)
        if not self._same_state:
            self._same_state = self.ranks.share_state(self)

    def _present(self, tasks: Sequence[str]) -> list[int] | None:
        """The tasks' positions; None for all tasks."""
        return None if len(tasks) == len(self.tasks) else [self.tasks.index(task) for task in tasks]

    def _check_values(self, batch: Batch) -> Tensor | None:
        """Raises for losses that the method has no answer to, or gives a 0-dim bool that is false for them."""
        bounds = [part.lower_bounds() for part in self.objective.task_modules()]
        if self.aggregator is not None and self.aggregator.requires_positive:
            bounds.append(0.0)
        return check_bounds(batch, bounds, self.check_finite)

    def _coefficients(self, values: Tensor, valid: Tensor | None) -> tuple[Tensor, dict[Tensor, Tensor]]:
        """Returns `c_k = ∂objective/∂L_k` `[K']` and the gradients of the objective's own parameters."""
        parameters = [p for p in self.objective.parameters() if p.requires_grad]
        with torch.enable_grad():
            values = values.clone().requires_grad_()
            total = self.objective(values)
            if not isinstance(total, Tensor) or total.dim() or not total.requires_grad:
                raise ValueError(
                    f"{type(self.objective).__name__} must return a 0-dim tensor that depends on the losses and is not "
                    f"detached from them, found {total!r}."
                )
            coefficients, *gradients = torch.autograd.grad(total, [values, *parameters], allow_unused=True)
        learned = owned(parameters, gradients)
        if valid is not None:  # a NaN loss shows in the gradients, any other invalid one makes the step contribute 0
            dropped = torch.where(values.detach().isfinite().all(), 0.0, torch.nan).to(values.dtype)
            coefficients = torch.where(valid, coefficients, dropped)
            learned = {p: torch.where(valid, g, 0) for p, g in learned.items()}
        return coefficients, learned

    def _learned_in_all(self, batch: Batch, learned: dict[Tensor, Tensor], accumulate: bool) -> dict[Tensor, Tensor]:
        """Returns the gradients of the objective's own parameters for all micro-batches: none before the last.

        They are taken at the losses of the whole step, so that terms without a loss count once.
        """
        if not accumulate and not self._seen:
            return learned
        self._seen = self._seen.plus(batch, {task: {} for task in batch.tasks})
        return {} if accumulate else self._learned_in_seen()

    def _learned_in_seen(self) -> dict[Tensor, Tensor]:
        rows, values = self._seen.total(self.tasks)
        self._seen = MicroBatches()
        valid = None if checks_values(self.check_finite, values.device) else values.isfinite().all()
        with self.objective.step(self._present(tuple(rows)), values.dtype):
            return self._coefficients(values, valid)[1]

    def _backward_by_task(
        self,
        batch: Batch,
        coefficients: Tensor,
        scale: Tensor | None,
        accumulate: bool,
        retain_graph: bool,
        valid: Tensor | None,
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """One backward pass a task; returns the aggregator's weights, if any, and whether the step is valid."""
        sharded = self._passes.sharded
        leaves = [] if sharded else self._passes.leaves(batch)
        if not sharded:
            self._find_shared(batch.tasks, leaves)
        whole = not accumulate and not self._micro_batches
        probing = whole and not sharded and any(p in self._probe for row in leaves for p in row)
        wanted = leaves
        if probing and self._passes.watching is None:
            wanted = [[p for p in row if p in self._probe or p not in self._shared] for row in leaves]
        rows = self._passes.rows(batch, wanted, coefficients, retain_graph or probing, whole)
        if sharded:
            self._find_shared(batch.tasks, list(map(list, rows.values())))
        if scale is not None:
            unscale_rows(rows, scale)
        together = self._micro_batches.plus(batch, rows)
        if scale is not None:
            valid = self._all_finite(valid, (g for row in together.rows.values() for g in row.values()))
        if accumulate:
            self._micro_batches = together
            return {}, valid

        def second_pass(weights: Tensor) -> dict[Tensor, Tensor]:
            shared = list(dict.fromkeys(p for row in leaves for p in row if p in self._shared))
            return self._passes.joint(batch, shared, coefficients * weights, retain_graph)

        if not whole:
            together = replace(together, rows=self._passes.reduced(together.rows))
        return self._balance(together, scale, valid, second_pass if probing else None), valid

    def _backward_at(
        self,
        representation: Sequence[Tensor],
        batch: Batch,
        coefficients: Tensor,
        scale: Tensor | None,
        retain_graph: bool,
        valid: Tensor | None,
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """As `_backward_by_task`, with the gradients of a representation: one backward pass through the trunk."""
        assert isinstance(self.aggregator, GramianAggregator)  # checked before
        leaves = self._passes.leaves(batch)
        cut = self.ranks.checked(Cut, batch, representation)
        self._find_shared(batch.tasks, leaves, probe=False)
        watcher = self._passes.watching
        if watcher is not None:
            whole = self._passes.rows(batch, leaves, coefficients, True, True)
            if scale is not None:
                unscale_rows(whole, scale)
            watcher.see_rows(whole)
        own = self._passes.own(batch, coefficients)
        rows = cut.rows(own, retain_graph)
        statistics = cut.gramian(rows)
        if self.ranks.active:
            self.ranks.sum_(statistics)  # every rank has its own samples' part of the representation
        if scale is not None:
            statistics = statistics / scale.to(statistics.dtype).square()
        with self.aggregator.step(self._present(batch.tasks), batch.values.dtype) as step:
            weights = self.aggregator.finite_weights(statistics, batch.values)
            found = dict(zip(batch.tasks, weights.unbind(), strict=True))
            if watcher is not None:
                watcher.see_weights(found, self._shared.among(p for row in leaves for p in row))
            gradients = cut.combined(rows, own, weights, self._shared, retain_graph)
            if self.ranks.active:
                every = dict.fromkeys(leaf for row in leaves for leaf in row)
                gradients = self._passes.reduced({"": completed(gradients, every)})[""]
            if scale is not None:
                valid = self._all_finite(valid, gradients.values())
            accumulate_gradients(gradients)
            step.commit(_both(valid, weights.isfinite().all()))
        return found, valid

    def _check_goes_with_representation(self, accumulate: bool) -> None:
        """Checks what is the same on all ranks."""
        if not isinstance(self.aggregator, GramianAggregator):
            found = "none" if self.aggregator is None else type(self.aggregator).__name__
            raise ValueError(
                f"representation needs an aggregator that finds weights from the Gramian; found {found}. Leave it out."
            )
        if self._shared.given:
            raise ValueError(
                "representation says what is shared, all that leads to it: make the Balancer without shared."
            )
        if accumulate or self._micro_batches:
            raise ValueError(
                "representation balances one batch, whose graph the trunk's backward pass needs: leave it out where "
                "gradients are accumulated over micro-batches."
            )
        if self._passes.sharded:
            raise ValueError(
                "representation does not go with fully_shard, which has gradients computed from the losses only: leave "
                "it out; probe= takes statistics on a layer."
            )

    def _balance(
        self,
        micro_batches: MicroBatches,
        scale: Tensor | None,
        valid: Tensor | None,
        second_pass: Callable[[Tensor], dict[Tensor, Tensor]] | None,
    ) -> dict[str, Tensor]:
        """Adds the balanced gradient of all micro-batches into `.grad`; returns the aggregator's weights, if any.

        While probing, `second_pass` gives the shared leaves' gradient for the weights found.
        """
        rows, values = micro_batches.total(self.tasks)
        with ExitStack() as stack:
            step = None
            if self.aggregator is not None:
                step = stack.enter_context(self.aggregator.step(self._present(tuple(rows)), values.dtype))
            watcher = self._passes.watching
            if watcher is not None:
                watcher.see_rows(rows)
            weights, gradients = self._reduce(rows, values, second_pass is not None)
            if watcher is not None and weights is not None:
                shared = self._shared.among(p for row in rows.values() for p in row)
                watcher.see_weights(dict(zip(rows, weights.unbind(), strict=True)), shared)
            if scale is not None:
                torch._foreach_mul_(locals_of(gradients.values()), scale)
            if second_pass is not None and weights is not None:
                gradients |= second_pass(weights)
            accumulate_gradients(gradients)
            self._micro_batches = MicroBatches()
            if step is not None:
                step.commit(valid if weights is None else _both(valid, weights.isfinite().all()))
        return {} if weights is None else dict(zip(rows, weights.unbind(), strict=True))

    def _finish_without_tasks(self, scaler: torch.amp.GradScaler | None) -> None:
        """Completes a step whose last micro-batch has no label on any rank."""
        self._passes.finish()
        values = [*self._seen.values.values(), *self._micro_batches.values.values()]
        scale = None if scaler is None or not values else scaler.scale(torch.ones_like(values[0]))
        if self._seen:
            learned = self._learned_in_seen()
            accumulate_gradients({p: g if scale is None else g * scale.to(g.dtype) for p, g in learned.items()})
        if self._micro_batches:
            rows = self._passes.reduced(self._micro_batches.rows)
            valid = None
            if scale is not None:
                valid = self._all_finite(None, (g for row in rows.values() for g in row.values()))
            self._balance(replace(self._micro_batches, rows=rows), scale, valid, None)

    def _reduce(self, rows: Rows, values: Tensor, probing: bool) -> tuple[Tensor | None, dict[Tensor, Tensor]]:
        """Returns the aggregator's weights `[K']`, if any, and leaf → gradient.

        Shared leaves get the aggregator's gradient (while probing, none yet), the others the sum of their tasks'.
        """
        shared = self._shared.among(p for row in rows.values() for p in row)
        gradients: dict[Tensor, Tensor] = {}
        weights = None
        if shared and self.aggregator is not None:
            if not isinstance(self.aggregator, GramianAggregator):
                shared = self._passes.ordered(shared)  # what is drawn goes by the order
            matrix = [[row.get(p) for p in shared] for row in rows.values()]
            probe = [p for p in self._probe if any(p in row for row in rows.values())]
            if not probe:
                combined, weights = self.aggregator.aggregate(matrix, values)
            else:
                assert isinstance(self.aggregator, GramianAggregator)  # checked when probe was given
                statistics = gramian([[row.get(p) for p in probe] for row in rows.values()])
                weights = self.aggregator.finite_weights(statistics, values)
                combined = [] if probing else combine(matrix, weights)
            gradients = dict(zip(shared, combined, strict=not probing))
            balanced = set(shared)
            rows = {task: {p: g for p, g in row.items() if p not in balanced} for task, row in rows.items()}
        for row in rows.values():
            for leaf, gradient in row.items():
                gradients[leaf] = gradients[leaf].add_(gradient) if leaf in gradients else gradient
        return weights, gradients

    def _find_shared(self, tasks: Sequence[str], leaves: Sequence[Sequence[Tensor]], probe: bool = True) -> None:
        """Takes note of what is shared; raises if it leaves nothing to balance or, with a probe, to measure."""
        found = self._shared.find(leaves)
        all_there = len(tasks) == len(self.tasks)
        if probe and self._probe and found and all_there and not any(p in self._probe for p in found):
            raise ValueError(
                "probe= holds no parameter that two losses reach, so no gradient statistics can be taken on it: give "
                "parameters of the shared trunk, such as its last layer, or leave probe out."
            )
        if found or self.aggregator is None or not all_there or len(tasks) == 1:
            self._shared.keep(found)
            return
        raise ValueError(
            f"{type(self.aggregator).__name__} balances gradients on shared parameters, and found none: no parameter "
            "(of those given as shared=) is reached by two losses. Check that the losses come from one forward pass of "
            "the same model and that its trunk is not frozen or detached."
        )

    def _all_finite(self, valid: Tensor | None, gradients: Iterable[Tensor]) -> Tensor:
        """Whether the step is valid and the gradients are finite, on all ranks."""
        return _both(valid, self.ranks.all_true(all_finite(gradients)))


def _both(valid: Tensor | None, finite: Tensor) -> Tensor:
    return finite if valid is None else valid & finite
