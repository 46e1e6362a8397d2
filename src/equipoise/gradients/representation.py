"""Gradients at a shared representation, where a step's graphs are cut: the trunk is gone through once, not K times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from equipoise.gradients.batch import Batch
from equipoise.gradients.gramian import combine, gramian, wide_dtype
from equipoise.gradients.graph import leaves_until
from equipoise.gradients.jacobian import Rows, joint_row, owned, task_rows
from equipoise.gradients.shared import SharedParameters

Representation = Tensor | Iterable[Tensor]
"""What the trunk gives and the tasks start from: one tensor or several, such as one a scale."""


def take_representation(representation: Representation, needed: bool, at: list[Tensor]) -> None:
    """Puts the tensors of the representation into the list `at`.

    Args:
        representation: the tensors.
        needed: there are losses, so there has to be one.
        at: the list.

    Raises:
        TypeError: it is something else.
        ValueError: there is none, or one has no graph.
    """
    if not isinstance(representation, Iterable):
        raise TypeError(f"representation must be a tensor or a sequence of tensors, found {representation!r}.")
    tensors = [representation] if isinstance(representation, Tensor) else list(representation)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"representation must be a tensor or a sequence of tensors, found {tensor!r} in it.")
        if tensor.grad_fn is None:
            raise ValueError(
                "representation must be what the trunk returned, with its graph; found a tensor that was detached, "
                "computed under torch.no_grad(), or computed from nothing that is trained."
            )
    if needed and not tensors:
        raise ValueError("representation is empty: give the tensors that the losses were computed from.")
    at.extend(tensors)


class Cut:
    """The graphs of a step, cut at the representation: above it every task goes by itself, below it all together.

    Where a leaf lies on both sides, autograd cannot tell its two parts apart; then the pass that all tasks take
    together starts at the losses instead of the representation.

    Args:
        batch: the tasks present.
        representation: tensors that this rank's losses were computed from.

    Raises:
        ValueError: no loss depends on the representation, or a part of it on another one.
        RuntimeError: see `reached_leaves`.
    """

    def __init__(self, batch: Batch, representation: Sequence[Tensor]) -> None:
        self._batch = batch
        self._above, met = leaves_until(batch.graphs, representation)
        self._at = [representation[index] for index in met]
        if batch.graphs and not met:
            raise ValueError(
                "No loss depends on representation. Give the very tensors that the losses were computed from, as the "
                "trunk returned them (of one compiled or DistributedDataParallel model, outputs do not do)."
            )
        below, entangled = leaves_until(self._at, self._at)
        if entangled:
            raise ValueError(
                f"Tensor {met[entangled[0]]} of representation is on the way from another one of its tensors to the "
                "trunk, so its gradient would count twice. Have the tasks start from aliases, "
                "representation = [z.view_as(z) for z in representation], and give those."
            )
        self._below = dict.fromkeys(leaf for row in below for leaf in row)
        self._on_both_sides = any(leaf in self._below for row in self._above for leaf in row)

    def rows(self, coefficients: Tensor, retain_graph: bool) -> Rows:
        """Computes `c_k · ∂L_k` at the representation and at the leaves above it alone, one backward pass a task."""
        above = iter(self._above)
        wanted = [
            [] if loss is None else [*self._at, *(leaf for leaf in next(above) if leaf not in self._below)]
            for loss in self._batch.losses
        ]
        return task_rows(self._batch, wanted, coefficients, retain_graph or self._on_both_sides)

    def gramian(self, rows: Rows) -> Tensor:
        """Returns `ZZᵀ` `[K', K']` of the rows at the representation; on ranks, of this rank's samples."""
        if not self._at:
            device = self._batch.values.device
            return torch.zeros(len(rows), len(rows), dtype=wide_dtype(device), device=device)
        return gramian(self._matrix(rows))

    def combined(
        self, rows: Rows, coefficients: Tensor, weights: Tensor, shared: SharedParameters, retain_graph: bool
    ) -> dict[Tensor, Tensor]:
        """Computes the step's gradients: below the representation by one backward pass.

        Args:
            rows: what `rows` gave.
            coefficients: `c_k` `[K']`, as `rows` took them.
            weights: of the tasks `[K']`, for all that lies below the representation, and above it for `shared`.
            shared: the leaves whose rows are weighted; of others the rows are added up.
            retain_graph: keep the graph.
        """
        gradients: dict[Tensor, Tensor] = {}
        below = list(self._below)
        if self._on_both_sides:
            gradients = joint_row(self._batch, below, coefficients * weights, retain_graph)
        elif self._at:
            outer = combine(self._matrix(rows), weights)
            found = torch.autograd.grad(self._at, below, outer, retain_graph=retain_graph, allow_unused=True)
            gradients = owned(below, found, outer)
        at = set(self._at)
        for row, weight in zip(rows.values(), weights.unbind(), strict=True):
            for leaf, gradient in row.items():
                if leaf in at:
                    continue
                part = gradient * weight.to(gradient.dtype) if leaf in shared else gradient
                gradients[leaf] = gradients[leaf].add_(part) if leaf in gradients else part
        return gradients

    def _matrix(self, rows: Rows) -> list[list[Tensor | None]]:
        return [[row.get(tensor) for tensor in self._at] for row in rows.values()]
