"""What MAO saves: whose state it is, and what of it is left out."""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import Optimizer


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


def check_state(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Refuses the state of another optimizer or of other tasks before anything is loaded."""
    if "param_groups" not in state_dict:
        raise ValueError("This is no state_dict of an optimizer: it has no 'param_groups'.")
    for group in state_dict["param_groups"]:
        if "tasks" not in group:
            raise ValueError("This state_dict is not of MAO: it names no tasks. Load it into the optimizer it is of.")
        for what in ("tasks", "groups"):
            expected = optimizer.defaults[what]
            if group[what] != expected:
                raise ValueError(
                    f"This state_dict is of other {what}: found {group[what]}, expected {expected}. "
                    f"Load it into a MAO made with the same {what} in the same order."
                )


def note_chunk_size(optimizer: Any) -> None:
    """Has `state_dict` tell how many tasks go at once, once that is known."""
    for group in optimizer.param_groups:
        group["chunk_size"] = optimizer._batching.chosen
