"""GradNorm: gradient norms that follow the tasks' training rates."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from equipoise._adam import Adam
from equipoise._checks import check_number
from equipoise.aggregators._base import GramianAggregator
from equipoise.aggregators._normalized import row_norms
from equipoise.search_space import Range, SearchSpace

SMALLEST = 1e-3
"""Least weight after an update: a weight that has become 0 would not come back."""


class GradNorm(GramianAggregator):
    """Learns weights under which slower tasks get larger gradients.

    The weights `w(t)` apply at step t and then take one step of Adam down the gradient of
    `Σ_k |‖w_k g_k‖ − mean_j ‖w_j g_j‖ · r_k^α|`, whose right side is constant, with the relative inverse training rates
    `r_k = (L_k/L_k(0)) / mean_j (L_j/L_j(0))`. They are then scaled to sum to the number of tasks. `w_k(0) = 1`;
    `L_k(0)` is the first loss seen.

    Where tasks are missing, means and sums are over those present, and the others keep their weights and moments.

    Preferences `p_k` are the ratio of the norms that are aimed at: `mean_j ‖w_j g_j‖ · r_k^α · p_k / mean_j p_j`.

    Three things the paper leaves open or does otherwise. It names the rate 0.025 and no optimizer for the weights:
    here Adam with its usual settings (0.9, 0.999, 1e-8), whose moments are part of the state, and weights stay at
    or above 0.001 before scaling. It takes the norms on the last shared layer: pass `probe=` to the Balancer, as
    `make_method` does where the model names that layer; without, they are those of all shared parameters. And its
    weights multiply the losses, heads included: here, as in every aggregator, they act on the shared parameters, and
    a head gets its own task's gradient.

    Args:
        alpha: strength of the pull towards equal training rates, at least 0; higher where tasks differ more.
        lr: learning rate of the weights, positive.

    Raises:
        ValueError: `alpha` is negative, `lr` is not positive, or one is not finite.

    Source: Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks",
    ICML 2018, Algorithm 1.

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["depth", "normals"], aggregator=eq.GradNorm(alpha=1.5))
    """

    takes_preferences = True
    requires_positive = True
    search_space: ClassVar[SearchSpace] = {"alpha": Range(0.0, 3.0), "lr": Range(0.0025, 0.25, log=True)}

    def __init__(self, alpha: float = 1.5, lr: float = 0.025) -> None:
        super().__init__()
        self.alpha = check_number("alpha", alpha, at_least=0)
        self.lr = check_number("lr", lr, above=0)
        self.adam = Adam(self.lr)
        self.add_state("weight", 1.0)
        self.add_state("initial_loss", 0.0)

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Returns `w(t)` `[K']`, which sums to K', and keeps `w(t+1)`."""
        state = self.state
        losses = losses.to(gramian.dtype)
        weights = _sum_to_count(state.weight.to(gramian.dtype))
        norms = row_norms(gramian)

        state.initial_loss = torch.where(self.adam.state.updates == 0, losses, state.initial_loss)
        rates = losses / state.initial_loss
        target = (weights * norms).mean() * (rates / rates.mean()) ** self.alpha
        if self.preferences is not None:
            target = target * self.preferences / self.preferences.mean()
        gradient = norms * (weights * norms - target).sign()

        updated: Tensor = self.adam(weights, gradient)
        state.weight = _sum_to_count(updated.clamp(min=SMALLEST))
        return weights


def _sum_to_count(weights: Tensor) -> Tensor:
    return weights * (len(weights) / weights.sum())
