"""Task gradients: the rows of the Jacobian, one backward pass a task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from equipoise._checks import check_losses
from equipoise.gradients.graph.cut import Cut
from equipoise.gradients.graph.walk import Graph
from equipoise.gradients.shared import parameter_list

Row = dict[Tensor, Tensor]
"""Leaf → gradient; a leaf that is not reached is left out. Gradients are autograd's: they are read, and not changed."""

Rows = dict[str, Row]
"""Task → its row."""


def task_gradients(
    losses: Mapping[str, Tensor], params: nn.Module | Iterable[Tensor], *, retain_graph: bool = False
) -> dict[str, tuple[Tensor | None, ...]]:
    """Computes the gradient of every loss with respect to `params`, one backward pass a task.

    Args:
        losses: task → scalar loss.
        params: tensors in the losses' graphs, parameters as a rule; or a module, which stands for its parameters.
        retain_graph: keep the graph for another backward pass.

    Returns:
        Task → one gradient a parameter, of the parameter's shape; None where the task does not reach it or it is
        frozen.

    Raises:
        TypeError: a loss is not a tensor; `params` is a single tensor, or neither a module nor an iterable.
        ValueError: there is no loss, or one is not a scalar or has no graph; `params` holds something else.
        RuntimeError: the graph allows no several backward passes (see `Graph`).

    Example:
        >>> import torch, equipoise as eq
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> eq.task_gradients({"sum": w.sum(), "square": (w**2).sum()}, [w])
        {'sum': (tensor([1., 1.]),), 'square': (tensor([2., 4.]),)}
    """
    check_losses(losses, tasks=None)
    inputs = parameter_list("params", params)
    last = len(losses) - 1
    if last or retain_graph:
        Graph(list(losses.values()), together=True)
    trained = [index for index, parameter in enumerate(inputs) if parameter.requires_grad]
    gradients: dict[str, tuple[Tensor | None, ...]] = {}
    for index, (task, loss) in enumerate(losses.items()):
        row: list[Tensor | None] = [None] * len(inputs)
        if trained:
            keep = retain_graph or index < last
            wanted = [inputs[place] for place in trained]
            found = torch.autograd.grad(loss, wanted, retain_graph=keep, allow_unused=True)
            for place, gradient in zip(trained, found, strict=True):
                row[place] = gradient
        gradients[task] = tuple(row)
    return gradients


def rows_of(
    losses: Sequence[Tensor],
    wanted: Sequence[Sequence[Tensor]],
    weights: Sequence[Tensor],
    cut: Cut | None,
    retain_graph: bool,
) -> Iterator[Row]:
    """Computes `c_k · ∂L_k/∂leaf` loss after loss, one backward pass each.

    With a cut each pass is made in two parts, and what is above it is freed as its part ends.

    Args:
        losses: the losses.
        wanted: for each loss the leaves wanted, all of which it reaches.
        weights: `c_k`, 0-dim, one a loss.
        cut: where their graphs merge; None: they are not cut.
        retain_graph: keep the graphs.
    """
    if cut is None:
        last = len(losses) - 1
        for index, (loss, leaves, weight) in enumerate(zip(losses, wanted, weights, strict=True)):
            yield gradients_of([loss], leaves, [weight], retain_graph or index < last)
        return
    below = [[leaf for leaf in leaves if leaf not in cut.above[k]] for k, leaves in enumerate(wanted)]
    last = max((index for index, leaves in enumerate(below) if leaves), default=-1)
    for index, leaves in enumerate(wanted):
        edges = cut.edges[index] if below[index] else []
        at_cut, row = to_cut(losses[index], leaves, weights[index], edges, cut.above[index], retain_graph)
        roots = list(at_cut)
        yield row | gradients_of(roots, below[index], list(at_cut.values()), retain_graph or index < last)


def to_cut(
    loss: Tensor,
    leaves: Sequence[Tensor],
    weight: Tensor,
    edges: Sequence[GradientEdge],
    above: Mapping[Tensor, None],
    retain_graph: bool,
) -> tuple[dict[GradientEdge, Tensor], Row]:
    """Goes back from a loss to the edges of its cut.

    Args:
        loss: the loss.
        leaves: the leaves wanted.
        weight: of the loss.
        edges: where its graph is cut.
        above: the leaves that it leads to without passing them.
        retain_graph: keep the graph above the cut.

    Returns:
        Edge → gradient, where there is one; and the row of those leaves that lie above.
    """
    if loss.grad_fn is not None and list(edges) == [GradientEdge(loss.grad_fn, loss.output_nr)]:
        return {edges[0]: weight}, {}  # another loss is computed from this one
    wanted = [leaf for leaf in leaves if leaf in above]
    if not edges and not wanted:
        return {}, {}
    inputs: Any = [*edges, *wanted]
    found = torch.autograd.grad(loss, inputs, weight, retain_graph=retain_graph, allow_unused=True)
    at_edges = {edge: gradient for edge, gradient in zip(edges, found, strict=False) if gradient is not None}
    return at_edges, _row(wanted, found[len(edges) :])


def gradients_of(
    outputs: Sequence[Tensor] | Sequence[GradientEdge],
    leaves: Sequence[Tensor],
    weights: Sequence[Tensor],
    retain_graph: bool,
) -> Row:
    """Computes `Σ weight · ∂output/∂leaf` in one backward pass."""
    if not outputs or not leaves:
        return {}
    return _row(leaves, torch.autograd.grad(outputs, leaves, weights, retain_graph=retain_graph, allow_unused=True))


def _row(leaves: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Row:
    return {leaf: gradient for leaf, gradient in zip(leaves, gradients, strict=True) if gradient is not None}
