"""What the autograd graphs of the losses reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node
from torch.utils.checkpoint import CheckpointFunction

from equipoise.gradients.compiled import check_repeatable, compiled_graph, is_certain, reached_inputs
from equipoise.gradients.wrappers import handed_on, hands_on

Point = tuple[Node, int]
"""A node, and which of its outputs where they do not all depend on the same: in a compiled graph, and where
DistributedDataParallel hands on a model's outputs. Otherwise 0."""

Edge = tuple[Node | None, int]
"""What a node's input is: an output of another node, as `next_functions` names it; None for what needs no gradient."""


def reached_leaves(losses: Sequence[Tensor], *, together: bool = False, repeatable: bool = True) -> list[list[Tensor]]:
    """Finds the leaf tensors that a backward pass of each loss would reach.

    Every node of the graphs is visited once, however many losses share it, so the cost is that of one walk
    through the trunk and the heads. Frozen and unused parameters are not reached; tied weights are one leaf.

    Args:
        losses: scalar tensors that require a gradient.
        together: there is one backward pass for all losses, so that in compiled graphs all count as reaching the same.
        repeatable: the graphs have to allow several backward passes.

    Returns:
        For each loss its leaves, in one order common to all losses.

    Raises:
        RuntimeError: the graphs do not allow it: a reentrant checkpoint hides what it reaches, or a compiled graph
            overwrites its buffers.
    """
    return _Walk(together, repeatable).leaves_of(losses)


def leaves_until(outputs: Sequence[Tensor], stops: Sequence[Tensor]) -> tuple[list[list[Tensor]], list[int]]:
    """Finds the leaves that a backward pass of each output would reach if it ended at the tensors `stops`.

    Args:
        outputs: tensors that require a gradient.
        stops: tensors in their graphs. Where an output is one itself, the pass goes on.

    Returns:
        For each output its leaves, and the positions of the stops that were met; of one given twice, the first.

    Raises:
        RuntimeError: as in `reached_leaves`.
    """
    edges: list[Edge] = [(stop.grad_fn, stop.output_nr) for stop in stops]
    walk = _Walk(together=False, repeatable=False, stops=edges)
    rows = walk.leaves_of(outputs)
    return rows, [index for index, edge in enumerate(edges) if edge in walk.met and edges.index(edge) == index]


def untouched_leaves(losses: Sequence[Tensor]) -> tuple[list[Tensor], bool]:
    """Finds the leaves that get a gradient of zeros from one backward pass of all losses, though none depends on them.

    There are such leaves behind compiled graphs, say the heads of tasks that are left out. Arguments and errors as in
    `reached_leaves`.

    Returns:
        The leaves, and whether it is certain that no loss depends on them.
    """
    walk = _Walk(together=True, repeatable=False)
    candidates = [leaf for row in walk.leaves_of(losses) for leaf in row]
    if not walk.compiled:
        return [], True
    certain = all(map(is_certain, walk.compiled))
    reached = {leaf for row in reached_leaves(losses, repeatable=not certain) for leaf in row}
    return [leaf for leaf in dict.fromkeys(candidates) if leaf not in reached], certain


class _Walk:
    """A depth-first walk; for every point, bit i of its mask says whether it reaches leaf i."""

    def __init__(self, together: bool, repeatable: bool, stops: Sequence[Edge] = ()) -> None:
        self.together = together
        self.repeatable = repeatable
        self.compiled: set[Any] = set()
        self.stops = frozenset(stops)
        self.met: set[Edge] = set()
        self.leaves: list[Tensor] = []
        self.masks: dict[Point, int] = {}  # holding the nodes keeps their identities distinct

    def leaves_of(self, losses: Sequence[Tensor]) -> list[list[Tensor]]:
        masks = [self._add(loss) if loss.grad_fn is None else self._reach(loss) for loss in losses]
        return [[leaf for index, leaf in enumerate(self.leaves) if mask >> index & 1] for mask in masks]

    def _add(self, leaf: Tensor) -> int:
        self.leaves.append(leaf)
        return 1 << len(self.leaves) - 1

    def _reach(self, loss: Tensor) -> int:
        assert loss.grad_fn is not None
        root = self._point(loss.grad_fn, loss.output_nr)
        stack = [root]
        while stack:
            point = stack[-1]
            if point in self.masks:
                stack.pop()
                continue
            children = self._children(*point)
            pending = [child for child in children if child not in self.masks]
            if pending:
                stack.extend(pending)
                continue
            stack.pop()
            mask = 0
            for child in children:
                mask |= self.masks[child]
            leaf = getattr(point[0], "variable", None)
            if leaf is not None:  # an AccumulateGrad node
                mask |= self._add(leaf)
            self.masks[point] = mask
        return self.masks[root]

    def _point(self, node: Node, output: int) -> Point:
        apart = (not self.together and compiled_graph(node) is not None) or hands_on(node)
        return (node, output if apart else 0)

    def _children(self, node: Node, output: int) -> list[Point]:
        inputs = node.next_functions
        if _made_in_python(node):
            inputs = self._inputs(node, output)
        if self.stops:
            self.met.update(edge for edge in inputs if edge in self.stops)
            inputs = tuple(edge for edge in inputs if edge not in self.stops)
        return [
            self._point(child, number) if _made_in_python(child) else (child, 0)
            for child, number in inputs
            if child is not None
        ]

    def _inputs(self, node: Node, output: int) -> tuple[Edge, ...]:
        """The node's inputs that the output depends on, where the graph alone does not tell."""
        inputs = node.next_functions
        if getattr(node, "_forward_cls", None) is CheckpointFunction:
            raise RuntimeError(
                "The model uses reentrant activation checkpointing, which hides what a loss reaches and allows no "
                "gradient of a single task. Pass use_reentrant=False to torch.utils.checkpoint.checkpoint."
            )
        if hands_on(node):
            inputs = handed_on(node, output)
        graph = compiled_graph(node)
        if graph is not None:
            self.compiled.add(graph)
            if self.repeatable:
                check_repeatable(graph)
            if not self.together:
                reached = reached_inputs(graph, node, output)
                inputs = tuple(edge for edge, here in zip(inputs, reached, strict=True) if here)
        return inputs


def _made_in_python(node: Node) -> bool:
    """Whether an `autograd.Function` made the node: no other can be compiled, a checkpoint or a wrapper's."""
    return isinstance(node, BackwardCFunction)
