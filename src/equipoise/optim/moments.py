"""Adam's arithmetic on one task's moments, and weight decay, which is no task's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from equipoise.gradients.gramian import wide_dtype
from equipoise.gradients.jacobian import Row
from equipoise.gradients.scale import times
from equipoise.gradients.shards import is_sharded, locals_of, total_norm
from equipoise.gradients.sparse import alike, coalesced, touched, values_of
from equipoise.optim._reduced import Factors, update_reduced


class Moments(NamedTuple):
    """What is kept of one task for one parameter: the number of updates (0-dim), and the two moving averages."""

    steps: Tensor
    average: Tensor
    square: Tensor | Factors

    def are_reduced(self, parameter: Tensor) -> bool:
        """Whether PyTorch's kernels cannot take them."""
        return self.average.dtype != parameter.dtype or isinstance(self.square, Factors)


class KernelLists(NamedTuple):
    """What one call of a kernel takes: parameters on one device and of one dtype, and the task's moments of them.

    Attributes:
        sharded: whether they are DTensors, all of them.
        places: of their gradients, which are dense, among the task's.
    """

    sharded: bool
    places: list[int]
    parameters: list[Tensor]
    averages: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]

    def beside(self, gradients: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Returns parameters, their gradients, averages and squares; of DTensors this rank's shards."""
        own = [gradients[place] for place in self.places]
        if self.sharded:
            return locals_of(self.parameters), locals_of(own), locals_of(self.averages), locals_of(self.squares)
        return self.parameters, own, self.averages, self.squares


class Lists(NamedTuple):
    """What a task reaches of a parameter group, and its moments of that.

    Attributes:
        sparse: place of the gradient, parameter and moments of those whose gradients are sparse.
        dense: the others.
        reduced: place of the gradient, parameter and moments of those whose moments are not as PyTorch's kernels take
            them; their gradients are dense.
    """

    sparse: list[tuple[int, Tensor, Moments]]
    dense: list[KernelLists]
    reduced: list[tuple[int, Tensor, Moments]]

    @property
    def whole(self) -> list[Tensor]:
        """Those that are updated as a whole."""
        dense = [parameter for own in self.dense for parameter in own.parameters]
        return [*dense, *(parameter for _, parameter, _ in self.reduced)]

    @property
    def parameters(self) -> list[Tensor]:
        """All of them."""
        return [*(parameter for _, parameter, _ in self.sparse), *self.whole]

    def on(self, copies: Mapping[Tensor, Tensor]) -> Lists:
        """Returns the same with copies in place of the parameters, whose gradients are dense."""
        dense = [own._replace(parameters=[copies[p] for p in own.parameters]) for own in self.dense]
        return Lists([], dense, [(place, copies[p], moments) for place, p, moments in self.reduced])


def listed(parts: Iterable[tuple[int, Tensor, bool, Moments]]) -> Lists:
    """Sorts parameters into lists.

    Args:
        parts: for each parameter the place of its gradient among the task's, itself, whether that gradient is sparse,
            and the task's moments of it.
    """
    sparse: list[tuple[int, Tensor, Moments]] = []
    dense: dict[tuple[torch.device, torch.dtype, bool], KernelLists] = {}
    reduced: list[tuple[int, Tensor, Moments]] = []
    for place, parameter, is_sparse, moments in parts:
        if moments.are_reduced(parameter):
            reduced.append((place, parameter, moments))
            continue
        assert isinstance(moments.square, Tensor)
        if is_sparse:
            sparse.append((place, parameter, moments))
            continue
        sharded = is_sharded(parameter)
        key = parameter.device, parameter.dtype, sharded
        own = dense.setdefault(key, KernelLists(sharded, [], [], [], [], []))
        own.places.append(place)
        own.parameters.append(parameter)
        own.averages.append(moments.average)
        own.squares.append(moments.square)
        own.steps.append(moments.steps)
    return Lists(sparse, list(dense.values()), reduced)


@torch.no_grad()
def update(lists: Lists, gradients: Sequence[Tensor], group: Mapping[str, Any], taking: Tensor | None = None) -> None:
    """Takes the gradients into the moments and adds `−η m̂ / (√v̂ + ε)` to the parameters, by PyTorch's own kernels.

    Of a sparse gradient only the rows that it touches take part, as in `torch.optim.SparseAdam`: the moments of the
    others do not decay, the number of updates is one for all rows, and ε is added to `√v` before its bias is corrected.

    Args:
        lists: parameters and moments, changed in place.
        gradients: the task's, among which the lists know the places of theirs.
        group: the parameters' group, for `lr`, `betas`, `eps`, `fused` and `capturable`.
        taking: a 0-dim bool on the device; where it is false nothing changes. None: it does.
    """
    for place, parameter, moments in lists.sparse:
        _update_touched(parameter, gradients[place], moments, group, taking)
    for place, parameter, moments in lists.reduced:
        update_reduced(parameter, gradients[place], moments.average, moments.square, moments.steps, group, taking)
    for own in lists.dense:
        if group["fused"]:
            _update_fused(own, gradients, group, taking)
        elif taking is None:
            _update_looped(own, gradients, group)
        else:
            _update_where(taking, own, gradients, group)


def _update_fused(
    own: KernelLists, gradients: Sequence[Tensor], group: Mapping[str, Any], taking: Tensor | None
) -> None:
    """Calls the kernel under `torch.optim.AdamW(fused=True)`, which sorts its lists anew at every step."""
    device, lr = own.parameters[0].device, group["lr"]
    if isinstance(lr, Tensor) and lr.device.type != "cpu":  # one on the host is read as a number
        lr = lr.to(device)
    counted = None if taking is None else taking.to(device, torch.float32)
    # a tensor that is not in a list would be read as a number
    torch._foreach_add_(own.steps, 1 if counted is None else [counted] * len(own.steps))
    torch._fused_adamw_(
        *own.beside(gradients),
        [],
        own.steps,
        lr=lr,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=0.0,
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
        found_inf=None if counted is None else 1 - counted,  # has the kernel change nothing
    )


def _update_looped(own: KernelLists, gradients: Sequence[Tensor], group: Mapping[str, Any]) -> None:
    adamw(
        *own.beside(gradients),
        [],
        own.steps,
        fused=False,
        capturable=group["capturable"],
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=0.0,
        eps=group["eps"],
        maximize=False,
    )


def _update_where(taking: Tensor, own: KernelLists, gradients: Sequence[Tensor], group: Mapping[str, Any]) -> None:
    """Makes the update, and takes it back where `taking` is false: only PyTorch's fused kernels can leave it out.

    Step counts on the host (neither `fused` nor `capturable`) have it wait for `taking`.
    """
    changed = locals_of([*own.parameters, *own.averages, *own.squares, *own.steps])
    before = [tensor.clone() for tensor in changed]
    _update_looped(own, gradients, group)
    takes = {device: taking.to(device) for device in {tensor.device for tensor in changed}}
    for tensor, was in zip(changed, before, strict=True):
        tensor.copy_(torch.where(takes[tensor.device], tensor, was))


def _update_touched(
    parameter: Tensor, gradient: Tensor, moments: Moments, group: Mapping[str, Any], taking: Tensor | None
) -> None:
    """Makes the update of the rows that a sparse gradient touches, in float32 at least; where `taking` is true."""
    gradient = coalesced(gradient)
    rows = gradient.indices().unbind()
    dtype, wide = gradient.dtype, torch.promote_types(gradient.dtype, torch.float32)
    values = gradient.values().to(wide)
    beta1, beta2 = group["betas"]
    assert isinstance(moments.square, Tensor)
    before = moments.average[rows], moments.square[rows], parameter[rows]
    average = before[0].to(wide).lerp(values, 1 - beta1)
    square = before[1].to(wide).lerp(values.square(), 1 - beta2)
    moments.steps.add_(1 if taking is None else taking.to(moments.steps))
    steps = moments.steps.to(wide_dtype(moments.steps.device))
    rate = group["lr"] * (1 - beta2**steps).sqrt() / (1 - beta1**steps)
    new = average, square, before[2] - rate * average / (square.sqrt() + group["eps"])
    for tensor, now, old in zip((moments.average, moments.square, parameter), new, before, strict=True):
        tensor[rows] = now.to(dtype) if taking is None else torch.where(taking, now.to(dtype), old)


@torch.no_grad()
def decay(
    parameters: Iterable[Tensor],
    group: Mapping[str, Any],
    moved: Iterable[Sequence[tuple[Tensor, Tensor | None]]] | None = None,
    taking: Tensor | None = None,
) -> None:
    """Multiplies the parameters by `1 − η λ`; where only sparse gradients move one, the rows that they touch.

    Args:
        parameters: changed in place.
        group: the parameters' group, for `lr` and `weight_decay`.
        moved: for each parameter the tasks' gradients, each with whether the task takes part, as `taking`; None: all
            are dense.
        taking: whether a task takes part, 0-dim bool on the device; where it is false nothing changes. None: one does.
    """
    if not group["weight_decay"]:
        return
    rate = group["lr"] * group["weight_decay"]
    factor = 1 - (rate if taking is None else rate * taking.to(wide_dtype(taking.device)))
    dense = list(parameters)
    if moved is not None:
        pairs, dense = zip(dense, moved, strict=True), []
        for parameter, own in pairs:
            if alike([gradient for gradient, _ in own]):
                _decay_touched(parameter, own, 1 - rate)
            else:
                dense.append(parameter)
    if dense:
        torch._foreach_mul_(locals_of(dense), factor)


def _decay_touched(parameter: Tensor, moved: Sequence[tuple[Tensor, Tensor | None]], factor: float | Tensor) -> None:
    """Multiplies the rows that sparse gradients touch, each once: one that is named twice is written the same twice."""
    rows = [touched([gradient]) for gradient, _ in moved]
    decayed = [(parameter[own] * factor).to(parameter.dtype) for own in rows]
    for own, new, (_, takes) in zip(rows, decayed, moved, strict=True):
        parameter[own] = new if takes is None else torch.where(takes, new, parameter[own])


def clipped(row: Row, max_norm: float) -> Row:
    """Returns the row, scaled to a norm of at most `max_norm`."""
    if not row:
        return row
    factor = max_norm / (total_norm(values_of(map(coalesced, row.values()))) + 1e-6)
    return times(row, factor.clamp(max=1.0))
