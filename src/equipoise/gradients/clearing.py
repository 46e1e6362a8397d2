"""Noticing that gradients have been cleared while task gradients wait, whoever did it."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.gradients.shards import is_sharded, local

SMALL = 4096
"""Elements of a parameter that is cheap to mark. There is a bias or a norm in almost every layer."""

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of an element → the integers that show its bits: 0 has none, and negative zero has the sign's."""


class Marks:
    """Marks `.grad` of some parameters, so that clearing it, by any of the usual ways, can be seen later.

    What waits is of no use to a step whose gradients have been cleared, be it by the optimizer's or the model's
    `zero_grad`, set to None or to zero, or by hand, and whatever has been added since. Where there is no `.grad`, one
    of negative zeros is put there, which show that nothing has been added. And the first element of every marked
    gradient gets a speck: what is added hides it, zeros leave it, and only clearing makes all elements zero.

    Not seen is zeroing in place (`set_to_none=False`) that another backward pass into the same parameters follows.
    """

    def __init__(self) -> None:
        self._marked: dict[Tensor, _Mark] = {}

    def put(self, leaves: Iterable[Tensor], sparse: Container[Tensor] = ()) -> None:
        """Marks the small ones of the leaves, at least one, in place of what was marked before.

        Args:
            leaves: the parameters.
            sparse: those whose gradients are sparse. A mark that is dense would make dense what others add to it.
        """
        self.remove()
        leaves = list(leaves)
        dense = [leaf for leaf in leaves if leaf not in sparse]
        small = [leaf for leaf in dense if leaf.numel() <= SMALL] or sorted(dense or leaves, key=Tensor.numel)[:1]
        ours = [leaf for leaf in small if leaf.grad is None]
        for leaf in ours:
            leaf.grad = _negative_zero(leaf, leaf in sparse)
        gradients = [leaf.grad for leaf in small if leaf.grad is not None]
        _add_specks(gradients, 1)
        added = dict.fromkeys(ours)
        self._marked = {leaf: _Mark(g, _version(g), leaf in added) for leaf, g in zip(small, gradients, strict=True)}

    def spoil(self, unless: Tensor) -> None:
        """Makes the marks infinite where the 0-dim bool is false, for a gradient scaler to find."""
        for leaf, mark in self._marked.items():
            added = torch.where(unless, -0.0, torch.inf).to(leaf.device, leaf.dtype.to_real())
            _real(mark.gradient).add_(added)
            self._marked[leaf] = mark._replace(version=_version(mark.gradient))

    def cleared(self) -> bool:
        """Whether the gradients have been cleared since.

        Looks at values only where a marked gradient was written to.

        Raises:
            ValueError: some have been cleared, and some are still there.
        """
        self._look(self._marked)
        gone = [leaf for leaf, mark in self._marked.items() if mark.cleared or leaf.grad is None]
        if len(gone) == len(self._marked):
            return bool(gone)
        sure = [leaf for leaf in gone if leaf.grad is None or _speck(leaf.grad)]
        if sure:
            raise ValueError(
                f"Gradients were cleared for {len(sure)} of {len(self._marked)} marked parameters while task gradients "
                "wait for the end of the step (between micro-batches, or before MAO's step()). Clear all parameters "
                "that the losses reach, or none; where they reach another model's (a discriminator's), give model=."
            )
        return False

    def others(self, leaves: Iterable[Tensor]) -> dict[Tensor, Tensor]:
        """Returns what there is in `.grad` of the leaves beside the marks."""
        self._look(self._marked)
        found, hidden = {}, {}
        for leaf in leaves:
            mark = self._marked.get(leaf)
            if leaf.grad is None or (mark is not None and mark.ours):
                continue
            if mark is None or leaf.grad is not mark.gradient:
                found[leaf] = leaf.grad
            else:
                found[leaf] = hidden[leaf] = leaf.grad.detach().clone()
        _add_specks(hidden.values(), -1)
        return found

    def multiplied_by(self) -> Tensor | None:
        """Returns by what the marks have been multiplied since, 0-dim, as a gradient scaler does that unscales.

        None: it cannot be seen, since every mark is hidden by what has been added.
        """
        self._look(self._marked)
        for leaf, mark in self._marked.items():
            speck = _speck(mark.gradient)
            if mark.ours and speck and leaf.grad is mark.gradient:
                return _first(_real(mark.gradient)).flatten()[0] / speck
        return None

    def remove(self) -> None:
        """Takes the marks away, and `.grad` where there is nothing else in it."""
        if not self._marked:
            return
        self._look(leaf for leaf, mark in self._marked.items() if mark.ours)
        kept = []
        for leaf, mark in self._marked.items():
            if leaf.grad is mark.gradient and mark.ours:
                leaf.grad = None
            elif leaf.grad is mark.gradient and not mark.cleared:
                kept.append(mark.gradient)
        _add_specks(kept, -1)
        self._marked = {}

    def _look(self, leaves: Iterable[Tensor]) -> None:
        """Finds out what has become of those marked gradients that were written to since this was last asked."""
        written = {}
        for leaf in leaves:
            mark = self._marked[leaf]
            if leaf.grad is not None and (leaf.grad is not mark.gradient or _version(leaf.grad) != mark.version):
                written[leaf] = leaf.grad
        if not written:
            return
        first = next(iter(written))
        seen = torch.stack([torch.stack(_seen(g)).to(first.device) for g in written.values()]).tolist()  # sync: once
        for (leaf, gradient), (zero, blank) in zip(written.items(), seen, strict=True):
            mark = self._marked[leaf]
            # who adds out of place: a backward pass with create_graph, and one that adds to a sparse gradient
            added = gradient.requires_grad or mark.gradient.is_sparse or blank
            cleared = mark.cleared or zero or (gradient is not mark.gradient and not added)
            self._marked[leaf] = _Mark(gradient, _version(gradient), mark.ours and (blank or zero), cleared)


class _Mark(NamedTuple):
    """A leaf's `.grad`, its version when last seen, whether it is there for the mark alone, and has been cleared."""

    gradient: Tensor
    version: int
    ours: bool
    cleared: bool = False


def _negative_zero(leaf: Tensor, sparse: bool) -> Tensor:
    if not sparse:
        return torch.full_like(leaf, -0.0, requires_grad=False)
    first = torch.zeros(1, 1, dtype=torch.long, device=leaf.device)
    values = torch.full((1, *leaf.shape[1:]), -0.0, dtype=leaf.dtype, device=leaf.device)
    return torch.sparse_coo_tensor(first, values, leaf.shape, check_invariants=False)


@torch.no_grad()
def _add_specks(gradients: Iterable[Tensor], sign: int) -> None:
    """Adds a speck to each gradient's first element (sign 1), or takes it away again (-1)."""
    firsts: dict[float, list[Tensor]] = {}
    for gradient in gradients:
        speck = _speck(gradient)
        if speck:
            firsts.setdefault(speck, []).append(_first(_real(gradient)))
    for speck, elements in firsts.items():
        torch._foreach_add_(elements, sign * speck)


def _speck(gradient: Tensor) -> float:
    """Returns a number that rounding hides in any gradient but zero, with room for scaling; 0: there is none.

    A sparse gradient needs none, float16 has none, and what autograd may go back through stays as it is.
    """
    if gradient.is_sparse or gradient.requires_grad or not local(gradient).numel():
        return 0.0
    tiny = torch.finfo(gradient.dtype).tiny
    return tiny * 2.0**24 if tiny < 1e-30 else 0.0


def _seen(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Returns whether all elements are zero, and whether there is only a mark (which others may have scaled)."""
    values = _real(gradient.detach())
    integers = INTEGERS[values.dtype.itemsize]
    if gradient.is_sparse:
        zero = torch.full((), gradient._nnz() == 0, device=gradient.device)
        return zero, (values.view(integers) == torch.iinfo(integers).min).all()
    rest = values.clone()
    _first(rest).fill_(-0.0)
    blank = (rest.view(integers) == torch.iinfo(integers).min).all()
    return ~values.view(integers).any(), blank & (_first(values).abs() <= _speck(gradient.detach()) * 2.0**24).all()


def _first(values: Tensor) -> Tensor:
    """Returns the first element, as a view; of none none."""
    return values[(slice(1),) * values.dim()]


def _version(gradient: Tensor) -> int:
    """Returns how often a gradient was written to, be it by way of its shard."""
    return gradient._version + (local(gradient.detach())._version if is_sharded(gradient) else 0)


def _real(gradient: Tensor) -> Tensor:
    values = gradient._values() if gradient.is_sparse else local(gradient)
    return torch.view_as_real(values) if values.is_complex() else values
