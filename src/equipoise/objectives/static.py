"""Weights that a person chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from equipoise.objectives._base import Weighting
from equipoise.objectives._per_task import check_values, per_task


class Static(Weighting):
    """Given weights that never change, `Σ_k w_k L_k`: what a grid search finds.

    The weights are used as they are: not normalised, and the same whichever tasks are present. They belong to
    the constructor, not to `state_dict`.

    Args:
        weights: a weight ≥ 0 for every task, by name or in the order of the Balancer's tasks; not all zero.

    Raises:
        TypeError: `weights` is neither a mapping nor a sequence.
        ValueError: a weight is negative or not finite, all are zero, or (once the tasks are known) a task has
            none or a name is not a task.

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["depth", "normals"], eq.Static({"depth": 1.0, "normals": 10.0}))
    """

    masked = True
    weight: Tensor

    def __init__(self, weights: Mapping[str, float] | Sequence[float] | Tensor) -> None:
        super().__init__()
        self.by_name = isinstance(weights, Mapping)
        if not isinstance(weights, Mapping | Sequence) and not (isinstance(weights, Tensor) and weights.dim() == 1):
            expected = "a mapping from task to number, or a sequence of numbers"
            raise TypeError(f"weights must be {expected}, found {weights!r}.")
        given: Mapping[Any, float] = weights if isinstance(weights, Mapping) else dict(enumerate(weights))
        self.weights = check_values("weights", given, at_least=0)
        if not any(self.weights.values()):
            raise ValueError(f"weights must hold at least one weight > 0, found {weights!r}.")

    def on_bind(self) -> None:
        """Puts the weights into the order of the tasks."""
        assert self.tasks is not None
        weights = self.weights
        if not self.by_name:
            if len(weights) != len(self.tasks):
                raise ValueError(
                    f"weights: found {len(weights)} for {len(self.tasks)} tasks; expected one for each of "
                    f"{', '.join(map(repr, self.tasks))}."
                )
            weights = dict(zip(self.tasks, weights.values(), strict=True))
        self.register_buffer("weight", per_task("weights", weights, self.tasks), persistent=False)

    def forward(self, losses: Tensor) -> Tensor:
        """Returns the given weights `[K']` of the tasks present."""
        return self.state.weight
