"""Dynamic weight average: weights from the tasks' training rates."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from equipoise._checks import check_number
from equipoise._kept import Kept
from equipoise.objectives._base import Weighting
from equipoise.objectives._training_rate import TrainingRate
from equipoise.search_space import Range, SearchSpace


class DWA(Weighting):
    """Dynamic weight average: the slower a task's loss falls, the larger its weight.

    `w_k = K·softmax_k(r/T)` with the training rate `r_k = L̄_k(e−1) / L̄_k(e−2)`, the ratio of the task's
    mean losses in the last two completed intervals; `r_k = 1` until there are two. K counts the tasks
    present, so the weights sum to their number.

    Args:
        temperature: T > 0; the larger, the more even the weights.
        interval: what a mean loss is taken over: "epoch" (completed by `Balancer.end_epoch`) or a number of
            steps in which the task is present.

    Raises:
        ValueError: `temperature` is not positive, or `interval` is neither "epoch" nor an integer ≥ 1.

    Source: Liu et al., "End-to-End Multi-Task Learning with Attention", CVPR 2019, Eq. 7.

    Example:
        >>> import equipoise as eq
        >>> balancer = eq.Balancer(["depth", "normals"], eq.DWA(temperature=2.0))
    """

    masked = True
    requires_positive = True
    search_space: ClassVar[SearchSpace] = {"temperature": Range(0.2, 20.0, log=True)}

    def __init__(self, temperature: float = 2.0, interval: int | Literal["epoch"] = "epoch") -> None:
        super().__init__()
        self.temperature = check_number("temperature", temperature, above=0)
        self.rate = TrainingRate(interval)
        self._weights = Kept[Tensor]()

    def forward(self, losses: Tensor) -> Tensor:
        """Returns `K·softmax(r/T)` `[K']` and takes the losses `[K']` into the current interval."""
        rate: Tensor = self.rate(losses)
        active = self.active
        return self._weights(
            lambda: active.count * active.softmax(rate / self.temperature), rate, active.mask, self.temperature
        )
