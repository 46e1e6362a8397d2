"""What objectives have in common that take how much each task is preferred."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from equipoise.objectives._base import Objective
from equipoise.objectives._per_task import check_values, per_task


class PreferenceObjective(Objective):
    """An objective with a preference vector, which belongs to the constructor and `prefer`, not to `state_dict`.

    Args:
        preferences: task → preference ≥ 0; 1 for tasks that are not named.

    Raises:
        TypeError: `preferences` is no mapping.
        ValueError: a preference is negative or not finite; as `prefer`, once the tasks are known.
    """

    given: Tensor

    def __init__(self, preferences: Mapping[str, float] | None) -> None:
        super().__init__()
        self.preferences = check_values("preferences", {} if preferences is None else preferences, at_least=0)

    def on_bind(self) -> None:
        """Puts the preferences into the order of the tasks."""
        self.register_buffer("given", self._in_order(self.preferences), persistent=False)

    def prefer(self, preferences: Mapping[str, float]) -> None:
        """Takes other preferences from the next step on, as where they are drawn anew in each.

        Args:
            preferences: as in the constructor.

        Raises:
            TypeError: as in the constructor.
            ValueError: as in the constructor; a name is not a task, or no task is preferred.
        """
        checked = check_values("preferences", preferences, at_least=0)
        if self.tasks is not None:
            self.given.copy_(self._in_order(checked), non_blocking=True)
        self.preferences = checked

    def _in_order(self, preferences: Mapping[str, float]) -> Tensor:
        assert self.tasks is not None
        found = per_task("preferences", dict.fromkeys(self.tasks, 1.0) | dict(preferences), self.tasks)
        if not found.any():
            raise ValueError(f"preferences must hold at least one preference > 0, found {dict(preferences)!r}.")
        return found

    @property
    def preference(self) -> Tensor:
        """The preferences of the tasks present, `[K']`."""
        return self.state.given


def unit(vector: Tensor) -> Tensor:
    """Returns the vector `[K']` with length 1; 0 where it is 0."""
    length: Tensor = torch.linalg.vector_norm(vector)
    return vector / length.clamp(min=torch.finfo(vector.dtype).tiny)
