"""What MAO saves: whose state it is, and what of it is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer


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
