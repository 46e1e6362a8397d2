"""Effective learning rates: what an optimizer multiplies each element of the gradient with, after its step.

Adam-like optimizers move an element by its averaged gradient times `η / (√v̂ + ε)`; that factor, element by element, is
the effective learning rate. Momentum changes when a gradient takes effect, not the factor, so SGD's is η.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop
from torch.optim.optimizer import Optimizer

from equipoise.gradients.gramian import wide_dtype
from equipoise.optim import MAO

SUPPORTED = (Adam, AdamW, RMSprop, Adagrad, SGD, MAO)


def check_optimizer(optimizer: object) -> Optimizer:
    """Returns the optimizer if its effective learning rates are known; of one that a library has wrapped, its own.

    Raises:
        TypeError: they are not, or it is no optimizer.
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # Lightning's and Accelerate's wrappers
    if not isinstance(inner, SUPPORTED):
        known = ", ".join(kind.__name__ for kind in SUPPORTED)
        raise TypeError(
            f"The monitor knows the effective learning rates of {known}; found {type(inner).__name__}. "
            "Train with one of these to see contributions."
        )
    return inner


def effective_rate(optimizer: Optimizer, group: dict[str, Any], parameter: Tensor) -> Tensor | None:
    """Returns the effective learning rate of each element of a parameter, in its shape.

    None for a parameter that the optimizer has not moved yet.

    Args:
        optimizer: any of `SUPPORTED` but MAO.
        group: the parameter's group.
        parameter: the parameter.
    """
    state: dict[str, Tensor] = optimizer.state.get(parameter, {})
    lr = group["lr"]
    if isinstance(optimizer, SGD):
        return (lr if isinstance(lr, Tensor) else parameter.new_full((), lr)).expand_as(parameter)
    if isinstance(optimizer, RMSprop):
        if "square_avg" not in state:
            return None
        square = state["square_avg"]
        if group["centered"]:
            square = square - state["grad_avg"].square()
        return square.sqrt().add_(group["eps"]).reciprocal_().mul_(lr)
    if isinstance(optimizer, Adagrad):
        if "sum" not in state:
            return None
        decayed = lr / (1 + (_number(state["step"]) - 1) * group["lr_decay"])
        return state["sum"].sqrt().add_(group["eps"]).reciprocal_().mul_(decayed)
    if "exp_avg_sq" not in state:
        return None
    square = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    return _adam_rate(square, state["step"], group)


def mao_rate(optimizer: MAO, group: dict[str, Any], task: str, parameter: Tensor) -> Tensor:
    """Returns the effective learning rate of each element of a parameter for one of MAO's tasks, or groups of them."""
    moments = optimizer._moments(group, task, parameter)
    return _adam_rate(moments.square, moments.steps, group)


def _adam_rate(square: Tensor, steps: Tensor, group: dict[str, Any]) -> Tensor:
    """Returns `η / (√v̂ + ε)` for the second moment `v` after `steps` updates."""
    correction = (1 - group["betas"][1] ** _number(steps)) ** 0.5
    return square.sqrt().add_(group["eps"] * correction).reciprocal_().mul_(group["lr"] * correction)


def _number(steps: Tensor) -> float | Tensor:
    """Returns a step count as a number if it lies on the host, else in a wide dtype."""
    return float(steps) if steps.device.type == "cpu" else steps.to(wide_dtype(steps.device))
