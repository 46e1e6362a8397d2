"""Noticing that gradients have been cleared while task gradients wait, whoever did it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.gradients.shards import local

SMALL = 4096
"""Elements of a parameter that is cheap to mark. There is a bias or a norm in almost every layer."""


class Marks:
    """Marks `.grad` of some parameters, so that clearing it, by any of the usual ways, can be seen later.

    What waits is of no use to a step whose gradients have been cleared, be it by the optimizer's or the model's
    `zero_grad`, set to None or to zero, or by hand. Where there is no `.grad`, one of zeros is put there: of negative
    zeros, which whatever is added leaves as if they had not been there, while clearing makes them positive.
    """

    def __init__(self) -> None:
        self._marked: dict[Tensor, _Mark] = {}

    def put(self, leaves: Iterable[Tensor]) -> None:
        """Marks the small ones of the leaves, at least one, in place of what was marked before."""
        self.remove()
        leaves = list(leaves)
        for leaf in [leaf for leaf in leaves if leaf.numel() <= SMALL] or sorted(leaves, key=Tensor.numel)[:1]:
            ours = leaf.grad is None
            if leaf.grad is None:
                leaf.grad = torch.full_like(leaf, -0.0, requires_grad=False)
            self._marked[leaf] = _Mark(leaf.grad, leaf.grad._version, ours)

    def spoil(self, unless: Tensor) -> None:
        """Makes the marks infinite where the 0-dim bool is false, for a gradient scaler to find."""
        for leaf, mark in self._marked.items():
            added = torch.where(unless, -0.0, torch.inf).to(leaf.device, leaf.dtype.to_real())
            _real(mark.gradient).add_(added)
            self._marked[leaf] = _Mark(mark.gradient, mark.gradient._version, mark.ours)

    def cleared(self) -> bool:
        """Whether the gradients have been cleared since; marks that were are gone then.

        Looks at values only where a marked gradient was written to in place.

        Raises:
            ValueError: some have been set to None, and some are still there.
        """
        gone = [leaf for leaf in self._marked if leaf.grad is None]
        if gone and len(gone) < len(self._marked):
            raise ValueError(
                f"Gradients were cleared for {len(gone)} of {len(self._marked)} marked parameters while task gradients "
                "wait for the end of the step (between micro-batches, or before MAO's step()). Clear all parameters "
                "that the losses reach, or none."
            )
        if not self._marked or not (gone or all(_is_zeroed(leaf, mark) for leaf, mark in self._marked.items())):
            return False
        for leaf, mark in self._marked.items():
            if mark.ours and leaf.grad is mark.gradient:
                leaf.grad = None
        self._marked = {}
        return True

    def is_mark(self, leaf: Tensor) -> bool:
        """Whether the leaf's `.grad` is nothing but a mark (which others may have scaled)."""
        mark = self._marked.get(leaf)
        if mark is None or not mark.ours or leaf.grad is not mark.gradient:
            return False
        return mark.gradient._version == mark.version or _is_negative_zero(mark.gradient)

    def remove(self) -> None:
        """Takes away the marks that nobody has written to."""
        for leaf, mark in self._marked.items():
            if mark.ours and leaf.grad is mark.gradient and mark.gradient._version == mark.version:
                leaf.grad = None
        self._marked = {}


class _Mark(NamedTuple):
    """A leaf's `.grad`, its version when it was marked, and whether it is there for the mark alone."""

    gradient: Tensor
    version: int
    ours: bool


def _is_zeroed(leaf: Tensor, mark: _Mark) -> bool:
    now = leaf.grad
    if now is None or (now is mark.gradient and now._version == mark.version):
        return now is None
    if now.is_sparse:
        return now._nnz() == 0
    values = _real(now)
    return not bool(values.any() | values.signbit().any())  # sync: somebody wrote to it in place


def _is_negative_zero(gradient: Tensor) -> bool:
    values = _real(gradient)
    return not bool(values.any() | ~values.signbit().all())  # sync: somebody wrote to it in place


def _real(gradient: Tensor) -> Tensor:
    values = local(gradient)
    return torch.view_as_real(values) if values.is_complex() else values
