"""The methods that are an optimizer themselves: a backward pass and a set of moments a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim.optimizer import Optimizer

from equipoise.optim import MAO, AdaTask, MTAdam, PerTask
from equipoise.registry._spec import PASS_PER_TASK, MethodSpec


def _optimizer(takes: Callable[..., Optimizer], description: str, source: str, **details: Any) -> MethodSpec:
    return MethodSpec(description, source, PASS_PER_TASK, takes, optimizer=takes, **details)


OPTIMIZERS: dict[str, MethodSpec] = {
    "mao": _optimizer(MAO, "Adam with moments per task and parameter", "Hervella et al. 2024", with_base=PerTask),
    "adatask": _optimizer(AdaTask, "Adam with statistics accumulated task by task", "Yang et al. 2023"),
    "mtadam": _optimizer(
        MTAdam, "Adam on gradients of like norm, layer by layer, with one denominator", "Malkiel & Wolf 2021"
    ),
}
