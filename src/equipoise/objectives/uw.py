"""Uncertainty weighting."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from equipoise._checks import check_known
from equipoise.objectives._base import Derivatives, Objective


class UW(Objective):
    """Uncertainty weighting: each task's loss is divided by its variance, which is learned with the model.

    `Σ_k ½ e^{−s_k} L_k + ½ s_k` with the log-variances `s_k = log σ_k²`, learned from 0. For the tasks named
    in `classification` the first factor ½ is 1, as Kendall et al. have it for the softmax likelihood.

    The log-variances are K 0-dim parameters: give the Balancer's parameters to the optimizer.
    Only those of the tasks present get a gradient, `½ − (½ or 1)·e^{−s_k} L_k`.

    Args:
        classification: names of the tasks with factor 1.

    Raises:
        TypeError: `classification` is a single string, or nothing with names in it.
        ValueError: a name is not a task (once the tasks are known).

    Source: Kendall et al., "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
    Semantics", CVPR 2018.

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["segmentation", "depth"], eq.UW(classification=["segmentation"]))
    """

    masked = True
    factor: Tensor

    def __init__(self, classification: Iterable[str] = ()) -> None:
        super().__init__()
        if isinstance(classification, str):
            raise TypeError(f"classification must be an iterable of names, found the single string {classification!r}.")
        if not isinstance(classification, Iterable):
            raise TypeError(f"classification must be an iterable of names, found {classification!r}.")
        self.classification = tuple(classification)
        self.add_parameter("log_variance", 0.0)

    def on_bind(self) -> None:
        """Gives every task its factor."""
        assert self.tasks is not None
        check_known("classification", self.classification, self.tasks)
        factors = [1.0 if task in self.classification else 0.5 for task in self.tasks]
        self.register_buffer("factor", torch.tensor(factors, dtype=torch.float64, device="cpu"), persistent=False)

    def forward(self, losses: Tensor) -> Tensor:
        """Returns `Σ_k ½ e^{−s_k} L_k + ½ s_k` of the losses `[K']`."""
        log_variance = self.state.log_variance
        return self.active.sum(self.state.factor * (-log_variance).exp() * losses + 0.5 * log_variance)

    def derivatives(self, losses: Tensor) -> Derivatives:
        """Returns `½ e^{−s_k}` `[K']`, and those by the log-variances, `½ − ½ e^{−s_k} L_k`."""
        weights = self.state.factor * (-self.state.log_variance).exp()
        return weights, {"log_variance": self.active.where(0.5 - weights * losses, 0.0)}
