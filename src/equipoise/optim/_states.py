"""What MAO saves: whose state it is, what of it is left out, and what of others' it takes over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from equipoise._checks import check_choice
from equipoise._intersection import MATCHES, Match, in_common, optimizer_state, put


class SavedByTask(Optimizer):
    """The part of MAO that is about its state."""

    def _register(self) -> None:
        self.register_state_dict_pre_hook(note_chunk_size)
        self.register_load_state_dict_pre_hook(check_state)
        self.register_load_state_dict_pre_hook(number_counts)
        self.register_load_state_dict_post_hook(restore_counts)
        self.register_load_state_dict_post_hook(drop_unused)

    def load_state_dict(self, state_dict: dict[str, Any], *, tasks: Match = "equal") -> None:
        """Takes over what `state_dict()` gave.

        Args:
            state_dict: of a MAO.
            tasks: "equal": it has to be of the same tasks, groups and parameters. "intersection": of others, too: the
                moments of the tasks (or of groups of the same tasks) of both are taken over, by their names; what this
                optimizer has of its other tasks stays as it is. Parameters are told by their names, where both were
                made with `model.named_parameters()`, else by their places. Options of the groups are taken over.

        Raises:
            ValueError: it is of another optimizer, of other tasks or parameters where they have to be equal, or no task
                is in both. Nothing has changed then.
        """
        if check_choice("tasks", tasks, MATCHES) == "intersection":
            check_mao(state_dict)
            names = _names(self.param_groups), _names(state_dict["param_groups"])
            state_dict = moments_in_common(self, state_dict, *names)
        super().load_state_dict(state_dict)


def counts_device(parameter: Tensor, group: Mapping[str, Any]) -> torch.device:
    """Where the parameter's step counts lie: as in `torch.optim.AdamW`, on the host if kernels do not read them."""
    return parameter.device if group["capturable"] or group["fused"] else torch.device("cpu")


def number_counts(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Makes numbers of step counts that loading would cast to the parameters' dtype: it spares those named "step"."""
    state = {
        key: {**own, "grad_step": float(own["grad_step"])} if "grad_step" in own else own
        for key, own in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def restore_counts(optimizer: Optimizer) -> None:
    """Makes step counts again of the numbers."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            own = optimizer.state.get(parameter, {})
            if "grad_step" in own:
                device = counts_device(parameter, group)
                own["grad_step"] = torch.tensor(own["grad_step"], dtype=torch.float32, device=device)


def drop_unused(optimizer: Optimizer) -> None:
    """Drops the moments of tasks that have not reached a parameter: they are 0, and would cost memory."""
    for state in optimizer.state.values():
        steps = state["step"].tolist() if "step" in state else []
        names = optimizer.defaults["groups"] or optimizer.defaults["tasks"]
        for task, count in zip(names, steps, strict=False):
            if count == 0:
                state.pop(f"exp_avg.{task}", None)
                state.pop(f"exp_avg_sq.{task}", None)
        if "grad_step" in state and state["grad_step"].item() == 0:
            for name in ("grad_step", "grad_exp_avg", "grad_exp_avg_sq"):
                state.pop(name, None)


def check_mao(state_dict: Mapping[str, Any]) -> None:
    """Refuses the state of another optimizer.

    Raises:
        ValueError: it is one.
    """
    if "param_groups" not in state_dict:
        raise ValueError("This is no state_dict of an optimizer: it has no 'param_groups'.")
    for group in state_dict["param_groups"]:
        if "tasks" not in group:
            raise ValueError("This state_dict is not of MAO: it names no tasks. Load it into the optimizer it is of.")


def check_state(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Refuses the state of another optimizer or of other tasks before anything is loaded."""
    check_mao(state_dict)
    for group in state_dict["param_groups"]:
        for what in ("tasks", "groups"):
            expected = optimizer.defaults[what]
            if group[what] != expected:
                raise ValueError(
                    f"This state_dict is of other {what}: found {group[what]}, expected {expected}. "
                    f"Load it into a MAO made with the same {what} in the same order."
                )


def moments_in_common(
    optimizer: Optimizer,
    state: Mapping[str, Any],
    own_names: Sequence[str] | None,
    found_names: Sequence[str] | None,
) -> dict[str, Any]:
    """Returns the state of a MAO after taking over another's, of the tasks and parameters of both.

    Args:
        optimizer: takes over.
        state: the other's.
        own_names: see `optimizer_state`.
        found_names: see `optimizer_state`.

    Raises:
        ValueError: no task is in both; or see `optimizer_state`.
    """
    own_groups, found_groups = _groups(optimizer.defaults), _groups(state["param_groups"][0])
    at = in_common([set(tasks) for tasks in found_groups.values()], [set(tasks) for tasks in own_groups.values()])
    pairs = [(list(own_groups)[own], list(found_groups)[found]) for own, found in at.items()]

    def merge(own: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
        merged = {**own, **{kind: value for kind, value in found.items() if kind.startswith("grad_")}}
        if "step" in found:
            steps: Tensor = own.get("step", torch.zeros(len(own_groups), device="cpu"))
            merged["step"] = put(steps, found["step"], at)
        for task, named in pairs:
            for kind in ("exp_avg", "exp_avg_sq"):
                merged.pop(f"{kind}.{task}", None)
                if f"{kind}.{named}" in found:
                    merged[f"{kind}.{task}"] = found[f"{kind}.{named}"]
        return merged

    result = optimizer_state(optimizer, state, own_names, found_names, merge)
    for group, own in zip(result["param_groups"], optimizer.param_groups, strict=True):
        group.update({what: own[what] for what in ("tasks", "groups", "chunk_size")})
    return result


def _groups(options: Mapping[str, Any]) -> dict[str, list[str]]:
    """Group → its tasks."""
    return options["groups"] or {task: [task] for task in options["tasks"]}


def _names(groups: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """The parameters' names, if the optimizer was given any."""
    named = [group["param_names"] for group in groups if "param_names" in group]
    return list(chain.from_iterable(named)) if len(named) == len(groups) else None


def note_chunk_size(optimizer: Any) -> None:
    """Has `state_dict` tell how many tasks go at once, once that is known."""
    for group in optimizer.param_groups:
        group["chunk_size"] = optimizer._batching.chosen
