"""What a Balancer saves, and which states it takes over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from equipoise._balancing import Balancing
from equipoise._checks import check_choice
from equipoise._intersection import MATCHES, Match, balancer_state, found_as
from equipoise._parts import describe
from equipoise._saved import packed, unpacked
from equipoise._state import is_of_rows
from equipoise.aggregators import Aggregator
from equipoise.gradients.shared import SharedParameters
from equipoise.objectives import Objective


class Saving(nn.Module):
    """The part of a Balancer that is about its state."""

    tasks: tuple[str, ...]
    objective: Objective
    aggregator: Aggregator | None
    _shared: SharedParameters
    _balancing: Balancing

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(check_state)  # type: ignore[no-untyped-call]

    @property
    def method(self) -> str:
        """The classes of objective and aggregator, which a checkpoint has to agree with."""
        return " + ".join(describe(part) for part in (self.objective, self.aggregator) if part is not None)

    def get_extra_state(self) -> Tensor:
        """What a checkpoint is checked against: tasks and method; with `model`, the names of shared parameters."""
        return packed(list(self.tasks), self.method, self._shared, self._balancing.chosen())

    def set_extra_state(self, state: Tensor) -> None:
        """Takes over what `get_extra_state` gave; `load_state_dict` has checked it before."""
        found = unpacked(state)
        self._shared.restore(found["shared"])
        self._balancing.choose(found)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False, *, tasks: Match = "equal"
    ) -> Any:
        """Takes over what `state_dict()` gave.

        Args:
            state_dict: of a Balancer of the same method.
            strict: as in `torch.nn.Module`.
            assign: as in `torch.nn.Module`.
            tasks: "equal": it has to be of the same tasks. "intersection": of others, too, where tasks were added,
                dropped or put in another order: what is kept of the tasks of both is taken over, by their names, with
                what belongs to no task, such as random generators; what this Balancer has of its other tasks stays as
                it is, and what is shared is found anew if a task was dropped.

        Raises:
            ValueError: it is of another method, or of no Balancer; of other tasks where they have to be equal; no task
                is in both; or the method keeps state that it does not tell apart by task (TorchJD's with state).
                Nothing has changed then.
        """
        if check_choice("tasks", tasks, MATCHES) == "intersection":
            state_dict = balancer_in_common(self, state_dict)
        return super().load_state_dict(state_dict, strict, assign)


def balancer_in_common(balancer: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the state to load with `tasks="intersection"`.

    Raises:
        ValueError: see `Saving.load_state_dict`.
    """
    check_state(balancer, state, "", tasks="intersection")
    fitting = balancer_state(balancer, state)
    check_complete(balancer, fitting)
    return fitting


def check_state(balancer: Any, state: Mapping[str, Any], prefix: str, *_: object, tasks: Match = "equal") -> None:
    """Refuses the state of another method or other tasks before a Balancer loads any of it.

    Raises:
        ValueError: it is of another, or of no Balancer.
    """
    found = state.get(f"{prefix}_extra_state")
    if not isinstance(found, Tensor):
        if prefix and not any(name.startswith(prefix) for name in state):
            return  # the checkpoint of a module without a Balancer; PyTorch reports it where strict
        raise ValueError("This state_dict holds no Balancer: save and load balancer.state_dict().")
    kept = unpacked(found)
    for what, own in (("tasks", list(balancer.tasks)), ("method", balancer.method)):
        if kept[what] != own and not (what == "tasks" and tasks == "intersection"):
            raise ValueError(
                f"This state_dict is of other {what}: found {kept[what]!r}, expected {own!r}. "
                "Load it into a Balancer made with the same arguments."
            )


def _comes_later(name: str) -> bool:
    """Whether this state is there, or has its shape, only once there was a step: TorchJD's, and that on rows."""
    return ".part." in name or is_of_rows(name)


def check_complete(balancer: nn.Module, state: Mapping[str, Any]) -> None:
    """Checks that all of a Balancer's state is there, in the right shapes, before any of it is loaded.

    Raises:
        ValueError: something is missing, too much, or of another shape.
    """
    own = balancer.state_dict()
    own, state = ({n: v for n, v in values.items() if not _comes_later(n)} for values in (own, state))
    missing, unknown = [name for name in own if name not in state], [name for name in state if name not in own]
    if missing or unknown:
        raise ValueError(
            "This state_dict does not fit the Balancer: "
            f"it lacks {', '.join(map(repr, missing)) or 'nothing'} and has "
            f"{', '.join(map(repr, unknown)) or 'nothing'} that is unknown. Load it into a Balancer made with the "
            "same arguments."
        )
    for name, value in own.items():
        sized = isinstance(value, Tensor) and not name.endswith("_extra_state")  # which is as long as its names are
        if sized and getattr(state[name], "shape", None) != value.shape:
            raise ValueError(
                f"This state_dict does not fit the Balancer: {name!r} is {found_as(state[name])}, expected a tensor of "
                f"shape {tuple(value.shape)}. Load it into a Balancer made with the same arguments."
            )
