"""Where gradient statistics are taken, and how a step's graphs are cut for it: a probe, layers, a representation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from equipoise.gradients.gramian import gramian, wide_dtype
from equipoise.gradients.graph.cut import hooked
from equipoise.gradients.graph.walk import AccumulateGrad, leaves_until
from equipoise.gradients.jacobian import Row, gradients_of, stacked_at
from equipoise.gradients.layers import Unsupported, gramian_by_layers
from equipoise.gradients.ranks import Alone
from equipoise.gradients.sparse import compact
from equipoise.gradients.step import Step

Representation = Tensor | Iterable[Tensor]
"""What the trunk gives and the tasks start from: one tensor or several, such as one a scale."""

AtCut = dict[GradientEdge, Tensor]
"""Edge of the cut → one task's gradient there."""


class Place(Protocol):
    """Where the Gramian of the rows is taken, and how the graphs are cut for it."""

    @property
    def edges(self) -> Sequence[Sequence[GradientEdge]]:
        """For each loss of the step that this rank has, where its graph is cut."""

    @property
    def above(self) -> Sequence[Mapping[Tensor, None]]:
        """For each of them the leaves that lie above."""

    @property
    def apart(self) -> Sequence[bool]:
        """For each of them, whether no later one goes through what lies above."""

    @property
    def exclusive(self) -> Sequence[Sequence[Node]]:
        """For each that is not apart the nodes above that no later one goes through."""

    @property
    def joins_at_cut(self) -> bool:
        """Whether the pass that all tasks take together starts at the cut; else it starts at the losses."""

    def leaves(self) -> Iterable[Tensor]:
        """The shared leaves whose rows it takes."""

    def gramian(self, at_cut: Sequence[AtCut], rows: Sequence[Row]) -> Tensor:
        """Returns the products `[K', K']` of what each task has there, over all ranks."""


class Probe:
    """Some of the shared parameters, say the last shared layer. See `Place`.

    Args:
        ranks: goes over ranks.
        step: the step.
        probe: the parameters, each reached by all tasks; none where no statistics are taken.
    """

    def __init__(self, ranks: Alone, step: Step, probe: Iterable[Tensor]) -> None:
        self._ranks = ranks
        self._probe = list(probe)
        cut = step.cut
        self.joins_at_cut = True
        self.apart = [True for _ in step.held]
        self.exclusive: list[list[Node]] = [[] for _ in step.held]
        self.edges = cut.edges if cut else [[get_gradient_edge(loss)] for loss in step.held]
        self.above = cut.above if cut else [{} for _ in step.held]

    def leaves(self) -> Iterable[Tensor]:
        """See `Place`."""
        return self._probe

    def gramian(self, at_cut: Sequence[AtCut], rows: Sequence[Row]) -> Tensor:
        """See `Place`."""
        own = {str(index): {p: row[p] for p in self._probe if p in row} for index, row in enumerate(rows)}
        summed = self._ranks.summed({task: self._ranks.completed(row, self._probe) for task, row in own.items()})
        columns = [compact([row.get(p) for row in summed.values()])[0] for p in self._probe]
        return gramian(list(zip(*columns, strict=True)))


class Layers:
    """The shared parameters layer by layer, whose rows are never held together. See `Place`.

    Where that cannot be done (see `layers`), rows are, from the same gradients at the cut.

    Args:
        step: the step, of two or more tasks that this process has.
        shared: the leaves whose rows it takes.

    Attributes:
        refused: why it cannot be done; None: nothing is known against it.
    """

    joins_at_cut = True

    def __init__(self, step: Step, shared: Iterable[Tensor]) -> None:
        cut = step.cut
        assert cut is not None
        self.edges, self.above = cut.edges, cut.above
        self.apart = [True for _ in step.held]
        self.exclusive: list[list[Node]] = [[] for _ in step.held]
        over = {leaf for row in cut.above for leaf in row}
        self._over = [leaf for leaf in shared if leaf in over]
        self.under = [leaf for leaf in shared if leaf not in over]
        self.refused: str | None = None

    @property
    def starts(self) -> list[GradientEdge]:
        """The edges of the cut."""
        return list(dict.fromkeys(edge for row in self.edges for edge in row))

    def leaves(self) -> Iterable[Tensor]:
        """See `Place`: those that lie above the cut for a task, for others can reach them from below it."""
        return self._over

    def gramian(self, at_cut: Sequence[AtCut], rows: Sequence[Row]) -> Tensor:
        """See `Place`."""
        edges, outer = stacked_at(at_cut)
        try:
            total = gramian_by_layers(edges, outer, self.under)
        except Unsupported as error:
            self.refused = str(error).splitlines()[0]
            explicit = [gradients_of(list(at), self.under, list(at.values()), retain_graph=True) for at in at_cut]
            total = _products(explicit, self.under)
        return total + _products(rows, self._over) if self._over else total


class RepresentationPlace:
    """The outputs of the trunk that all losses are computed from. See `Place`.

    Where a leaf lies on both sides, autograd cannot tell its two parts apart, and a hook of one of the tensors would
    act in both; then the pass that all tasks take together starts at the losses.

    Args:
        ranks: goes over ranks.
        step: the step.
        tensors: what this rank's losses were computed from.

    Attributes:
        under: the leaves that lead to it; what is trained among them counts as shared.

    Raises:
        ValueError: no loss depends on the representation, or a part of it on another one.
        RuntimeError: see `Graph`.
    """

    def __init__(self, ranks: Alone, step: Step, tensors: Sequence[Tensor]) -> None:
        self._ranks = ranks
        self._device = step.values.device
        above, met = leaves_until(step.held, tensors)
        at = [tensors[index] for index in met]
        if step.held and not met:
            raise ValueError(
                "No loss depends on representation. Give the very tensors that the losses were computed from, as the "
                "trunk returned them (of one compiled or DistributedDataParallel model, outputs do not do)."
            )
        below, entangled = leaves_until(at, at)
        if entangled:
            raise ValueError(
                f"Tensor {met[entangled[0]]} of representation is on the way from another one of its tensors to the "
                "trunk, so its gradient would count twice. Have the tasks start from aliases, "
                "representation = [z.view_as(z) for z in representation], and give those."
            )
        self.under = under = {leaf for row in below for leaf in row}
        self._at = [GradientEdge(tensor.grad_fn, tensor.output_nr) for tensor in at if tensor.grad_fn is not None]
        self.edges = [self._at for _ in step.held]
        self.above = [{leaf: None for leaf in row if leaf not in under} for row in above]
        self.apart, self.exclusive = _apart(step.held, self._at)
        self.joins_at_cut = not any(leaf in under for row in above for leaf in row) and not hooked(self._at)

    def leaves(self) -> Iterable[Tensor]:
        """See `Place`."""
        return ()

    def gramian(self, at_cut: Sequence[AtCut], rows: Sequence[Row]) -> Tensor:
        """See `Place`; every rank has its own samples' part of the representation."""
        if any(at_cut):
            products = gramian([[found.get(edge) for edge in self._at] for found in at_cut])
        else:
            products = torch.zeros(len(at_cut), len(at_cut), dtype=wide_dtype(self._device), device=self._device)
        return self._ranks.sum_(products)


def _apart(losses: Sequence[Tensor], stops: Sequence[GradientEdge]) -> tuple[list[bool], list[list[Node]]]:
    """Returns what `Place` has as `apart` and `own` of losses whose graphs are cut at the stops."""
    ends = {(stop.node, stop.output_nr) for stop in stops}
    last: dict[Node, int] = {}
    apart = [True for _ in losses]
    for index, loss in enumerate(losses):
        stack = [loss.grad_fn]
        while stack:
            node = stack.pop()
            if node is None or isinstance(node, AccumulateGrad) or last.get(node) == index:
                continue
            if node in last:
                apart[last[node]] = False
            last[node] = index
            stack += [child for child, number in node.next_functions if child and (child, number) not in ends]
    own: list[list[Node]] = [[] for _ in losses]
    for node, index in last.items():
        if not apart[index]:
            own[index].append(node)
    return apart, own


def _products(rows: Sequence[Row], leaves: Sequence[Tensor]) -> Tensor:
    """Returns the products `[K', K']` of the rows on some leaves."""
    columns = [compact([row.get(leaf) for row in rows])[0] for leaf in leaves]
    return gramian(list(zip(*columns, strict=True)))


def read_representation(representation: Representation, needed: bool) -> list[Tensor]:
    """Returns the tensors of the representation; `needed`: there are losses, so there has to be one.

    Raises:
        TypeError: it is something else.
        ValueError: there is none, or one has no graph.
    """
    if not isinstance(representation, Iterable):
        raise TypeError(f"representation must be a tensor or a sequence of tensors, found {representation!r}.")
    tensors = [representation] if isinstance(representation, Tensor) else list(representation)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"representation must be a tensor or a sequence of tensors, found {tensor!r} in it.")
        if tensor.grad_fn is None:
            raise ValueError(
                "representation must be what the trunk returned, with its graph; found a tensor that was detached, "
                "computed under torch.no_grad(), or computed from nothing that is trained."
            )
    if needed and not tensors:
        raise ValueError("representation is empty: give the tensors that the losses were computed from.")
    return tensors
