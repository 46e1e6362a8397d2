"""Statistics: the Gramian of the rows at a place, then weights, then one weighted backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from equipoise.gradients.gramian import combine
from equipoise.gradients.graph.releasing import release
from equipoise.gradients.jacobian import Row, gradients_of, to_cut
from equipoise.gradients.places import AtCut, Place
from equipoise.gradients.ranks import Alone
from equipoise.gradients.sparse import added
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
        self, step: Step, coefficients: Tensor, solve: Callable[[Callable[[], Tensor]], Tensor]
    ) -> tuple[Tensor, Row]:
        """Makes the backward passes of a step.

        Args:
            step: the K' tasks present.
            coefficients: `c_k` `[K']`.
            solve: from what gives the Gramian `[K', K']` of the rows `c_k ∂L_k` at the place, if it is asked for it, to
                their weights `[K']`.

        Returns:
            The weights `[K']`, and the gradient of every leaf: `Σ_k w_k c_k ∂L_k` of shared ones, `Σ_k c_k ∂L_k` of
            others; scaled.
        """
        leaves = self._ranks.leaves(step)
        trained = {leaf for row in leaves for leaf in row}
        reached = dict.fromkeys(leaf for row in step.graph.leaves for leaf in row)
        scaled = step.weights(self._ranks.rank_share(step, step.scale.coefficients(coefficients)))
        at_cut, rows = self._one_by_one(step, scaled, step.at_held(leaves))
        weights = solve(lambda: step.scale.unscaled_products(self._place.gramian(at_cut, rows)))
        starts = at_cut
        if not self._place.joins_at_cut:
            held = iter(zip(step.held, scaled, strict=True))
            starts = [{} if loss is None else {get_gradient_edge(loss): next(held)[1]} for loss in step.losses]
        above = self._above(step)
        # From the cut, what lies above for one task can be reached by others; from the losses all is reached.
        done = set() if self._place.joins_at_cut else {leaf for row in above for leaf in row}
        inputs = [leaf for leaf in reached if leaf not in trained and leaf not in self._shared and leaf not in done]
        gradients = self._all_together(starts, torch.ones_like(weights), inputs, retain_graph=True)
        every = list(reached)  # so that the pass releases the graphs
        through_rest = self._all_together(starts, weights, every, step.retain_graph)
        gradients |= {leaf: through_rest[leaf] for leaf in every if leaf in self._shared and leaf in through_rest}
        del through_rest
        for row, own, weight in zip(rows, above, weights.unbind(), strict=True):
            for leaf, gradient in row.items():
                if leaf not in self._shared:
                    part = gradient
                elif self._place.joins_at_cut and leaf in own:
                    part = gradient * weight.to(gradient.dtype)
                else:
                    continue  # it was for the Gramian, or comes from the pass of all tasks
                gradients[leaf] = added(gradients[leaf], part) if leaf in gradients else part
        return weights, self._ranks.summed({"": self._ranks.completed(gradients, dict.fromkeys(chain(*leaves)))})[""]

    def _one_by_one(
        self, step: Step, scaled: Sequence[Tensor], trained: Sequence[Sequence[Tensor]]
    ) -> tuple[list[AtCut], list[Row]]:
        """Returns for each task its gradients at the cut, and its row: what is its own, lies above, or at the place."""
        measured = set(self._place.leaves())
        found: list[tuple[AtCut, Row]] = []
        place = self._place
        places = zip(place.edges, place.above, place.apart, place.exclusive, strict=True)
        for loss, weight, leaves, (edges, above, apart, own) in zip(step.held, scaled, trained, places, strict=True):
            below = [leaf for leaf in leaves if leaf not in above and (leaf in measured or leaf not in self._shared)]
            retain = step.retain_graph or not place.joins_at_cut
            at, row = to_cut(loss, list(above), weight, edges, retain or not apart)
            if not retain:
                release(own)
            outer = [gradient.clone() for gradient in at.values()]  # a node may write to what it is given
            row.update(gradients_of(list(at), below, outer, retain_graph=True))
            found.append((at, row))
        entries = iter(found)
        both = [({}, {}) if loss is None else next(entries) for loss in step.losses]
        return [at for at, _ in both], [row for _, row in both]

    def _above(self, step: Step) -> list[Iterable[Tensor]]:
        above = iter(self._place.above)
        return [() if loss is None else next(above) for loss in step.losses]

    def _all_together(
        self, starts: Sequence[AtCut], weights: Tensor, leaves: Sequence[Tensor], retain_graph: bool
    ) -> Row:
        """Goes back once, from the weighted sum of the tasks' gradients at the cut."""
        edges: list[GradientEdge] = list(dict.fromkeys(edge for at in starts for edge in at))
        if not edges or not leaves:
            return {}
        return gradients_of(
            edges, leaves, combine([[at.get(edge) for edge in edges] for at in starts], weights), retain_graph
        )
