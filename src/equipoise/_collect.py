"""The third and fourth stop of a step: one of three ways to collect gradients, and then to `.grad`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import chain

from torch import Tensor

from equipoise._cadence import Cadence
from equipoise._held import Held
from equipoise._outcome import Outcome
from equipoise._parts import check_representation
from equipoise._saved import shortened
from equipoise._sharing import Sharing
from equipoise._state_step import StateStep
from equipoise.aggregators import Aggregator, GramianAggregator, RowStateAggregator
from equipoise.gradients.gramian import combine, gramian, stacks_of
from equipoise.gradients.graph.walk import reached_leaves
from equipoise.gradients.jacobian import Row
from equipoise.gradients.layers import layers_save, what_acts
from equipoise.gradients.micro_batches import Collected, move_into
from equipoise.gradients.places import Layers, Place, Probe, Representation, RepresentationPlace, read_representation
from equipoise.gradients.ranks import Alone, Company
from equipoise.gradients.rows import Rows, with_inputs
from equipoise.gradients.sparse import compact
from equipoise.gradients.statistics import Statistics
from equipoise.gradients.step import Step
from equipoise.gradients.watching import Watching
from equipoise.gradients.writing import all_finite

Reached = Mapping[str, Sequence[Tensor]]
"""Task → the trained leaves that it reaches."""

NOTHING: Reached = {}
NO_STEP = "no step yet"
HELD = "one backward pass, of held weights"

LITTLE = 1 << 20
"""Numbers in all rows together under which a way that holds less is not looked for: some 4 MB."""

CHOSEN_ON = ("cpu",)
"""Types of devices on which layers are chosen by themselves: to see whether anything acts in the trunk costs little."""


class Collect:
    """Collects the tasks' gradients in one of three ways, reduces them by the aggregator, and writes them.

    - one pass (`one_pass`): without an aggregator, of the weighted sum, straight into `.grad`;
    - rows (`Rows`): a backward pass a task, their gradients kept over micro-batches;
    - statistics (`Statistics`): the Gramian at a place, and one weighted backward pass; of that the latter alone where
      weights are held.

    Args:
        aggregator: bound to them; None: gradients are added up (by rows for micro-batches with counts).
        sharing: finds what is shared.
        company: how to go over ranks.
        rows: collects rows.
        watching: who looks at them.
        engine: "rows", "layers", or None: what saves.
        every: how many steps there are from one that takes statistics to the next.

    Attributes:
        way: which way the last step took, and why.
        no_layers: engine → why this model has no Gramian by layers, once that is found; checkpoints keep it.
        held: the aggregator's weights of the last step that found some.
        cadence: counts the steps.
    """

    def __init__(
        self,
        aggregator: Aggregator | None,
        sharing: Sharing,
        company: Company,
        rows: Rows,
        watching: Watching,
        engine: str | None,
        every: int,
    ) -> None:
        self.way = NO_STEP
        self.held = Held()
        self.cadence = Cadence(every)
        self._engine = engine
        self._looked = False  # whether layers would save, once where they are not chosen
        self._hint = ""
        self.no_layers: Mapping[str | None, str] = {}
        self._aggregator = aggregator
        self._sharing = sharing
        self._company = company
        self._rows = rows
        self._watching = watching

    def reading(
        self, representation: Representation | None, losses: Mapping[str, Tensor], accumulate: bool
    ) -> Callable[[], Sequence[Tensor]] | None:
        """Returns what reads a representation, if one is given."""
        return None if representation is None else partial(self._read, representation, bool(losses), accumulate)

    def _read(self, representation: Representation, needed: bool, accumulate: bool) -> list[Tensor]:
        """Returns the tensors of a representation, if it can be used in this step.

        Raises:
            TypeError: it is something else.
            ValueError: it cannot, or there is none.
        """
        accumulates = accumulate or bool(self._rows.waiting.micro_batches)
        check_representation(self._aggregator, self._sharing.given, accumulates, self._company.now().sharded)
        return read_representation(representation, needed)

    def run(self, step: Step, coefficients: Tensor, valid: Tensor | None) -> Outcome:
        """Makes the backward passes, and adds the balanced gradient into `.grad` at the last micro-batch.

        Args:
            step: the K' tasks present.
            coefficients: `c_k` `[K']`.
            valid: whether the losses are finite, 0-dim bool; None: they are.
        """
        ranks = self._company.now()
        counted = step.accumulate and step.counts is not None
        if self._aggregator is None and not counted and not self._rows.waiting.micro_batches.rows:
            return self._together(step, coefficients, valid, ranks)
        if ranks.sharded:
            if isinstance(self._aggregator, RowStateAggregator):
                raise ValueError(
                    f"{type(self._aggregator).__name__} keeps state as large as the tasks' gradients, which cannot be "
                    "saved where fully_shard spreads parameters over ranks: use DistributedDataParallel, or a method "
                    "without such state."
                )
            sharded = "parameters are sharded" if self._engine == "layers" else ""
            return self._by_rows(step, coefficients, valid, None, sharded)
        leaves = ranks.leaves(step)
        waiting = self._rows.waiting.micro_batches
        reached = waiting.reached_with(step.tasks, leaves)
        shared: dict[Tensor, None] = {}
        if self._aggregator is not None and (self.cadence.every > 1 or not step.accumulate):
            shared = self._sharing.shared_in(reached, step, step.representation is not None)
        if step.representation is not None:
            representation = ranks.checked(RepresentationPlace, ranks, step, step.representation)
            under = {leaf: None for leaf in representation.under if ranks.order.is_trained(leaf)}
            if self._sharing.everybody(reached) and not shared | under:
                ranks.checked(self._sharing.nothing_shared, reached, step)
            self._sharing.note(shared, reached)
            holding = self._holding(step, shared | under, reached)
            self.way = HELD if holding else "statistics at the representation"
            return self._by_statistics(step, coefficients, valid, representation, shared | under, holding)
        holding = self._holding(step, shared, reached)
        if holding:
            self._sharing.note(shared, reached)
            self.way = HELD
            return self._by_statistics(step, coefficients, valid, Probe(ranks, step, ()), shared, holding)
        measured = {} if waiting or step.accumulate else self._sharing.measured(shared, reached)
        if measured:
            self._sharing.note(shared, reached)
            place = Probe(ranks, step, measured)
            self.way = "statistics on the probe"
            return self._by_statistics(step, coefficients, valid, place, shared)
        layers = self._layers(step, shared, reached)
        if isinstance(layers, str):
            return self._by_rows(step, coefficients, valid, leaves, layers)
        if layers.refused is not None:
            outcome = self._by_rows(step, coefficients, valid, leaves, shortened(layers.refused))
        else:
            self._sharing.note(shared, reached)
            outcome = self._by_statistics(step, coefficients, valid, layers, shared)
            self.way = "layers" if layers.refused is None else f"rows, not layers ({shortened(layers.refused)})"
        if layers.refused is not None:
            self.no_layers = {self._engine: shortened(layers.refused)}
        return outcome

    def _holding(self, step: Step, shared: Mapping[Tensor, None], reached: Reached) -> Reached:
        """Returns what the tasks reach, if their weights are held, as the first micro-batch decides; else nothing."""
        waiting = self._rows.waiting.micro_batches
        counted = step.accumulate and step.counts is not None  # how much one counts is known at the last one
        if self.cadence.every == 1 or counted or waiting.rows:
            return {}
        return reached if waiting or self.cadence.holds(self._sharing.taking(shared, reached), step.learns) else {}

    def _layers(
        self, step: Step, shared: Mapping[Tensor, None], reached: Mapping[str, Sequence[Tensor]]
    ) -> Layers | str:
        """Where the Gramian is taken layer by layer, unless refused; or why not, empty where nothing speaks for it."""
        if self._engine == "rows" or self._sharing.probing or not isinstance(self._aggregator, GramianAggregator):
            return ""
        refused = self.no_layers.get(self._engine)
        against = refused or self._against_layers(step, shared, reached)
        if self._engine == "layers":
            return against or Layers(step, shared)
        if against is not None or step.batching.chunk_size is not None:
            return refused or ""
        choosing = step.values.device.type in CHOSEN_ON
        if self._looked and not choosing:
            return ""
        self._looked = True
        layers = Layers(step, shared)
        numbers = len(step.tasks) * sum(leaf.numel() for leaf in shared)
        if numbers < LITTLE or not layers_save(layers.starts, layers.under, len(step.tasks)):
            return ""
        if not choosing:
            self._hint = "; engine='layers' would hold less"
            return ""
        layers.refused = what_acts(layers.starts)
        return layers

    def _against_layers(
        self, step: Step, shared: Mapping[Tensor, None], reached: Mapping[str, Sequence[Tensor]]
    ) -> str | None:
        """Why the Gramian of this step cannot be taken layer by layer; None: it can."""
        if self._company.now().active:
            return "there are several ranks"
        if step.accumulate or self._rows.waiting.micro_batches:
            return "there are micro-batches"
        if not shared or self._sharing.taking(shared, reached) != step.tasks:
            return "a task shares no parameter"
        if step.graph.compiled:
            return "torch.compile made the graph"
        if step.cut is None:
            return "there is one task"
        return None if any(step.cut.edges) else "the tasks' graphs merge at parameters alone"

    def finish(self, step: Step) -> Outcome:
        """Completes a step whose last micro-batch has no task."""
        self._company.now().finish()
        collected = self._rows.finish()
        if collected is not None:
            outcome = self._reduce(collected, step, None)
        else:
            earlier = self._rows.waiting.micro_batches
            outcome = Outcome({}, self._valid(earlier.written(), step, None), weighed=None if earlier else ())
        self._rows.waiting.end()
        return outcome

    def _together(self, step: Step, coefficients: Tensor, valid: Tensor | None, ranks: Alone) -> Outcome:
        """One backward pass of the weighted sum, straight into `.grad`."""
        waiting = self._rows.waiting
        leaves: list[list[Tensor]] = []
        if step.accumulate or self.way == NO_STEP:  # once, for wrappers that are refused
            with suppress(RuntimeError):  # one pass does not need to know what a reentrant checkpoint hides
                leaves = reached_leaves(step.held, together=True, repeatable=False)
        self.way = "one backward pass"
        scaled = step.scale.coefficients(coefficients)
        watcher = self._watching.now
        with watcher.around(ranks, step, scaled) if watcher else nullcontext():
            reached = ranks.one_pass(step, scaled)
        valid = self._valid((leaf.grad for leaf in reached if leaf.grad is not None), step, valid)
        if step.accumulate:
            every = dict.fromkeys([*reached, *(leaf for row in leaves for leaf in row)])  # on any rank; on this one
            written = [p for p in every if p.grad is not None and ranks.order.is_trained(p)]
            waiting.keep(waiting.micro_batches.plus(step, {}, {"": written}))
        else:
            waiting.end()
        return Outcome({}, valid)

    def _by_rows(
        self,
        step: Step,
        coefficients: Tensor,
        valid: Tensor | None,
        leaves: list[list[Tensor]] | None,
        no_layers: str,
    ) -> Outcome:
        """A step by rows; `no_layers`: why not by layers, empty where nothing speaks for them."""
        collected = self._rows.run(step, coefficients, leaves)
        instead = f", not layers ({no_layers})" if no_layers else ""
        self.way = f"rows{instead}: {step.batching.reason}{self._hint}"
        if collected is not None:
            return self._reduce(collected, step, valid)
        kept = self._rows.waiting.micro_batches.rows.values()
        return Outcome({}, self._valid([gradient for row in kept for gradient in row.values()], step, valid))

    def _reduce(self, collected: Collected, step: Step, valid: Tensor | None) -> Outcome:
        """Adds the balanced gradient of a whole step's rows into `.grad`; `step`: its last micro-batch."""
        ranks = self._company.now()
        shared = {}
        if self._aggregator is not None:
            shared = self._sharing.shared_in(collected.reached, step)
            self._sharing.note(shared, collected.reached)
        if not isinstance(self._aggregator, GramianAggregator):
            shared = dict.fromkeys(ranks.order.ordered(shared))  # what is drawn goes by the order
        watcher = self._watching.now
        if watcher is not None:
            watcher.see_rows(collected.rows)
        with ExitStack() as stack:
            balanced = collected.of(self._sharing.taking(shared, collected.reached))
            combined, weights, state, holds = self._aggregated(balanced, shared, stack, step.learns)
            found = self._by_task(balanced.tasks, weights, shared)
            gradients = dict(zip(shared, combined, strict=True))
            del combined
            balancing = set(map(id, shared))  # a tensor's own hash is slow
            for row in collected.rows.values():
                own = {leaf: gradient for leaf, gradient in row.items() if id(leaf) not in balancing}
                row.clear()
                move_into(gradients, own)
            outcome = Outcome(found, valid, balanced.usable, None if holds else self._weighed(state))
            return self._written(step.scale.gradients(gradients), step, outcome, state)

    def _aggregated(
        self, collected: Collected, shared: Mapping[Tensor, None], stack: ExitStack, learns: bool
    ) -> tuple[list[Tensor], Tensor | None, StateStep | None, bool]:
        """Returns the shared leaves' gradients, the weights `[K']`, if any, the state to commit, and if they are held.

        The rows are those of the K' tasks that reach anything shared.
        """
        aggregator, rows = self._aggregator, list(collected.rows.values())
        if aggregator is None or not rows:
            return [], None, None, False
        if isinstance(aggregator, RowStateAggregator):
            aggregator.columns = self._sharing.names(shared)
            if any(row[p].is_sparse for row in rows for p in shared if p in row):
                raise ValueError(
                    f"{type(aggregator).__name__} keeps state as large as the tasks' gradients, and a table has sparse "
                    "ones: make the embedding with sparse=False, or take a method without such state."
                )
        holds = self.cadence.holds(collected.tasks, learns)
        columns = [compact([row.get(p) for row in rows]) for p in shared]
        matrix = list(zip(*(column for column, _ in columns), strict=True))
        if holds:
            weights, state = self.held.or_mean(collected.values, collected.tasks), None
            combined = combine(matrix, weights)
        elif isinstance(aggregator, GramianAggregator):
            statistics = matrix
            measured = self._sharing.measured(shared, collected.reached)
            if measured:
                places = [index for index, p in enumerate(shared) if p in measured]
                statistics = [tuple(row[index] for index in places) for row in matrix]
            stacks = stacks_of(matrix)
            products = gramian(matrix, stacks) if statistics is matrix else gramian(statistics)
            weights, state = self._solved(stack, products, collected, learns)
            combined = combine(matrix, weights, stacks)
        else:
            present = aggregator.positions(collected.tasks)
            state = stack.enter_context(aggregator.step(present, collected.values.dtype, collected.usable))
            combined, weights = aggregator.aggregate(matrix, collected.values)  # type: ignore[assignment]
            if aggregator.weighs and not learns:
                weights = self.held.instead_of(weights, collected.tasks)
                combined = combine(matrix, weights)
        whole = [restored(part) for part, (_, restored) in zip(combined, columns, strict=True)]
        return whole, weights, state, holds

    def show(self, step: Step, coefficients: Tensor) -> None:
        """Shows the rows of a step that does not make them to a watcher that asks for this step."""
        watcher = self._watching.now
        if watcher is None:
            return
        ranks, kept = self._company.now(), replace(step, retain_graph=True)
        wanted = with_inputs(ranks, kept, ranks.leaves(kept))
        found = ranks.rows(kept, wanted, step.scale.coefficients(coefficients), reduce=True)
        watcher.see_rows(step.scale.unscaled(dict(zip(step.tasks, found, strict=True))))

    def _by_statistics(
        self,
        step: Step,
        coefficients: Tensor,
        valid: Tensor | None,
        place: Place,
        shared: Mapping[Tensor, None],
        holding: Reached = NOTHING,
    ) -> Outcome:
        """A step whose Gramian is taken at a place; or whose weights are held, and the tasks go together from there."""
        ranks = self._company.now()
        self.show(step, coefficients)
        state: StateStep | None = None
        with ExitStack() as stack:

            def solve(products: Callable[[], Tensor]) -> Tensor:
                nonlocal state
                if holding:
                    return self.held.or_mean(step.values, step.tasks)
                weights, state = self._solved(stack, products(), step, step.learns)
                return weights

            weights, gradients = Statistics(ranks, place, shared).run(step, coefficients, solve)
            found = self._by_task(step.tasks, weights, shared)
            if holding:
                found = {task: found[task] for task in self._sharing.taking(shared, holding) if task in found}
            outcome = Outcome(found, valid, step.usable, None if holding else self._weighed(state))
            return self._written(gradients, step, outcome, state, holding)

    def _weighed(self, state: StateStep | None) -> Sequence[str]:
        """Returns the tasks of which the aggregator has found weights; `state`: to commit, None where it has not."""
        tasks = () if state is None or self._aggregator is None else self._aggregator.tasks or ()
        return tasks if state is None or state.present is None else [tasks[index] for index in state.present]

    def end(self, outcome: Outcome, scaled: bool) -> None:
        """Holds the weights of a step, if it counts.

        On an accelerator the host looks whether it does where there is a gradient scaler, whose own step has waited for
        that by the next one. (Ranks have to agree, and so wait.)
        """
        if outcome.weighed is not None:
            self.held.note(outcome.weights, outcome.usable)
            self.held.end(outcome.valid)
        valid = outcome.valid
        if self.cadence.every > 1 and outcome.usable is not None:  # a step without any task counts for nothing
            valid = outcome.usable.any() if valid is None else valid & outcome.usable.any()
        looks = valid is not None and (valid.device.type == "cpu" or scaled)
        self.cadence.end(outcome.weighed, valid if looks else None, self._company.now().active)

    def _solved(
        self, stack: ExitStack, products: Tensor, step: Step | Collected, learns: bool
    ) -> tuple[Tensor, StateStep | None]:
        """Finds the weights `[K']` of the rows with these products, and the state to commit before the stack ends."""
        assert isinstance(self._aggregator, GramianAggregator)
        present = self._aggregator.positions(step.tasks)
        solved = self._aggregator.solved(products, step.values, present, step.usable)
        weights, state = stack.enter_context(solved)
        return weights if learns else self.held.instead_of(weights, step.tasks), state

    def _written(
        self, gradients: Row, step: Step, outcome: Outcome, state: StateStep | None, holding: Reached = NOTHING
    ) -> Outcome:
        """The last stop: adds the gradients into `.grad`, and commits the aggregator's state if the step is valid.

        Those of held weights go there with each micro-batch.
        """
        waiting = self._rows.waiting
        valid = self._valid(chain(gradients.values(), waiting.micro_batches.written()), step, outcome.valid)
        if step.accumulate:
            step.write(gradients)
            waiting.keep(waiting.micro_batches.plus(step, {}, holding))
        else:
            waiting.end()
            step.write(gradients)
        if state is not None and step.learns:
            state.commit(valid)
        return replace(outcome, valid=valid)

    def _valid(self, gradients: Iterable[Tensor], step: Step, valid: Tensor | None) -> Tensor | None:
        """Whether a step counts that comes to these gradients."""
        if not step.scale.checked:
            return valid
        finite = self._company.now().all_true(all_finite(gradients, step.values.device))
        return finite if valid is None else valid & finite

    def _by_task(
        self, tasks: Sequence[str], weights: Tensor | None, shared: Mapping[Tensor, None]
    ) -> dict[str, Tensor]:
        if weights is None:
            return {}
        found = dict(zip(tasks, weights.unbind(), strict=True))
        watcher = self._watching.now
        if watcher is not None:
            watcher.see_weights(found, list(shared))
        return found
