"""A scalar whose backward pass balances, for those who call `loss.backward()` themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from equipoise.gradients.jacobian import Row
from equipoise.gradients.micro_batches import Waiting
from equipoise.gradients.ranks import Alone
from equipoise.gradients.scale import UNSCALED, Scale, ScalerScale
from equipoise.gradients.step import Step
from equipoise.gradients.writing import write


def weighted(step: Step, value: Tensor, coefficients: Tensor, learned: Row) -> Tensor:
    """Returns an objective's value, whose derivatives by the losses and by learned weights are constants.

    Args:
        step: the losses.
        value: of the objective, 0-dim.
        coefficients: the derivatives by the losses, `[K']`.
        learned: learned weight → the derivative by it.
    """
    derivatives = [*step.weights(coefficients), *learned.values()]
    result: Tensor = _Weighted.apply(_as_loss(value, step), *derivatives, *step.held, *learned)
    return result


def balanced(
    step: Step,
    value: Tensor,
    run: Callable[[Step], object],
    leaves: Sequence[Tensor] = (),
    scale: Callable[[Tensor], Scale] = ScalerScale,
) -> Tensor:
    """Returns a value whose backward pass balances.

    Args:
        step: the losses.
        value: of the objective, 0-dim.
        run: makes the step.
        leaves: what gets its gradient by autograd's own hands, so that it can be asked for without `.grad`. Those with
            hooks do not: these have seen each task's gradient.
        scale: makes of the factor that reaches the scalar the step's scale.
    """
    anchor = torch.zeros((), device=value.device, requires_grad=True)  # something has to require a gradient
    leaves = [leaf for leaf in leaves if not leaf._backward_hooks]
    result: Tensor = _Balanced.apply(_as_loss(value, step), step, run, scale, leaves, anchor, *leaves)
    return result


def refuse_sharded(ranks: Alone, what: str) -> None:
    """Refuses to make backward passes inside of a scalar's where parameters are sharded; `what` makes the scalar.

    Raises:
        ValueError: they are.
    """
    if ranks.sharded:
        raise ValueError(
            f"{what} makes a backward pass a task inside of the scalar's own, which fully_shard does not allow: call "
            "backward(losses) in its place, or take an objective without an aggregator, whose scalar is a plain loss."
        )


def refuse_waiting(waiting: Waiting) -> None:
    """Refuses a scalar while micro-batches wait.

    Raises:
        ValueError: some do.
    """
    if waiting.micro_batches:
        raise ValueError(
            "Micro-batches of backward(accumulate=True) wait for their last one, which a scalar cannot be: end them "
            "with backward(losses), or clear the gradients."
        )


def _as_loss(value: Tensor, step: Step) -> Tensor:
    """Returns the value in the losses' dtype, at least float32, which is what frameworks expect of a loss."""
    dtype = torch.float32
    for loss in step.held:
        dtype = torch.promote_types(dtype, loss.dtype)
    return value.detach().to(dtype)


class _Weighted(torch.autograd.Function):
    """A value with given derivatives, which come first, by what comes after them."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *given: Tensor) -> Tensor:
        ctx.save_for_backward(*given[: len(given) // 2])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> Any:
        """Returns the derivatives times the factor, 0-dim, that reaches the value."""
        derivatives = ctx.saved_tensors
        gradients = [derivative * factor.to(derivative.device) for derivative in derivatives]
        return None, *[None] * len(derivatives), *gradients


class _Balanced(torch.autograd.Function):
    """A value whose gradients are those of a step that is made when they are asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        step: Step,
        run: Callable[[Step], object],
        scale: Callable[[Tensor], Scale],
        leaves: Sequence[Tensor],
        *_: Tensor,
    ) -> Tensor:
        ctx.step, ctx.run, ctx.scale, ctx.leaves = step, run, scale, leaves
        ctx.save_for_backward(value)  # so that a second backward pass is autograd's usual error
        return value.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> Any:
        """Makes the step, scaled by the factor, 0-dim, that reaches the value; returns its gradients.

        Raises:
            RuntimeError: a second derivative is asked for, or a hook was put on a parameter since.
        """
        assert ctx.saved_tensors
        if torch.is_grad_enabled():
            raise RuntimeError(
                "The balanced gradient of an aggregator cannot be differentiated again (create_graph=True): its "
                "weights come from a computation outside of the graph. Take an objective without an aggregator."
            )
        if any(leaf._backward_hooks for leaf in ctx.leaves):
            raise RuntimeError(
                "A hook was put on a parameter between balancer(losses) and its backward pass, where it cannot be told "
                "from hooks that have seen each task's gradient: register hooks before."
            )
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        gradients: Row = {}
        own = set(ctx.leaves)

        def take(row: Row) -> None:
            for leaf in [leaf for leaf in row if leaf in own]:
                gradients[leaf] = row.pop(leaf)
            write(row)

        plain = factor.device.type == "cpu" and factor == 1
        ctx.run(ctx.step.inside(UNSCALED if plain else ctx.scale(factor), keep, take))
        if not keep:
            ctx.run = ctx.step = None
        return *[None] * 6, *(gradients.get(leaf) for leaf in ctx.leaves)
