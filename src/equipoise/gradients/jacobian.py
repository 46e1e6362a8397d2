"""Task gradients: the rows of the Jacobian, one backward pass a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from equipoise._checks import check_losses
from equipoise.gradients.batch import Batch
from equipoise.gradients.graph import reached_leaves
from equipoise.gradients.shared import parameter_list

Rows = dict[str, dict[Tensor, Tensor]]
"""Task → leaf → gradient; a leaf that a task does not reach is left out."""


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
        RuntimeError: the graph allows no several backward passes (see `reached_leaves`).

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
        reached_leaves(list(losses.values()), together=True)
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


def task_rows(
    batch: Batch,
    leaves: Sequence[Sequence[Tensor]],
    coefficients: Tensor,
    retain_graph: bool,
    finish: Callable[[dict[Tensor, Tensor]], dict[Tensor, Tensor]] | None = None,
) -> Rows:
    """Computes `c_k · ∂L_k/∂leaf` for the leaves asked of each task, one backward pass a task.

    Args:
        batch: the K' tasks present.
        leaves: for each of them the leaf tensors wanted.
        coefficients: `c_k` `[K']`.
        retain_graph: keep the graph after the last pass.
        finish: takes each row as soon as its backward pass is done, and returns what to keep of it.
    """
    rows = {}
    weights = iter(batch.weights(coefficients))
    left = len(batch.graphs)
    for task, loss, wanted in zip(batch.tasks, batch.losses, leaves, strict=True):
        row: dict[Tensor, Tensor] = {}
        if loss is not None:
            left -= 1
            weight = next(weights)
            keep = retain_graph or left > 0
            if wanted:
                gradients = torch.autograd.grad(loss, wanted, weight, retain_graph=keep, allow_unused=True)
                row = owned(wanted, gradients, [weight])
        if batch.shares is not None:
            row = completed(row, wanted)
        rows[task] = row if finish is None else finish(row)
    return rows


def joint_row(batch: Batch, leaves: Sequence[Tensor], coefficients: Tensor, retain_graph: bool) -> dict[Tensor, Tensor]:
    """Computes `Σ_k c_k · ∂L_k/∂leaf` in one backward pass; arguments as in `task_rows`."""
    row: dict[Tensor, Tensor] = {}
    if batch.graphs:
        weights = batch.weights(coefficients)
        gradients = torch.autograd.grad(batch.graphs, leaves, weights, retain_graph=retain_graph, allow_unused=True)
        row = owned(leaves, gradients, weights)
    return row if batch.shares is None else completed(row, leaves)


def rows_by_hooks(batch: Batch, leaves: Iterable[Tensor], coefficients: Tensor, retain_graph: bool) -> Rows:
    """Computes task → leaf → gradient by backward passes that write `.grad`, for FSDP gives no other way.

    Its graphs hold the gathered parameters, and it is at the end of a backward pass that it averages their gradients
    over the ranks into the sharded parameters' `.grad`. That is taken from there, and what was there is put back.
    Arguments as in `task_rows`; `leaves` is what the losses can reach: sharded parameters, and others.
    """
    before = {leaf: leaf.grad for leaf in leaves}
    last = len(batch.tasks) - 1
    rows = {}
    try:
        for index, (task, weight) in enumerate(zip(batch.tasks, batch.weights(coefficients), strict=True)):
            for leaf in before:
                leaf.grad = None
            torch.autograd.backward(batch.graphs[index], weight, retain_graph=retain_graph or index < last)
            rows[task] = {leaf: leaf.grad for leaf in before if leaf.grad is not None}
    finally:
        for leaf, gradient in before.items():
            leaf.grad = gradient
    return rows


def completed(row: dict[Tensor, Tensor], leaves: Iterable[Tensor]) -> dict[Tensor, Tensor]:
    """Adds zeros for the leaves that only other ranks' losses reach."""
    return {leaf: row[leaf] if leaf in row else torch.zeros_like(leaf, requires_grad=False) for leaf in leaves}


def owned(
    leaves: Sequence[Tensor], gradients: Sequence[Tensor | None], outer: Sequence[Tensor] = ()
) -> dict[Tensor, Tensor]:
    """Makes the gradients dense, laid out like their leaf, and sharing memory with nothing else.

    So they can be changed in place or become `.grad`, as PyTorch's own accumulation guarantees.

    Args:
        leaves: what the gradients are of.
        gradients: one a leaf; None is left out.
        outer: the gradients of the losses, which autograd can hand on as they are, or views of them.
    """
    row: dict[Tensor, Tensor] = {}
    taken = {_storage(gradient) for gradient in outer}
    for leaf, gradient in zip(leaves, gradients, strict=True):
        if gradient is None:
            continue
        gradient = gradient.detach()
        if gradient.layout != torch.strided:
            gradient = gradient.to_dense()
        if gradient.stride() != leaf.stride() or _storage(gradient) in taken:
            gradient = torch.empty_like(leaf, requires_grad=False).copy_(gradient)
        taken.add(_storage(gradient))
        row[leaf] = gradient
    return row


def _storage(tensor: Tensor) -> int:
    """Identifies the memory that the tensor is a view of; works for tensors like DTensor, too, which hold no data."""
    identity: int = tensor.untyped_storage()._cdata
    return identity
