"""Effective learning rates: what an optimizer multiplies each element of the gradient with, after its step.

Adam-like optimizers move an element by its averaged gradient times `η / (√v̂ + ε)`; that factor, element by element, is
the effective learning rate. Momentum changes when a gradient takes effect, not the factor, so SGD's is η.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop
from torch.optim.optimizer import Optimizer

from equipoise.gradients.gramian import wide_dtype
from equipoise.optim import MTAdam, PerTask
from equipoise.optim._adam_by_task import AdamByTask
from equipoise.optim._reduced import whole

Touched = Mapping[Tensor, tuple[Tensor, ...]]
"""Parameter → an index of some of its rows."""

SUPPORTED = (Adam, AdamW, RMSprop, Adagrad, SGD, AdamByTask)


def check_optimizer(optimizer: object) -> Optimizer:
    """Returns the optimizer if its effective learning rates are known; of one that a library has wrapped, its own.

    Raises:
        TypeError: they are not, or it is no optimizer.
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # Lightning's and Accelerate's wrappers
    found = inner.base if isinstance(inner, PerTask) else type(inner)
    if not isinstance(inner, Optimizer) or not issubclass(found, SUPPORTED):
        known = "Adam, AdamW, RMSprop, Adagrad, SGD, PerTask of these, MAO, AdaTask and MTAdam"
        raise TypeError(
            f"The monitor knows the effective learning rates of {known}; found {found.__name__}. "
            "Train with one of these to see contributions."
        )
    return inner


def effective_rates(
    optimizer: Optimizer, group: dict[str, Any], task: str, parameters: Sequence[Tensor], rows: Touched | None = None
) -> dict[Tensor, Tensor]:
    """Returns the effective learning rate of each element of parameters, in their shapes.

    Parameters that the optimizer has not moved yet are left out.

    Args:
        optimizer: any of `SUPPORTED`.
        group: the parameters' group.
        task: whose state counts, of an optimizer that balances by itself.
        parameters: of the group.
        rows: parameter → the rows whose rates are returned, those that its sparse gradients touch; others: all.
    """
    rows = rows or {}
    if isinstance(optimizer, PerTask):
        base = optimizer.of_task(task)
        place = next(index for index, own in enumerate(optimizer.param_groups) if own is group)
        return effective_rates(base, base.param_groups[place], task, parameters, rows)
    if isinstance(optimizer, MTAdam):
        return {p: _at(rate, p, rows) for p, rate in optimizer.rates(task, parameters, group).items()}
    if isinstance(optimizer, SGD):
        lr = group["lr"]
        return {
            p: (lr if isinstance(lr, Tensor) else p.new_full((), lr)).expand_as(_at(p.detach(), p, rows))
            for p in parameters
        }
    if isinstance(optimizer, AdamByTask):
        group = optimizer._preferring(group, task)
        moments = {p: optimizer._listing.moments(task, p, group, optimizer.state[p]) for p in parameters}
        squares = [_at(whole(m.square, p), p, rows) for p, m in moments.items()]
        touched = [p in rows for p in parameters]
        return _adam(group, parameters, squares, [m.steps for m in moments.values()], touched)
    states = {p: optimizer.state[p] for p in parameters if optimizer.state.get(p)}
    if not states:
        return {}
    if rows:
        states = {
            p: {name: kept if kept.dim() == 0 else _at(kept, p, rows) for name, kept in state.items()}
            for p, state in states.items()
        }
    return _of_kind(optimizer, group, states)


def _at(tensor: Tensor, parameter: Tensor, rows: Touched) -> Tensor:
    """Of a tensor shaped like the parameter the rows asked for."""
    return tensor[rows[parameter]] if parameter in rows else tensor


def _of_kind(
    optimizer: Optimizer, group: dict[str, Any], states: dict[Tensor, dict[str, Tensor]]
) -> dict[Tensor, Tensor]:
    kept = list(states.values())
    if isinstance(optimizer, RMSprop):
        squares = [state["square_avg"] for state in kept]
        if group["centered"]:
            squares = [state["square_avg"] - state["grad_avg"].square() for state in kept]
        return _inverse_roots(list(states), squares, [group["eps"]] * len(kept), [group["lr"]] * len(kept))
    if isinstance(optimizer, Adagrad):
        counts = _counts([state["step"] for state in kept], group)
        factors = group["lr"] / (1 + (counts - 1) * group["lr_decay"])
        return _inverse_roots(
            list(states), [state["sum"] for state in kept], [group["eps"]] * len(kept), _numbers(factors)
        )
    square = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
    squares = [state[square] for state in kept]
    return _adam(group, list(states), squares, [state["step"] for state in kept], [False] * len(kept))


def _adam(
    group: dict[str, Any],
    parameters: Sequence[Tensor],
    squares: list[Tensor],
    steps: list[Tensor],
    touched: Sequence[bool],
) -> dict[Tensor, Tensor]:
    """Returns `η / (√v̂ + ε)` for second moments `v` after so many updates, with `v̂ = v / (1 − β₂^t)`.

    Where only touched rows are updated, as in `torch.optim.SparseAdam`, ε is added to `√v`.
    """
    corrections = (1 - group["betas"][1] ** _counts(steps, group)).sqrt()
    added, factors = _numbers(group["eps"] * corrections), _numbers(group["lr"] * corrections)
    added = [group["eps"] if sparse else number for number, sparse in zip(added, touched, strict=True)]
    return _inverse_roots(parameters, squares, added, factors)


def _inverse_roots(
    parameters: Sequence[Tensor], squares: list[Tensor], added: list[Any], factors: list[Any]
) -> dict[Tensor, Tensor]:
    """Returns `factor / (√square + added)`; factors and what is added are numbers or 0-dim tensors."""
    roots = torch._foreach_sqrt(squares)
    if any(isinstance(number, Tensor) for number in (*added, *factors)):
        for root, number, factor in zip(roots, added, factors, strict=True):
            root.add_(number).reciprocal_().mul_(factor)
    else:
        torch._foreach_add_(roots, added)
        torch._foreach_reciprocal_(roots)
        torch._foreach_mul_(roots, factors)
    return dict(zip(parameters, roots, strict=True))


def _counts(steps: list[Tensor], group: dict[str, Any]) -> Tensor:
    """Returns step counts in a wide dtype `[n]`, on the learning rate's device if that is a tensor."""
    device = group["lr"].device if isinstance(group["lr"], Tensor) else steps[0].device
    return torch.stack(steps).to(device, wide_dtype(device))


def _numbers(vector: Tensor) -> list[Any]:
    """Returns the elements: numbers where the vector lies on the host, else 0-dim tensors."""
    elements: list[Any] = vector.tolist() if vector.device.type == "cpu" else list(vector.unbind())
    return elements
