"""Statistics: the Gramian of the rows at a place, then weights, then one weighted backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from equipoise.gradients.gramian import combine
from equipoise.gradients.jacobian import Row, gradients_of, to_cut
from equipoise.gradients.places import AtCut, Place
from equipoise.gradients.ranks import Alone
from equipoise.gradients.rows import with_inputs
from equipoise.gradients.step import Step


class Statistics:
    """Takes the tasks one by one no further than a place, and all together through the rest.

    Args:
        ranks: goes over ranks.
        place: where the Gramian is taken.
        shared: the leaves on which the weights act; other leaves get their own tasks' gradients.
    """

    def __init__(self, ranks: Alone, place: Place, shared: Iterable[Tensor]) -> None:
        self._ranks = ranks
        self._place = place
        self._shared = dict.fromkeys(shared)

    def run(
        self, step: Step, coefficients: Tensor, solve: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Row]:
        """Makes the backward passes of a step.

        Args:
            step: the K' tasks present.
            coefficients: `c_k` `[K']`.
            solve: from the Gramian `[K', K']` of the rows `c_k ∂L_k` at the place to their weights `[K']`.

        Returns:
            The weights `[K']`, and the gradient of every leaf: `Σ_k w_k c_k ∂L_k` of shared ones, `Σ_k c_k ∂L_k` of
            others; scaled.
        """
        leaves = self._ranks.leaves(step)
        scaled = step.weights(self._ranks.own(step, step.scale.coefficients(coefficients)))
        at_cut, rows = self._one_by_one(step, scaled, step.at_held(with_inputs(self._ranks, step, leaves)))
        weights = solve(step.scale.unscaled_products(self._place.gramian(at_cut, rows)))
        starts = at_cut
        if not self._place.joins_at_cut:
            held = iter(zip(step.held, scaled, strict=True))
            starts = [{} if loss is None else {get_gradient_edge(loss): next(held)[1]} for loss in step.losses]
        gradients = self._all_together(step, starts, weights)
        for row, above, weight in zip(rows, self._above(step), weights.unbind(), strict=True):
            for leaf, gradient in row.items():
                if leaf not in self._shared:
                    part = gradient
                elif self._place.joins_at_cut and leaf in above:
                    part = gradient * weight.to(gradient.dtype)
                else:
                    continue  # it was for the Gramian, or comes from the pass of all tasks
                gradients[leaf] = gradients[leaf] + part if leaf in gradients else part
        every = dict.fromkeys(leaf for row in leaves for leaf in row)
        return weights, self._ranks.summed({"": self._ranks.completed(gradients, every)})[""]

    def _one_by_one(
        self, step: Step, scaled: Sequence[Tensor], wanted: Sequence[Sequence[Tensor]]
    ) -> tuple[list[AtCut], list[Row]]:
        """Returns for each task its gradients at the cut, and its row: what is its own, or lies above, or at the place."""
        measured = set(self._place.leaves())
        found: list[tuple[AtCut, Row]] = []
        for loss, weight, leaves, edges, above in zip(
            step.held, scaled, wanted, self._place.edges, self._place.above, strict=True
        ):
            below = [
                leaf for leaf in leaves if leaf not in above and (leaf in measured or leaf not in self._shared)
            ]
            retain = step.retain_graph or not self._place.joins_at_cut
            at, row = to_cut(loss, leaves, weight, edges, above, retain)
            row.update(gradients_of(list(at), below, list(at.values()), retain_graph=True))
            found.append((at, row))
        entries = iter(found)
        both = [({}, {}) if loss is None else next(entries) for loss in step.losses]
        return [at for at, _ in both], [row for _, row in both]

    def _above(self, step: Step) -> list[Iterable[Tensor]]:
        above = iter(self._place.above)
        return [() if loss is None else next(above) for loss in step.losses]

    def _all_together(self, step: Step, starts: Sequence[AtCut], weights: Tensor) -> Row:
        """Goes back once, from the weighted sum of the tasks' gradients at the cut, to what is shared below it."""
        edges: list[GradientEdge] = list(dict.fromkeys(edge for at in starts for edge in at))
        if not edges:
            return {}
        own = {leaf for row in self._place.above for leaf in row} if self._place.joins_at_cut else set()
        reached = dict.fromkeys(leaf for row in step.graph.leaves for leaf in row)
        below = [leaf for leaf in reached if leaf in self._shared and leaf not in own]
        outer = combine([[at.get(edge) for edge in edges] for at in starts], weights)
        return gradients_of(edges, below, outer, step.retain_graph)
