"""What the autograd graphs of the losses reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.checkpoint import CheckpointFunction

from equipoise.gradients.graph.compiled import check_repeatable, compiled_graph, is_certain, reached_inputs
from equipoise.gradients.graph.wrappers import handed_on, hands_on, refuse_flat, refuse_replicas

Point = Node | tuple[Node, int]
"""A node, or one of its outputs where they do not all depend on the same: in a compiled graph, and where
DistributedDataParallel hands on a model's outputs."""

Edge = tuple[Node, int]
"""An output of a node, as `next_functions` names it."""

Inputs = Sequence[tuple[Any, int]]
"""Where the gradients of a point go: points, None where nothing is wanted, and the numbers of the outputs."""

AccumulateGrad: type[Node] = type(get_gradient_edge(torch.empty((), requires_grad=True, device="cpu")).node)
"""The class of the nodes that leaves are behind. (Any other node may have an attribute `variable`, too.)"""


class Graph:
    """The graphs of several losses, walked once.

    Every node is visited once, however many losses share it. Frozen and unused parameters are not reached, nor those
    that were frozen after the forward pass, which autograd skips; tied weights are one leaf.

    Args:
        losses: tensors that require a gradient.
        together: there is one backward pass for all losses, so that in compiled graphs all count as reaching the same.
        repeatable: the graphs have to allow several backward passes.
        stops: outputs of nodes at which a backward pass would end.

    Attributes:
        losses: the losses.
        every_leaf: the leaf tensors that any of them reaches.
        leaves: for each loss the leaf tensors that a backward pass of it would reach, in one order common to all.
        compiled: the graphs of `torch.compile` among them.
        apart: whether there is a node whose outputs do not all depend on the same.
        met: those of the stops that were reached.

    Raises:
        RuntimeError: the graphs do not allow it: a reentrant checkpoint hides what it reaches, or a compiled graph
            overwrites its buffers.
        ValueError: FullyShardedDataParallel or DataParallel is in them.
    """

    def __init__(
        self,
        losses: Sequence[Tensor],
        *,
        together: bool = False,
        repeatable: bool = True,
        stops: Sequence[Edge] = (),
    ) -> None:
        self.losses = losses
        self.apart = False
        self.compiled: set[Any] = set()
        self.met: set[Edge] = set()
        self._together, self._repeatable, self._stops = together, repeatable, frozenset(stops)
        self._leaves: dict[Node, Tensor] = {}
        roots = [self._point(_node(loss), loss.output_nr) for loss in losses]
        self._inputs = _sorted(roots, self._inputs_of)  # holding the nodes keeps them distinct
        self._masks = _masks(roots, self._inputs)
        self.every_leaf = list(self._leaves.values())
        self.leaves: list[list[Tensor]] = [[] for _ in losses]
        rows: dict[int, list[list[Tensor]]] = {}
        for node, leaf in self._leaves.items():
            mask = self._masks[node]
            if mask not in rows:
                rows[mask] = [self.leaves[index] for index in _bits(mask)]
            for row in rows[mask]:
                row.append(leaf)

    def by_node(self) -> tuple[Mapping[Any, Inputs], Mapping[Any, int]]:
        """Returns what there is of each node, which comes before those that its gradients go to.

        Returns:
            Node → its `next_functions`; and node → which losses reach it, the k-th by bit k. A node whose outputs do
            not all depend on the same counts as a whole.
        """
        if not self.apart:
            return self._inputs, self._masks
        roots = [_node(loss) for loss in self.losses]
        inputs = _sorted(roots, lambda node: node.next_functions)
        return inputs, _masks(roots, inputs)

    def _point(self, node: Node, output: int) -> Point:
        # No node that an `autograd.Function` did not make can be compiled, a checkpoint's or a wrapper's.
        if not isinstance(node, BackwardCFunction):
            return node
        if (not self._together and compiled_graph(node) is not None) or hands_on(node):
            self.apart = True
            return node, output
        return node

    def _inputs_of(self, point: Point) -> Inputs:
        if isinstance(point, AccumulateGrad):
            leaf = point.variable  # type: ignore[attr-defined]
            if leaf.requires_grad:
                refuse_flat(leaf)
                self._leaves[point] = leaf
            return ()
        node, output = point if isinstance(point, tuple) else (point, 0)
        inputs: Inputs = node.next_functions
        if isinstance(node, BackwardCFunction):
            inputs = self._depended_on(node, output)
        if self._stops:
            self.met.update(edge for edge in inputs if edge in self._stops)
            inputs = [edge for edge in inputs if edge not in self._stops]
        for child, _ in inputs:
            if isinstance(child, BackwardCFunction):
                return [(self._point(child, number), number) for child, number in inputs]
        return inputs

    def _depended_on(self, node: Node, output: int) -> tuple[tuple[Node | None, int], ...]:
        """The node's inputs that the output depends on, where the graph alone does not tell."""
        inputs = node.next_functions
        function = getattr(node, "_forward_cls", None)
        refuse_replicas(function)
        if function is CheckpointFunction:
            raise RuntimeError(
                "The model uses reentrant activation checkpointing, which hides what a loss reaches and allows no "
                "gradient of a single task. Pass use_reentrant=False to torch.utils.checkpoint.checkpoint."
            )
        if hands_on(node):
            inputs = handed_on(node, output)
        graph = compiled_graph(node)
        if graph is not None:
            self.compiled.add(graph)
            if self._repeatable:
                check_repeatable(graph)
            if not self._together:
                reached = reached_inputs(graph, node, output)
                inputs = tuple(edge for edge, here in zip(inputs, reached, strict=True) if here)
        return inputs


def reached_leaves(losses: Sequence[Tensor], *, together: bool = False, repeatable: bool = True) -> list[list[Tensor]]:
    """Returns for each loss the leaves that a backward pass of it would reach; arguments and errors as in `Graph`."""
    return Graph(losses, together=together, repeatable=repeatable).leaves


def leaves_until(outputs: Sequence[Tensor], stops: Sequence[Tensor]) -> tuple[list[list[Tensor]], list[int]]:
    """Finds the leaves that a backward pass of each output would reach if it ended at the tensors `stops`.

    Args:
        outputs: tensors that require a gradient.
        stops: tensors in their graphs, none a leaf. Where an output is one itself, the pass goes on.

    Returns:
        For each output its leaves, and the positions of the stops that were met; of one given twice, the first.

    Raises:
        RuntimeError: as in `Graph`.
    """
    edges: list[Edge] = [(stop.grad_fn, stop.output_nr) for stop in stops if stop.grad_fn is not None]
    graph = Graph(outputs, repeatable=False, stops=edges)
    return graph.leaves, [index for index, edge in enumerate(edges) if edge in graph.met and edges.index(edge) == index]


def untouched_leaves(losses: Sequence[Tensor]) -> tuple[list[Tensor], bool]:
    """Finds the leaves that get a gradient of zeros from one backward pass of all losses, though none depends on them.

    There are such leaves behind compiled graphs, say the heads of tasks that are left out. Errors as in `Graph`.

    Returns:
        The leaves, and whether it is certain that no loss depends on them.
    """
    graph = Graph(losses, together=True, repeatable=False)
    if not graph.compiled:
        return [], True
    certain = all(map(is_certain, graph.compiled))
    reached = {leaf for row in Graph(losses, repeatable=not certain).leaves for leaf in row}
    return [
        leaf for leaf in dict.fromkeys(leaf for row in graph.leaves for leaf in row) if leaf not in reached
    ], certain


def _bits(mask: int) -> Iterator[int]:
    while mask:
        yield (mask & -mask).bit_length() - 1
        mask &= mask - 1


def _node(tensor: Tensor) -> Node:
    return get_gradient_edge(tensor).node if tensor.grad_fn is None else tensor.grad_fn


def _sorted(roots: Sequence[Any], inputs_of: Callable[[Any], Inputs]) -> dict[Any, Inputs]:
    """Returns what the roots lead to, and where its gradients go: each before those."""
    found: dict[Any, Inputs] = {}
    finished: list[Any] = []
    stack = list(reversed(roots))
    while stack:
        point = stack.pop()
        if point is None:  # the one before has been followed to its end
            finished.append(stack.pop())
        elif point not in found:
            found[point] = inputs = inputs_of(point)
            if not inputs:
                finished.append(point)
                continue
            stack += point, None
            for child, _ in inputs:
                if child is not None and child not in found:
                    stack.append(child)
    return {point: found[point] for point in reversed(finished)}


def _masks(roots: Sequence[Any], inputs: Mapping[Any, Inputs]) -> dict[Any, int]:
    """Returns which roots lead to a point, the k-th by bit k; arguments as from `_sorted`."""
    masks = dict.fromkeys(inputs, 0)
    for index, root in enumerate(roots):
        masks[root] |= 1 << index
    for point, children in inputs.items():
        own = masks[point]
        for child, _ in children:
            if child is not None:
                masks[child] |= own
    return masks
