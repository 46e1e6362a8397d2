"""What acts on each task's gradient by itself, so that the tasks cannot go through the graph as one weighted sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.autograd.graph import GradientEdge

from equipoise.gradients.graph.cut import hooked
from equipoise.gradients.graph.walk import AccumulateGrad
from equipoise.gradients.layers.plan import Graph, has_node_hooks

LINEAR = frozenset(vars(torch._C._functions).values()) - {torch._C._functions.CopySlices}  # type: ignore[attr-defined]
"""PyTorch's own nodes, whose formulas are linear in the gradient; without the one that can hold somebody else's."""


def what_acts(roots: Sequence[GradientEdge]) -> str | None:
    """Names what can act on each task's gradient in another way than on the tasks' weighted sum.

    A backward pass of a weighted sum is the weighted sum of the tasks' passes as long as all that it goes through is
    linear, as PyTorch's own nodes are. An `autograd.Function` need not be, nor a hook; and a hook can keep what it is
    shown. Hooks on leaves and nodes can be seen. Those on tensors in the graph are in none of Python's hands: each edge
    is sent zeros, which come back as they are, and are let go, if there is none (see `hooked`).

    Args:
        roots: where the tasks' graphs merge.

    Returns:
        What was found first; None: nothing.
    """
    graph = Graph(roots, ())
    edges = dict.fromkeys(roots)
    for node in graph.nodes:
        if isinstance(node, AccumulateGrad):
            if node.variable._backward_hooks:  # type: ignore[attr-defined]
                return "a parameter has a hook"
        elif type(node) not in LINEAR:
            return f"{type(node).__name__} need not be linear"
        elif has_node_hooks(node):
            return "a node of the graph has a hook"
        edges |= {
            GradientEdge(child, number): None
            for child, number in node.next_functions
            if child is not None and not isinstance(child, AccumulateGrad)
        }
    return "a tensor of the trunk has a hook" if any(hooked([edge]) for edge in edges) else None
