"""What the autograd graphs of the losses reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.checkpoint import CheckpointFunction

from equipoise.gradients.graph.compiled import check_repeatable, compiled_graph, is_certain, reached_inputs
from equipoise.gradients.graph.wrappers import handed_on, hands_on, refuse_flat, refuse_replicas

Point = tuple[Node, int]
"""A node, and which of its outputs where they do not all depend on the same: in a compiled graph, and where
DistributedDataParallel hands on a model's outputs. Otherwise 0."""

Edge = tuple[Node, int]
"""An output of a node, as `next_functions` names it."""

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
        self.every_leaf: list[Tensor] = []
        self._masks: dict[Point, int] = {}  # bit i: the point reaches leaf i; holding the nodes keeps them distinct
        masks = [self._add(loss) if loss.grad_fn is None else self._reach(loss) for loss in losses]
        self.leaves = [[leaf for index, leaf in enumerate(self.every_leaf) if mask >> index & 1] for mask in masks]

    def nodes(self) -> list[Node]:
        """Returns the nodes, each before those that its gradients go to."""
        if not self.apart:
            return [node for node, _ in reversed(self._masks)]
        return _sorted([loss.grad_fn for loss in self.losses if loss.grad_fn is not None])

    def _add(self, leaf: Tensor) -> int:
        if not leaf.requires_grad:
            return 0
        refuse_flat(leaf)
        self.every_leaf.append(leaf)
        return 1 << len(self.every_leaf) - 1

    def _reach(self, loss: Tensor) -> int:
        assert loss.grad_fn is not None
        masks = self._masks
        root = self._point(loss.grad_fn, loss.output_nr)
        stack = [root]
        while stack:
            point = stack[-1]
            if point in masks:
                stack.pop()
                continue
            node = point[0]
            if isinstance(node, AccumulateGrad):
                masks[point] = self._add(node.variable)  # type: ignore[attr-defined]
                continue
            children = self._children(*point)
            pending = [child for child in children if child not in masks]
            if pending:
                stack.extend(pending)
                continue
            stack.pop()
            mask = 0
            for child in children:
                mask |= masks[child]
            masks[point] = mask
        return masks[root]

    def _point(self, node: Node, output: int) -> Point:
        if (not self._together and compiled_graph(node) is not None) or hands_on(node):
            self.apart = True
            return node, output
        return node, 0

    def _children(self, node: Node, output: int) -> list[Point]:
        inputs = node.next_functions
        # No node that an `autograd.Function` did not make can be compiled, a checkpoint's or a wrapper's.
        if isinstance(node, BackwardCFunction):
            inputs = self._inputs(node, output)
        if self._stops:
            self.met.update(edge for edge in inputs if edge in self._stops)
            inputs = tuple(edge for edge in inputs if edge not in self._stops)
        return [
            self._point(child, number) if isinstance(child, BackwardCFunction) else (child, 0)
            for child, number in inputs
            if child is not None
        ]

    def _inputs(self, node: Node, output: int) -> tuple[tuple[Node | None, int], ...]:
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


def _sorted(roots: Sequence[Node]) -> list[Node]:
    """Returns what the roots lead to, each node before those that its gradients go to."""
    done: dict[Node, None] = {}
    stack = list(roots)
    while stack:
        node = stack[-1]
        pending = [child for child, _ in node.next_functions if child is not None and child not in done]
        if node in done or not pending:
            done.setdefault(stack.pop())
        else:
            stack.extend(pending)
    return list(reversed(done))
