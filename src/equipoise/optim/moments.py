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
from equipoise.gradients.shards import local, locals_of, total_norm
from equipoise.gradients.sparse import alike, coalesced, touched, values_of


class Moments(NamedTuple):
    """What is kept of one task for one parameter: the number of updates (0-dim), and the two moving averages."""

    steps: Tensor
    average: Tensor
    square: Tensor


Part = tuple[Tensor, Tensor, Moments]
"""A parameter, its gradient, and the task's moments of it."""


@torch.no_grad()
def update(
    parameters: Iterable[Tensor],
    gradients: Iterable[Tensor],
    moments: Sequence[Moments],
    group: Mapping[str, Any],
    taking: Tensor | None = None,
) -> None:
    """Takes the gradients into the moments and adds `−η m̂ / (√v̂ + ε)` to the parameters, by PyTorch's own kernels.

    Of a sparse gradient only the rows that it touches take part, as in `torch.optim.SparseAdam`: the moments of the
    others do not decay, the number of updates is one for all rows, and ε is added to `√v` before its bias is corrected.

    Args:
        parameters: changed in place.
        gradients: one a parameter; dense or sparse.
        moments: one a parameter; changed in place.
        group: the parameters' group, for `lr`, `betas`, `eps`, `fused` and `capturable`.
        taking: a 0-dim bool on the device; where it is false nothing changes. None: it does.
    """
    dense = []
    for part in zip(parameters, gradients, moments, strict=True):
        if part[1].is_sparse:
            _update_touched(*part, group, taking)
        else:
            dense.append(part)
    if not dense:
        return
    if taking is not None and not group["fused"]:
        _update_where(taking, [p for p, _, _ in dense], [g for _, g, _ in dense], [m for _, _, m in dense], group)
        return
    adamw(
        locals_of(parameter for parameter, _, _ in dense),
        locals_of(gradient for _, gradient, _ in dense),
        locals_of(m.average for _, _, m in dense),
        locals_of(m.square for _, _, m in dense),
        [],
        [m.steps for _, _, m in dense],
        foreach=None if not group["fused"] else False,
        capturable=group["capturable"],
        fused=group["fused"],
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=0.0,
        eps=group["eps"],
        maximize=False,
        found_inf=None if taking is None else (~taking).to(torch.float32),
    )


def _update_where(
    taking: Tensor,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments: Sequence[Moments],
    group: Mapping[str, Any],
) -> None:
    """Makes the update, and takes it back where `taking` is false: only PyTorch's fused kernels can leave it out.

    Step counts on the host (neither `fused` nor `capturable`) have it wait for `taking`.
    """
    changed = [[p, *m] for p, m in zip(parameters, moments, strict=True)]
    before = [[tensor.clone() for tensor in tensors] for tensors in changed]
    update(parameters, gradients, moments, group)
    takes = {device: taking.to(device) for device in {tensor.device for tensors in changed for tensor in tensors}}
    for tensors, old in zip(changed, before, strict=True):
        for tensor, was in zip(tensors, old, strict=True):
            local(tensor).copy_(torch.where(takes[tensor.device], local(tensor), local(was)))


def _update_touched(
    parameter: Tensor, gradient: Tensor, moments: Moments, group: Mapping[str, Any], taking: Tensor | None
) -> None:
    """Makes the update of the rows that a sparse gradient touches, in float32 at least; where `taking` is true."""
    gradient = coalesced(gradient)
    rows = gradient.indices().unbind()
    dtype, wide = gradient.dtype, torch.promote_types(gradient.dtype, torch.float32)
    values = gradient.values().to(wide)
    beta1, beta2 = group["betas"]
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
    parameters, dense = list(parameters), []
    for parameter, own in zip(parameters, [()] * len(parameters) if moved is None else moved, strict=True):
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
