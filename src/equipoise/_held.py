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
        self._under_way: dict[str, Tensor] = {}  # those of the micro-batches so far

    def note(self, weights: Mapping[str, Tensor], usable: Tensor | None) -> None:
        """Takes note of a micro-batch's weights; `usable`: which of them mean something, bool `[K']`; None: all."""
        self._under_way.update(self._where(usable, weights, {**self.weights, **self._under_way}))

    def end(self, valid: Tensor | None) -> None:
        """Takes over what was noted, unless the 0-dim bool is false, for which the host does not wait."""
        self.weights.update(self._where(valid, self._under_way, self.weights))
        self.forget()

    def forget(self) -> None:
        """Forgets the micro-batches so far."""
        self._under_way = {}

    def _where(
        self, condition: Tensor | None, weights: Mapping[str, Tensor], others: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        if condition is None or not weights:
            return weights
        new = torch.stack(list(weights.values()))
        unknown = torch.full_like(new[0], torch.nan)
        old = torch.stack([_as(new, others.get(task, unknown)) for task in weights])
        return dict(zip(weights, torch.where(condition.to(new.device), new, old).unbind(), strict=True))

    def instead_of(self, found: Tensor, tasks: Sequence[str]) -> Tensor:
        """Returns the weights `[K']` that are held; where there is none yet, or none that is finite, the one found.

        That one is held from here on, so that all calls that learn nothing have the same.
        """
        held = self.known(found, tasks)
        self.weights.update(zip(tasks, held.unbind(), strict=True))
        return held

    def or_mean(self, like: Tensor, tasks: Sequence[str]) -> Tensor:
        """Returns the weights `[K']` that are held, as `like` `[K']` is; of tasks that have none the mean, or 1."""
        otherwise = torch.ones_like(like)
        if self.weights and not self.weights.keys() >= set(tasks):
            ones = torch.ones_like(like[:1]).expand(len(self.weights))
            otherwise = self.known(ones, list(self.weights)).mean().expand_as(like)
        return self.known(otherwise, tasks)

    def known(self, otherwise: Tensor, tasks: Sequence[str]) -> Tensor:
        """Returns the weights `[K']` that are held, and `otherwise` `[K']` where there is none that is finite."""
        held = [self.weights.get(task, weight) for task, weight in zip(tasks, otherwise.unbind(), strict=True)]
        stacked = torch.stack([_as(otherwise, weight) for weight in held])
        return torch.where(stacked.isfinite(), stacked, otherwise)

    def numbers(self) -> dict[str, float]:
        """Returns the weights for a checkpoint."""
        return {task: float(weight) for task, weight in self.weights.items() if weight.isfinite()}

    def restore(self, numbers: Mapping[str, float]) -> None:
        """Takes over what `numbers` gave."""
        self.weights = {task: torch.tensor(n, dtype=torch.float64, device="cpu") for task, n in numbers.items()}
        self.forget()


def _as(like: Tensor, weight: Tensor) -> Tensor:
    """Returns the weight with dtype and device of `like`; the host, where a checkpoint's are, does not wait."""
    return weight.to(like, non_blocking=weight.is_cpu)
