"""Where the graphs of a step's losses merge: above it each task has its own graph, below it all go together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from equipoise.gradients.graph.walk import AccumulateGrad, Graph


class Cut:
    """The boundary between what one loss alone reaches and what several reach.

    Args:
        graph: the graphs of two or more losses.

    Attributes:
        edges: for each loss the edges at which its own graph ends, into nodes that other losses reach as well. Its own
            output, where another loss is computed from it.
        above: for each loss the leaves that its own graph leads to without passing the cut.
        usable: whether a backward pass can be made in two parts, down to the cut and from there. Not where a leaf lies
            on both sides, for autograd cannot tell its two parts apart; nor where a hook of a tensor at the cut changes
            its gradient, for it would be called in both parts.
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
        for index, loss in enumerate(graph.losses):
            if loss.grad_fn is None:
                above[index][loss] = None
            elif loss.grad_fn in several:
                edges[index][GradientEdge(loss.grad_fn, loss.output_nr)] = None
        for node in nodes:
            if node in several:
                below.update(_variables(node))
            else:
                index = tasks[node].bit_length() - 1
                above[index].update(dict.fromkeys(_variables(node)))
                for child, number in node.next_functions:
                    if child in several and not isinstance(child, AccumulateGrad):
                        edges[index][GradientEdge(child, number)] = None
        self.edges = [list(row) for row in edges]
        self.above = [list(row) for row in above]
        self.usable = not any(leaf in below for row in above for leaf in row) and not _hooked(
            list(dict.fromkeys(edge for row in self.edges for edge in row))
        )


def _variables(node: Node) -> list[Tensor]:
    """The leaves that the node's gradients go to directly."""
    return [child.variable for child, _ in node.next_functions if isinstance(child, AccumulateGrad)]  # type: ignore[attr-defined]


def zeros_at(edge: GradientEdge) -> Tensor:
    """Returns a gradient of zeros for the edge, of one element in memory."""
    metadata = edge.node._input_metadata[edge.output_nr]
    return torch.zeros((), dtype=metadata.dtype, device=metadata.device).expand(tuple(metadata.shape))


def _hooked(edges: Sequence[GradientEdge]) -> bool:
    """Whether a hook of a tensor changes the gradients that arrive at one of the edges.

    A gradient of zeros sent there comes back as the very same tensor if there is none (and nothing comes from another
    of the edges: those are asked by themselves).
    """
    changed = _changed(edges)
    return any(_changed([edge]) for edge in changed) if len(edges) > 1 else bool(changed)


def _changed(edges: Sequence[GradientEdge]) -> list[GradientEdge]:
    """Returns the edges at which zeros do not arrive as they were sent."""
    if not edges:
        return []
    zeros = [zeros_at(edge) for edge in edges]
    back = torch.autograd.grad(edges, edges, zeros, retain_graph=True, allow_unused=True)
    return [edge for edge, zero, found in zip(edges, zeros, back, strict=True) if found is not zero]
