"""Noticing that gradients have been cleared while task gradients wait, whoever did it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from equipoise.gradients.ranks.shards import local

SMALL = 4096
"""Elements of a parameter that is cheap to mark. There is a bias or a norm in almost every layer."""


class Marks:
    """Marks `.grad` of some parameters, so that clearing it, by any of the usual ways, can be seen later.

    What waits is of no use to a step whose gradients have been cleared, be it by the optimizer's or the model's
    `zero_grad`, set to None or to zero, or by hand. Where there is no `.grad`, one of zeros is put there: of negative
    zeros, which whatever is added leaves as if they had not been there, while clearing makes them positive.
    """

    def __init__(self) -> None:
        self._marked: list[tuple[Tensor, Tensor, int, bool]] = []  # leaf, its `.grad`, that one's version, ours

    def __bool__(self) -> bool:
        return bool(self._marked)

    def put(self, leaves: Iterable[Tensor]) -> None:
        """Marks the small ones of the leaves, at least one, in place of what was marked before."""
        self.remove()
        leaves = list(leaves)
        small = [leaf for leaf in leaves if leaf.numel() <= SMALL] or sorted(leaves, key=Tensor.numel)[:1]
        for leaf in small:
            ours = leaf.grad is None
            if leaf.grad is None:
                leaf.grad = torch.full_like(leaf, -0.0, requires_grad=False)
            self._marked.append((leaf, leaf.grad, leaf.grad._version, ours))

    def cleared(self) -> bool:
        """Whether the gradients have been cleared since.

        Looks at values only where a marked gradient was written to in place.

        Raises:
            ValueError: some have been set to None, and some are still there.
        """
        gone = [leaf for leaf, *_ in self._marked if leaf.grad is None]
        if gone and len(gone) < len(self._marked):
            raise ValueError(
                f"Gradients were cleared for {len(gone)} of {len(self._marked)} marked parameters while task gradients "
                "wait for the end of the step (between micro-batches, or before MAO's step()). Clear all parameters "
                "that the losses reach, or none."
            )
        return bool(self._marked) and (bool(gone) or all(map(_is_zeroed, *zip(*self._marked, strict=True))))

    def touched(self, leaf: Tensor) -> bool:
        """Whether anything but clearing and scaling was done to the leaf's `.grad` since it was marked."""
        for marked, gradient, version, ours in self._marked:
            if marked is leaf and leaf.grad is gradient and ours:
                return gradient._version != version and not _is_negative_zero(gradient)
        return True

    def remove(self) -> None:
        """Takes away the marks that nobody has written to."""
        for leaf, gradient, version, ours in self._marked:
            if ours and leaf.grad is gradient and gradient._version == version:
                leaf.grad = None
        self._marked = []


def _is_zeroed(leaf: Tensor, gradient: Tensor, version: int, ours: bool) -> bool:
    now = leaf.grad
    if now is None or (now is gradient and now._version == version):
        return now is None
    values = _real(now)
    return not bool(values.any() | values.signbit().any())  # sync: somebody wrote to it in place


def _is_negative_zero(gradient: Tensor) -> bool:
    values = _real(gradient)
    return not bool(values.any() | ~values.signbit().any())  # sync: somebody wrote to it in place


def _real(gradient: Tensor) -> Tensor:
    values = local(gradient)
    return torch.view_as_real(values) if values.is_complex() else values
