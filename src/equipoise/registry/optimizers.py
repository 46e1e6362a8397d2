"""The methods that are an optimizer themselves: a backward pass and a set of moments a task."""

from __future__ import annotations

from equipoise.optim import MAO
from equipoise.registry._spec import PASS_PER_TASK, MethodSpec

OPTIMIZERS: dict[str, MethodSpec] = {
    "mao": MethodSpec(
        "Adam with moments per task and parameter", "Hervella et al. 2024", PASS_PER_TASK, MAO, optimizer=MAO
    ),
}
