"""Fast adaptive multitask optimization."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from equipoise._checks import check_number
from equipoise.objectives._base import Objective
from equipoise.objectives._per_task import check_values, per_task

BETAS = (0.9, 0.999)
EPSILON = 1e-8
"""Adam's defaults, which the authors keep for the logits."""


class FAMO(Objective):
    """FAMO: lets all log losses fall at the same rate, from loss values alone.

    `c Σ_k z_k log(L_k − b_k)` with `z = softmax(ξ)` and `c = 1 / Σ_k z_k/(L_k − b_k)` detached, so that the
    coefficients `c z_k/(L_k − b_k)` sum to 1. After the model's step the same batch's losses `L'` are taken
    again (`Balancer.after_step`), and the logits ξ take an Adam step down the gradient of `Σ_k z_k δ_k` with
    `δ_k = log(L_k − b_k) − log(L'_k − b_k)`, `∂/∂ξ_k = z_k (δ_k − Σ_j z_j δ_j)`: a task that improved more
    than the others loses weight. The logits and their moments are state, kept per task; the softmax is over
    the tasks present.

    `after_step` changes nothing unless every one of its tasks took part in a step since it was last called
    for it, so it may be called after a step that was dropped for an overflow. The authors add 1e-8 to
    `L_k − b_k`; here a loss at or below its bound is an error.

    Args:
        lr: learning rate of the logits, > 0.
        weight_decay: decay of the logits, ≥ 0, added to their gradient as `torch.optim.Adam` does it.
        lower_bounds: `b_k` by task name, what each loss cannot fall below; 0 for tasks that are not named.

    Raises:
        TypeError: `lower_bounds` is not a mapping.
        ValueError: an argument is out of range, or (once the tasks are known) a name in `lower_bounds` is not
            a task.

    Source: Liu et al., "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023, and the authors' code.

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["depth", "normals"], eq.FAMO(lr=0.025))
    """

    needs_after_step = True
    bound: Tensor

    def __init__(
        self,
        lr: float = 0.025,
        weight_decay: float = 1e-3,
        lower_bounds: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.lr = check_number("lr", lr, above=0)
        self.weight_decay = check_number("weight_decay", weight_decay, at_least=0)
        self.given_bounds = check_values("lower_bounds", {} if lower_bounds is None else lower_bounds)
        self.requires_positive = all(bound >= 0 for bound in self.given_bounds.values())
        self.add_state("logits", 0.0)
        self.add_state("first_moment", 0.0)
        self.add_state("second_moment", 0.0)
        self.add_state("updates", 0)
        self.add_state("losses", 0.0)
        self.add_state("pending", 0)

    def on_bind(self) -> None:
        """Gives every task its bound."""
        assert self.tasks is not None
        bounds = dict.fromkeys(self.tasks, 0.0) | self.given_bounds
        self.register_buffer("bound", per_task("lower_bounds", bounds, self.tasks), persistent=False)

    def lower_bounds(self) -> Tensor:
        """Returns `b_k` `[K']`."""
        return self.state.bound

    def forward(self, losses: Tensor) -> Tensor:
        """Returns `c Σ_k z_k log(L_k − b_k)` of the losses `[K']` and remembers them for `after_step`."""
        state = self.state
        state.losses = losses
        state.pending = torch.ones_like(state.pending)
        gap = losses - state.bound
        share = state.logits.softmax(0)
        scale = (share / gap.detach()).sum().reciprocal()
        return scale * (share * gap.log()).sum()

    def after_step(self, losses: Tensor) -> None:
        """Moves the logits along the change from the remembered losses to these, `[K']`."""
        state = self.state
        due = (state.pending > 0).all()
        share = state.logits.softmax(0)
        change = (state.losses - state.bound).log() - (losses - state.bound).log()
        gradient = share * (change - (share * change).sum()) + self.weight_decay * state.logits

        updates = state.updates + 1
        count = updates.to(gradient.dtype)
        first = torch.lerp(state.first_moment, gradient, 1 - BETAS[0])
        second = torch.lerp(state.second_moment, gradient.square(), 1 - BETAS[1])
        corrected_first = first / (1 - BETAS[0] ** count)
        corrected_second = second / (1 - BETAS[1] ** count)
        logits = state.logits - self.lr * corrected_first / (corrected_second.sqrt() + EPSILON)

        state.logits = torch.where(due, logits, state.logits)
        state.first_moment = torch.where(due, first, state.first_moment)
        state.second_moment = torch.where(due, second, state.second_moment)
        state.updates = torch.where(due, updates, state.updates)
        state.pending = torch.where(due, 0, state.pending)
