"""Fast adaptive multitask optimization."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from equipoise._adam import Adam
from equipoise._checks import check_number
from equipoise.objectives._base import Derivatives, Objective
from equipoise.objectives._per_task import check_values, per_task


class FAMO(Objective):
    """FAMO: lets all log losses fall at the same rate, from loss values alone.

    `c Σ_k z_k log(L_k − b_k)` with `z = softmax(ξ)` and `c = 1 / Σ_k z_k/(L_k − b_k)` detached, so that the
    coefficients `c z_k/(L_k − b_k)` sum to 1. After the model's step the same batch's losses `L'` are taken
    again (`Balancer.after_step`), and the logits ξ take an Adam step down the gradient of `Σ_k z_k δ_k` with
    `δ_k = log(L_k − b_k) − log(L'_k − b_k)`, `∂/∂ξ_k = z_k (δ_k − Σ_j z_j δ_j)`: a task that improved more
    than the others loses weight. The logits and their moments are state, kept per task; the softmax is over
    the tasks present.

    `after_step` leaves out tasks that took part in no step since it was last called for them, so it may be called
    after a step that was dropped for an overflow. The authors add 1e-8 to `L_k − b_k`; here a task whose loss is at or
    below its bound is left out.

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

    masked = True
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
        self.adam = Adam(self.lr)
        self.weight_decay = check_number("weight_decay", weight_decay, at_least=0)
        self.given_bounds = check_values("lower_bounds", {} if lower_bounds is None else lower_bounds)
        self.requires_positive = all(bound >= 0 for bound in self.given_bounds.values())
        self.add_state("logits", 0.0)
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
        gap, share = self._remembered(losses)
        scale = (share / gap.detach()).sum().reciprocal()
        return scale * (share * gap.log()).sum()

    def derivatives(self, losses: Tensor) -> Derivatives:
        """Returns `c z_k / (L_k − b_k)` `[K']`."""
        gap, share = self._remembered(losses)
        weights = share / gap
        return weights / weights.sum(), {}

    def _remembered(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Remembers the losses `[K']` for `after_step`; returns `L_k − b_k` and `z_k`."""
        state = self.state
        state.losses = losses
        state.pending = torch.ones_like(state.pending)
        return self.active.where(losses - state.bound, 1.0), self.active.softmax(state.logits)

    def end_step(self, losses: Tensor) -> None:
        """Remembers the losses `[K']` of all micro-batches for `after_step`, in place of the last one's."""
        self.state.losses = losses
        self.state.pending = torch.ones_like(self.state.pending)

    def after_step(self, losses: Tensor) -> None:
        """Moves the logits along the change from the remembered losses to these, `[K']`."""
        state = self.state
        self.leave_out(state.pending == 0)
        share = self.active.softmax(state.logits)
        change = self.active.where((state.losses - state.bound).log() - (losses - state.bound).log(), 0.0)
        gradient = share * (change - (share * change).sum()) + self.weight_decay * state.logits
        state.logits = self.adam(state.logits, gradient)
        state.pending = torch.zeros_like(state.pending)
