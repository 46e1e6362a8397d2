"""Where the graph of each loss meets those of others: above it the loss is alone, below it are the others, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node
from torch.utils._python_dispatch import TorchDispatchMode

from equipoise.gradients.graph.walk import AccumulateGrad, Graph, Inputs


class Cut:
    """The boundary, for each loss, between what it alone reaches and what other losses reach as well.

    A backward pass can then be made in two parts, down to the cut and on from there. Not of every loss: where a leaf
    lies on both sides, or one edge of the cut below another, autograd cannot tell the parts apart; and a hook of a
    tensor at the cut would act in both. Such a loss is cut at its own output, as is one that has nothing of its own.

    Args:
        graph: the graphs of two or more losses.
        in_turn: only later losses count as others. Of backward passes one after the other, each can then release what
            lies above its cut, and so what it is the last to go through. The last loss is not cut.

    Attributes:
        edges: for each loss the edges at which its own graph ends, into nodes that other losses reach as well.
        above: for each loss the leaves that its own graph leads to without passing the cut.
        uncut: the losses that are cut at their own output, with nodes of their own below it.
        below: for each loss the nodes of its own graph that lie below the cut, where it is cut at its own output.
    """

    def __init__(self, graph: Graph, *, in_turn: bool = False) -> None:
        inputs, tasks = graph.by_node()
        others = [-(2 << index) if in_turn else ~(1 << index) for index in range(len(graph.losses))]
        edges: list[dict[GradientEdge, None]] = [{} for _ in graph.losses]
        above: list[dict[Node, Tensor]] = [{} for _ in graph.losses]  # by their nodes: a tensor's own hash is slow
        nodes_above: list[list[Node]] = [[] for _ in graph.losses]
        below: dict[Node, int] = {}  # bit k: below the cut of loss k
        for node, children in inputs.items():
            own = tasks[node]
            index = own.bit_length() - 1
            alone = not own & others[index]
            if alone:
                nodes_above[index].append(node)
                own ^= 1 << index
            for child, number in children:
                if isinstance(child, AccumulateGrad):
                    leaf = child.variable  # type: ignore[attr-defined]
                    if leaf.requires_grad:  # autograd skips what was frozen after the forward pass
                        below[child] = below.get(child, 0) | own
                        if alone:
                            above[index][child] = leaf
                elif alone and child is not None and tasks[child] & others[index]:
                    edges[index][GradientEdge(child, number)] = None
        entangled = _nested(inputs, edges)
        changed = hooked(list(dict.fromkeys(edge for row in edges for edge in row)))
        self.below: list[list[Node]] = [[] for _ in graph.losses]
        self.uncut: list[int] = []
        self.above: list[dict[Tensor, None]] = [{} for _ in graph.losses]
        for index, loss in enumerate(graph.losses):
            if loss.grad_fn is None:
                self.above[index] = {loss: None}
            elif (
                tasks[loss.grad_fn] & others[index]
                or index in entangled
                or any(below[leaf] >> index & 1 for leaf in above[index])
                or (changed and any(edge in changed for edge in edges[index]))
            ):
                if nodes_above[index]:
                    self.uncut.append(index)
                edges[index] = {GradientEdge(loss.grad_fn, loss.output_nr): None}
                self.below[index] = nodes_above[index]
            else:
                self.above[index] = dict.fromkeys(above[index].values())
        self.edges = [list(row) for row in edges]
        self._tasks = tasks

    def not_reached_by(self, losses: Sequence[int]) -> list[Node]:
        """Returns the nodes below the cut, or of losses that are not cut, that none of these losses reaches."""
        mask = sum(1 << index for index in losses)
        uncut = {1 << index for index in self.uncut}
        return [node for node, own in self._tasks.items() if not own & mask and (own & (own - 1) or own in uncut)]


def _nested(inputs: Mapping[Node, Inputs], edges: Sequence[Mapping[GradientEdge, None]]) -> set[int]:
    """Returns which losses have an edge below another one of theirs; `inputs`: as from `Graph.by_node`."""
    several = [index for index, row in enumerate(edges) if len(row) > 1]
    if not several:
        return set()
    bits = {node: 1 << i for i, node in enumerate(dict.fromkeys(e.node for k in several for e in edges[k]))}
    over: dict[Node, int] = {}  # which of these nodes lead to the node
    for node, children in inputs.items():
        mask = over.get(node, 0) | bits.get(node, 0)
        if mask:
            for child, _ in children:
                if child is not None:
                    over[child] = over.get(child, 0) | mask
    return {
        index
        for index in several
        if any(over.get(edge.node, 0) & sum({bits[other.node] for other in edges[index]}) for edge in edges[index])
    }


def zeros_at(edge: GradientEdge) -> Tensor:
    """Returns a gradient of zeros for the edge, of one element in memory."""
    metadata = edge.node._input_metadata[edge.output_nr]
    return torch.zeros((), dtype=metadata.dtype, device=metadata.device).expand(tuple(metadata.shape))


def hooked(edges: Sequence[GradientEdge]) -> set[GradientEdge]:
    """Returns the edges at which a hook of a tensor computes with the gradients that arrive, or keeps them.

    So does `retain_grad`. A gradient of zeros sent there comes back as the very same tensor, nothing is computed, and
    its memory is let go, if there is none (and nothing comes from another of the edges: those are asked by themselves).
    """
    if not edges or not _computes(edges):
        return set()
    return {edge for edge in edges if len(edges) == 1 or _computes([edge])}


def _computes(edges: Sequence[GradientEdge]) -> bool:
    """Whether zeros arrive otherwise than sent, an operator runs on the way, or a hook refuses or keeps them.

    They require a gradient, so that NumPy refuses their memory, where no operator would be seen.
    """
    zeros = [zeros_at(edge).requires_grad_() for edge in edges]
    memory = [ref(zero.untyped_storage()) for zero in zeros]
    operators = _Operators()  # type: ignore[no-untyped-call]
    try:
        with operators:
            back = torch.autograd.grad(edges, edges, zeros, retain_graph=True, allow_unused=True)
    except Exception:  # in place, say, which these zeros do not allow
        return True
    if operators.ran or any(found is not zero for zero, found in zip(zeros, back, strict=True)):
        return True
    del zeros, back
    return any(storage() is not None for storage in memory)


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether an operator of PyTorch runs."""

    ran = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Is called in place of the operator."""
        self.ran = True
        return func(*args, **(kwargs or {}))
