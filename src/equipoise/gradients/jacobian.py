"""Task gradients: the rows of the Jacobian, one backward pass a task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from equipoise._checks import check_losses
from equipoise.gradients.batching import Together, Unbatchable
from equipoise.gradients.graph.cut import Cut
from equipoise.gradients.graph.releasing import release
from equipoise.gradients.graph.walk import Graph
from equipoise.gradients.shared import parameter_list

if TYPE_CHECKING:
    from equipoise.gradients.step import Step

WHOLE = "a task's graph is not apart above what the tasks share (a tied weight, a hook)"
"""Why a loss takes its whole graph by itself."""

Row = dict[Tensor, Tensor]
"""Leaf → gradient; a leaf that is not reached is left out. Gradients are autograd's: they are read, and not changed."""

TaskRows = dict[str, Row]
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


def rows_of(step: Step, wanted: Sequence[Sequence[Tensor]], weights: Sequence[Tensor]) -> Iterator[Row]:
    """Computes `c_k · ∂L_k/∂leaf` loss after loss: down to the cut one backward pass each, and below it as decided.

    Each pass releases what no later one needs.

    Args:
        step: the losses that this rank has, where they merge, and how many tasks go on from there at once.
        wanted: for each loss the leaves wanted, all of which it reaches.
        weights: `c_k`, 0-dim, one a loss.
    """
    if len(step.held) < 2:
        step.batching.reason = "one task"
        for loss, leaves, weight in zip(step.held, wanted, weights, strict=True):
            yield gradients_of([loss], leaves, [weight], step.retain_graph)
        return
    size, trial = step.batching.begin(step.values.device, lambda: _together(step, wanted))
    yield from _at_once(step, wanted, weights, size) if size > 1 else _one_by_one(step, wanted, weights)
    if trial is not None:
        trial.end()


def _together(step: Step, wanted: Sequence[Sequence[Tensor]]) -> Together:
    """Returns what there is to take through the graph together."""
    cut = step.cut
    assert cut is not None
    below = [_divided(leaves, above)[1] for leaves, above in zip(wanted, cut.above, strict=True)]
    tasks = [k for k, leaves in enumerate(below) if leaves and k not in cut.uncut]
    shared = {leaf for k in tasks for leaf in below[k]}
    against = None
    if step.graph.compiled:
        against = "torch.compile made the graph"
    elif len(tasks) < 2:
        against = WHOLE if cut.uncut else "no two tasks share a part of the graph"
    row_bytes = sum(leaf.numel() * leaf.element_size() for leaf in shared)
    return Together(len(tasks), row_bytes, against, any(leaf._backward_hooks for leaf in shared))


def _one_by_one(step: Step, wanted: Sequence[Sequence[Tensor]], weights: Sequence[Tensor]) -> Iterator[Row]:
    cut = step.cut_in_turn
    assert cut is not None
    for index, (loss, leaves, weight) in enumerate(zip(step.held, wanted, weights, strict=True)):
        yield _in_two_parts(loss, leaves, weight, cut, index, step.retain_graph)


def _at_once(step: Step, wanted: Sequence[Sequence[Tensor]], weights: Sequence[Tensor], size: int) -> Iterator[Row]:
    """As `_one_by_one`, with `size` tasks at once below the cut. A loss that is not cut goes by itself."""
    cut = step.cut
    assert cut is not None
    parts = [_divided(leaves, above) for leaves, above in zip(wanted, cut.above, strict=True)]
    below = [under for _, under in parts]
    found = [
        to_cut(loss, above, weight, edges if under else [], step.retain_graph)
        for loss, (above, under), weight, edges in zip(step.held, parts, weights, cut.edges, strict=True)
    ]
    kinds = frozenset(node.name() for node in step.graph.by_node()[0])
    batchable = [k for k, (at_cut, _) in enumerate(found) if at_cut and k not in cut.uncut]
    chunks = [batchable[i : i + size] for i in range(0, len(batchable), size)]
    chunks += [[k] for k in cut.uncut if found[k][0]]
    known = step.batching.knows(kinds)
    chunk: list[int] = []
    while chunks:
        chunk, *chunks = chunks
        retain = step.retain_graph or bool(chunks)
        if len(chunk) == 1:
            at_cut, row = found[chunk[0]]
            row.update(gradients_of(list(at_cut), below[chunk[0]], list(at_cut.values()), retain))
            continue
        edges, outer = stacked_at([found[k][0] for k in chunk])
        leaves = list(dict.fromkeys(leaf for k in chunk for leaf in below[k]))
        try:
            stacks = step.batching.run(edges, leaves, outer, retain, kinds)
        except Unbatchable:
            chunks = [[k] for some in (chunk, *chunks) for k in some]
            continue
        rows = {leaf: stack.unbind() for leaf, stack in stacks.items()}
        for place, k in enumerate(chunk):
            found[k][1].update({leaf: rows[leaf][place] for leaf in below[k] if leaf in rows})
    if not step.retain_graph:
        release(cut.not_reached_by(chunk if known else []))
    while found:
        yield found.pop(0)[1]


def stacked_at(starts: Sequence[Mapping[GradientEdge, Tensor]]) -> tuple[list[GradientEdge], list[Tensor]]:
    """Returns the edges at which any of n tasks starts, and for each edge the tasks' gradients there `[n, *shape]`."""
    stacks: dict[GradientEdge, Tensor] = {}
    owners: dict[GradientEdge, list[int]] = {}
    for place, at in enumerate(starts):
        for edge in at:
            owners.setdefault(edge, []).append(place)
    for edge, places in owners.items():
        gradients = [starts[place][edge] for place in places]
        if len(places) == len(starts):
            stacks[edge] = torch.stack(gradients)
        else:  # zeros at once for the others, of which there can be hundreds
            stacks[edge] = gradients[0].new_zeros(len(starts), *gradients[0].shape)
            for place, gradient in zip(places, gradients, strict=True):
                stacks[edge][place] = gradient
    return list(stacks), list(stacks.values())


def _in_two_parts(
    loss: Tensor, leaves: Sequence[Tensor], weight: Tensor, cut: Cut, index: int, retain_graph: bool
) -> Row:
    """Goes back from the loss numbered `index` to the leaves, keeping what later losses go through."""
    above, below = _divided(leaves, cut.above[index])
    at_cut, row = to_cut(loss, above, weight, cut.edges[index] if below else [], retain_graph)
    row |= gradients_of(list(at_cut), below, list(at_cut.values()), retain_graph=True)
    if not retain_graph:
        release(cut.below[index])
    return row


def _divided(leaves: Sequence[Tensor], above: Mapping[Tensor, None]) -> tuple[list[Tensor], list[Tensor]]:
    """Returns which of the leaves lie above the cut, and which below it."""
    known = set(map(id, above))  # a tensor's own hash is slow
    return [leaf for leaf in leaves if id(leaf) in known], [leaf for leaf in leaves if id(leaf) not in known]


def to_cut(
    loss: Tensor,
    above: Sequence[Tensor],
    weight: Tensor,
    edges: Sequence[GradientEdge],
    retain_graph: bool,
) -> tuple[dict[GradientEdge, Tensor], Row]:
    """Goes back from a loss to the edges of its cut.

    Args:
        loss: the loss.
        above: the leaves wanted that it leads to without passing the cut.
        weight: of the loss.
        edges: where its graph is cut.
        retain_graph: keep the graph above the cut.

    Returns:
        Edge → gradient, where there is one; and the row of the leaves.
    """
    if loss.grad_fn is not None and list(edges) == [GradientEdge(loss.grad_fn, loss.output_nr)]:
        return {edges[0]: weight}, {}  # another loss is computed from this one
    if not edges and not above:
        return {}, {}
    inputs: Any = [*edges, *above]
    found = torch.autograd.grad(loss, inputs, weight, retain_graph=retain_graph, allow_unused=True)
    at_edges = {edge: gradient for edge, gradient in zip(edges, found, strict=False) if gradient is not None}
    return at_edges, _row(above, found[len(edges) :])


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
