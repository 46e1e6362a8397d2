"""The way of a step through its stops: read, weigh, collect, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from equipoise._collect import Collect
from equipoise._held import Held
from equipoise._kept import constants
from equipoise._notices import Notices
from equipoise._outcome import Outcome
from equipoise._parts import check_prefers
from equipoise._scalar import balanced, refuse_sharded, refuse_waiting, weighted
from equipoise._sharing import Sharing
from equipoise._weigh import Hook, Weigh
from equipoise.aggregators import Aggregator
from equipoise.gradients.batching import Batching
from equipoise.gradients.micro_batches import Waiting
from equipoise.gradients.places import Representation
from equipoise.gradients.ranks import Company
from equipoise.gradients.reading import Reader
from equipoise.gradients.rows import Rows
from equipoise.gradients.shared import SharedParameters
from equipoise.gradients.step import Step
from equipoise.gradients.watching import Watching
from equipoise.objectives import Objective


class Balancing:
    """What a Balancer does with the losses, of which `Balancer` tells the meaning of every argument.

    Attributes:
        weigh: the stop where the objective weighs the losses.
        collect: the stop where gradients are collected and written.
        rows: collects rows, and holds micro-batches.
        batching: how many tasks go at once.
        watching: who looks on.
        held: the objective's weights of the last step that learned something.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        objective: Objective,
        aggregator: Aggregator | None,
        shared: SharedParameters,
        probe: Mapping[Tensor, None],
        company: Company,
        priorities: Mapping[str, float],
        *,
        check_finite: bool | None,
        chunk_size: int | None,
        engine: str | None,
        every: int,
    ) -> None:
        self._tasks, self._company, self._aggregator = tasks, company, aggregator
        self._priorities = priorities if aggregator is None else {}
        if priorities and aggregator is not None:
            check_prefers(aggregator)
            aggregator.prefer(priorities)
        self._notices = Notices()
        self._counts: Mapping[str, float | Tensor] | None = None
        self._same_state = False
        self.held = Held()
        self.watching = Watching()
        self.rows = Rows(company, tasks, Waiting())
        self.batching = Batching(chunk_size)
        self._reader = Reader(company, tasks, check_finite, self.rows.waiting, self.batching)
        self.weigh = Weigh(tasks, objective, aggregator, self._notices)
        sharing = Sharing(tasks, aggregator, shared, probe, company, self.rows.waiting, self._notices)
        self.collect = Collect(aggregator, sharing, company, self.rows, self.watching, engine, every)

    @property
    def takes_empty(self) -> bool:
        """Whether a step without a loss means something."""
        return self._company.now().active or bool(self.rows.waiting.micro_batches)

    def read(
        self,
        balancer: nn.Module,
        losses: Mapping[str, Tensor],
        counts: Mapping[str, float | Tensor] | None,
        scaler: Any = None,
        *,
        accumulate: bool = False,
        retain_graph: bool = False,
        representation: Representation | None = None,
        graph: bool = True,
        learns: bool = True,
    ) -> Step:
        """The first stop, see `Reader.read`; leaves out the tasks whose losses the method cannot use.

        The balancer moves to the losses' device, so that a forgotten `.to(device)` is not an error.
        """
        step = self._reader.read(
            losses,
            counts,
            scaler,
            empty=self.takes_empty,
            accumulate=accumulate,
            retain_graph=retain_graph,
            graph=graph,
            also=self.collect.reading(representation, losses, accumulate),
        )
        if step.cleared:
            self.weigh.take_back()
            self.held.forget()
        self._notices.poll()
        if learns:
            self._counts = counts  # of the step that after_step is about
        self.go_along(balancer, step)
        if not self._same_state and self._company.now().share_state(balancer):
            self._same_state = True
        return self._usable(step if learns else replace(step, learns=False))

    def go_along(self, balancer: nn.Module, step: Step) -> None:
        """Moves the balancer to the losses' device."""
        device = step.values.device
        if self.weigh.device not in (None, device):
            balancer.to(device)

    def _usable(self, step: Step) -> Step:
        return self.weigh.usable(step, self._reader.looks(step))

    def backward(self, step: Step) -> dict[str, Tensor]:
        """The other stops; returns task → weight."""
        earlier = self.rows.waiting.micro_batches
        if not step.tasks:
            if not step.accumulate:  # a step whose last micro-batch has no label on any rank
                outcome = self.collect.finish(step)
                self._hold(outcome)
                self.weigh.end(step, earlier.total(self._tasks) if earlier else None, None, outcome.valid)
            return {}
        with self.weigh.step(step, begins=step.accumulate and not earlier) as state:
            valid = self._reader.validity(step)
            coefficients, learned = self.weigh.coefficients(step.values, step.usable, valid)
            coefficients = self._wanted(coefficients, step)
            if not step.learns:
                coefficients = self._held_instead_of(coefficients, step)
            outcome = self.collect.run(step, coefficients, valid)
            if step.learns:
                state.commit(outcome.valid)
        if not step.accumulate and step.learns:
            total = earlier.plus(step, {}, {}).total(self._tasks) if earlier else None
            self.weigh.end(step, total, learned, outcome.valid)
        elif not step.accumulate:
            self.weigh.take_back()
        own = dict(zip(step.tasks, coefficients.unbind(), strict=True))
        if step.learns:
            self.held.note(own, step.usable)
            if not step.accumulate:
                self._hold(outcome)
        result = {task: c * outcome.weights[task] if task in outcome.weights else c for task, c in own.items()}
        if self.watching.now is not None:
            self.watching.now.see_result(result)
        return result

    def loss(self, step: Step) -> Tensor:
        """The other stops as a scalar, whose backward pass they are; without an aggregator all but the last.

        Raises:
            ValueError: micro-batches of `backward` wait; or parameters are sharded and there is an aggregator.
        """
        ranks = self._company.now()
        with_graph = torch.is_grad_enabled()
        later = with_graph and self._aggregator is not None  # the backward pass commits state
        if with_graph:
            refuse_waiting(self.rows.waiting)
        if later:
            refuse_sharded(ranks, "balancer(losses) with an aggregator")
        if not step.tasks:
            return torch.zeros((), device=step.values.device, requires_grad=with_graph)
        with self.weigh.step(step) as state:
            valid = self._reader.validity(step)
            value, coefficients, learned = self.weigh.valued(step.values, step.usable, valid)
            plain, coefficients = coefficients, self._wanted(coefficients, step)
            if not step.learns:
                coefficients, learned = self._held_instead_of(coefficients, step), {}
                weights = coefficients * self.collect.held.known(torch.ones_like(coefficients), step.tasks)
                value = (weights * step.taking(step.values, 0.0)).sum()
            elif self._priorities:
                value = value + ((coefficients - plain) * step.taking(step.values, 0.0)).sum()
            if step.learns and not later:
                state.commit(valid)
        if not with_graph:
            return value
        if later:
            leaves = () if ranks.active else (*step.graph.every_leaf, *learned)
            return balanced(step, value, self._inside, leaves)
        own = dict(zip(step.tasks, coefficients.unbind(), strict=True))
        if step.learns:
            self.held.note(own, step.usable)
            self.held.end(valid)
        if self.watching.now is not None:
            self.watching.now.see_scalar()
            self.collect.show(step, coefficients)
            self.watching.now.see_result(own)
        if learned:
            self.weigh.watch_learned(learned)
        return weighted(step, value, ranks.averaged(step, coefficients), learned)

    def _inside(self, step: Step) -> None:
        """Makes the step in the backward pass of its scalar."""
        if self.watching.now is not None:
            self.watching.now.see_scalar()
        self.backward(step)

    def after_step(self, losses: Mapping[str, Tensor]) -> None:
        """Takes the losses again after the optimizer's step."""
        counts = self._counts
        if counts is None or not isinstance(losses, Mapping) or any(task not in counts for task in losses):
            counts = None
        self.show(self.read_beside(losses, counts), "after_step")

    def read_beside(self, losses: Mapping[str, Tensor], counts: Mapping[str, float | Tensor] | None) -> Step:
        """Reads losses that are not to be weighed, and need no graph."""
        return self._reader.read(losses, counts, None, empty=self._company.now().active, graph=False)

    def show(self, step: Step, hook: Hook) -> None:
        """Shows the objective losses that are not to be weighed."""
        step = self._usable(step)
        if step.tasks:
            self.weigh.show(step, hook, self._reader.validity(step))

    def forget(self) -> None:
        """Takes note that gradients have been cleared."""
        self.rows.waiting.forget()
        self._company.now().forget()
        self.weigh.take_back()
        self.held.forget()

    def chosen(self) -> dict[str, Any]:
        """Returns what was chosen and found in earlier steps, for a checkpoint."""
        weights = {"objective": self.held.numbers(), "aggregator": self.collect.held.numbers()}
        refused = list(map(list, self.collect.no_layers.items()))
        position = self.collect.cadence.position
        return {"chunk_size": self.batching.chosen, "no_layers": refused, "position": position, "weights": weights}

    def choose(self, state: Mapping[str, Any]) -> None:
        """Takes over what `chosen` gave."""
        self.batching.choose(state.get("chunk_size"))
        self.collect.no_layers = dict(state["no_layers"])
        weights = state.get("weights", {})
        self.held.restore(weights.get("objective", {}))
        found = weights.get("aggregator", {})
        self.collect.held.restore(found)
        self.collect.cadence.restore(state.get("position", 0), found)
        self._same_state = False

    def _hold(self, outcome: Outcome) -> None:
        """Holds the weights of a step, if it counts."""
        self.held.end(outcome.valid)
        self.collect.end(outcome, self._reader.scaled)

    def _wanted(self, coefficients: Tensor, step: Step) -> Tensor:
        """Returns the coefficients `[K']` times the tasks' priorities."""
        if not self._priorities:
            return coefficients
        priorities = tuple(self._priorities[task] for task in step.tasks)
        return coefficients * constants(priorities, coefficients.dtype, coefficients.device)

    def _held_instead_of(self, coefficients: Tensor, step: Step) -> Tensor:
        """Returns the coefficients `[K']` of a step that learns nothing."""
        held = self.held.instead_of(step.taking(coefficients, torch.nan), step.tasks)
        return step.taking(held, 0.0)
