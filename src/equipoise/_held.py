"""The weights of the last step that learned something, for steps that learn nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Held:
    """Remembers the last weight of every task.

    Attributes:
        weights: task → its last weight, 0-dim.
    """

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def keep(self, weights: Mapping[str, Tensor], valid: Tensor | None) -> None:
        """Takes over the weights of a step, unless the 0-dim bool is false, for which the host does not wait."""
        if valid is None or not weights:
            self.weights.update(weights)
            return
        new = torch.stack(list(weights.values()))
        old = [
            self.weights[task].to(new) if task in self.weights else torch.full_like(new[0], torch.nan)
            for task in weights
        ]
        kept = torch.where(valid.to(new.device), new, torch.stack(old))
        self.weights.update(zip(weights, kept.unbind(), strict=True))

    def instead_of(self, found: Tensor, tasks: Sequence[str]) -> Tensor:
        """Returns the weights `[K']` that are held; where there is none yet, or none that is finite, the one found.

        That one is held from here on, so that all calls that learn nothing have the same.
        """
        held = [self.weights.get(task, weight) for task, weight in zip(tasks, found.unbind(), strict=True)]
        stacked = torch.stack([weight.to(found) for weight in held])
        stacked = torch.where(stacked.isfinite(), stacked, found)
        self.weights.update(zip(tasks, stacked.unbind(), strict=True))
        return stacked

    def numbers(self) -> dict[str, float]:
        """Returns the weights for a checkpoint."""
        return {task: float(weight) for task, weight in self.weights.items() if weight.isfinite()}

    def restore(self, numbers: Mapping[str, float]) -> None:
        """Takes over what `numbers` gave."""
        self.weights = {task: torch.tensor(n, dtype=torch.float64, device="cpu") for task, n in numbers.items()}
