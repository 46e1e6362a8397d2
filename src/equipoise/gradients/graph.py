"""What the autograd graphs of the losses reach."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.autograd.graph import Node


def reached_leaves(losses: Sequence[Tensor]) -> list[list[Tensor]]:
    """Finds the leaf tensors that a backward pass of each loss would reach.

    Every node of the graphs is visited once, however many losses share it, so the cost is that of one walk
    through the trunk and the heads. Frozen and unused parameters are not reached; tied weights are one leaf.

    Args:
        losses: scalar tensors that require a gradient.

    Returns:
        For each loss its leaves, in one order common to all losses.
    """
    leaves: list[Tensor] = []
    masks: dict[Node, int] = {}  # bit i: leaf i is reached; holding the nodes keeps their identities distinct
    roots: list[int] = []
    for loss in losses:
        if loss.grad_fn is None:
            mask = 1 << len(leaves)
            leaves.append(loss)
        else:
            mask = _reach(loss.grad_fn, masks, leaves)
        roots.append(mask)
    return [[leaf for index, leaf in enumerate(leaves) if mask >> index & 1] for mask in roots]


def _reach(root: Node, masks: dict[Node, int], leaves: list[Tensor]) -> int:
    stack = [root]
    while stack:
        node = stack[-1]
        if node in masks:
            stack.pop()
            continue
        children = [child for child, _ in node.next_functions if child is not None]
        pending = [child for child in children if child not in masks]
        if pending:
            stack.extend(pending)
            continue
        stack.pop()
        mask = 0
        for child in children:
            mask |= masks[child]
        leaf = getattr(node, "variable", None)
        if leaf is not None:  # an AccumulateGrad node
            mask |= 1 << len(leaves)
            leaves.append(leaf)
        masks[node] = mask
    return masks[root]
