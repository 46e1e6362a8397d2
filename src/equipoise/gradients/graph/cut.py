"""Where the graphs of a step's losses merge: above it each task has its own graph, below it all go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from equipoise.gradients.graph.walk import AccumulateGrad, Graph


class Cut:
    """The boundary between what one loss alone reaches and what several reach.

    A backward pass can then be made in two parts, down to the cut and on from there. Not of every loss: where a leaf
    lies on both sides, or one edge of the cut below another, autograd cannot tell the parts apart; and a hook of a
    tensor at the cut that changes its gradient would be called in both. Such a loss is cut at its own output.

    Args:
        graph: the graphs of two or more losses.

    Attributes:
        edges: for each loss the edges at which its own graph ends, into nodes that other losses reach as well.
        above: for each loss the leaves that its own graph leads to without passing the cut.
        whole: the losses that are cut at their own output.
    """

    def __init__(self, graph: Graph) -> None:
        nodes = graph.nodes()
        tasks = dict.fromkeys(nodes, 0)  # bit k: loss k reaches the node
        for index, loss in enumerate(graph.losses):
            if loss.grad_fn is not None:
                tasks[loss.grad_fn] |= 1 << index
        for node in nodes:
            own = tasks[node]
            for child, _ in node.next_functions:
                if child is not None:
                    tasks[child] = tasks.get(child, 0) | own
        several = {node for node, own in tasks.items() if own & (own - 1)}
        edges: list[dict[GradientEdge, None]] = [{} for _ in graph.losses]
        above: list[dict[Tensor, None]] = [{} for _ in graph.losses]
        below: set[Tensor] = set()
        for node in nodes:
            if node in several:
                below.update(_variables(node))
            else:
                index = tasks[node].bit_length() - 1
                above[index].update(dict.fromkeys(_variables(node)))
                for child, number in node.next_functions:
                    if child in several and not isinstance(child, AccumulateGrad):
                        edges[index][GradientEdge(child, number)] = None
        entangled = _nested(nodes, edges)
        hooked = _hooked(list(dict.fromkeys(edge for row in edges for edge in row)))
        self.whole: list[int] = []
        for index, loss in enumerate(graph.losses):
            if loss.grad_fn is None:
                above[index] = {loss: None}
            elif (
                loss.grad_fn in several
                or index in entangled
                or any(leaf in below for leaf in above[index])
                or any(edge in hooked for edge in edges[index])
            ):
                self.whole.append(index)
                edges[index], above[index] = {GradientEdge(loss.grad_fn, loss.output_nr): None}, {}
        self.edges = [list(row) for row in edges]
        self.above = above


def _nested(nodes: Sequence[Node], edges: Sequence[Mapping[GradientEdge, None]]) -> set[int]:
    """Returns which losses have an edge below another one of theirs."""
    several = [index for index, row in enumerate(edges) if len(row) > 1]
    if not several:
        return set()
    bits = {node: 1 << i for i, node in enumerate(dict.fromkeys(e.node for k in several for e in edges[k]))}
    over: dict[Node, int] = {}  # which of these nodes lead to the node
    for node in nodes:
        mask = over.get(node, 0) | bits.get(node, 0)
        if mask:
            for child, _ in node.next_functions:
                if child is not None:
                    over[child] = over.get(child, 0) | mask
    return {
        index
        for index in several
        if any(over.get(edge.node, 0) & sum({bits[other.node] for other in edges[index]}) for edge in edges[index])
    }


def _variables(node: Node) -> list[Tensor]:
    """The leaves that the node's gradients go to directly; autograd skips what was frozen after the forward pass."""
    children = [child for child, _ in node.next_functions if isinstance(child, AccumulateGrad)]
    return [child.variable for child in children if child.variable.requires_grad]  # type: ignore[attr-defined]


def zeros_at(edge: GradientEdge) -> Tensor:
    """Returns a gradient of zeros for the edge, of one element in memory."""
    metadata = edge.node._input_metadata[edge.output_nr]
    return torch.zeros((), dtype=metadata.dtype, device=metadata.device).expand(tuple(metadata.shape))


def _hooked(edges: Sequence[GradientEdge]) -> set[GradientEdge]:
    """Returns the edges at which a hook of a tensor changes the gradients that arrive.

    A gradient of zeros sent there comes back as the very same tensor if there is none (and nothing comes from another
    of the edges: those are asked by themselves).
    """
    changed = _changed(edges)
    return {edge for edge in changed if len(edges) == 1 or _changed([edge])}


def _changed(edges: Sequence[GradientEdge]) -> list[GradientEdge]:
    """Returns the edges at which zeros do not arrive as they were sent."""
    if not edges:
        return []
    zeros = [zeros_at(edge) for edge in edges]
    back = torch.autograd.grad(edges, edges, zeros, retain_graph=True, allow_unused=True)
    return [edge for edge, zero, found in zip(edges, zeros, back, strict=True) if found is not zero]
