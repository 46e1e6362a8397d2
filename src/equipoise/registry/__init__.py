"""Every method by name: what it is, where it is from, how it is made."""

from equipoise.registry._spec import ONE_PASS, PASS_PER_TASK, MethodSpec
from equipoise.registry.aggregators import AGGREGATORS
from equipoise.registry.base_optimizers import BASE_OPTIMIZERS, BaseOptimizer, split_optimizer
from equipoise.registry.objectives import OBJECTIVES
from equipoise.registry.optimizers import OPTIMIZERS

METHODS: dict[str, MethodSpec] = {**OBJECTIVES, **AGGREGATORS, **OPTIMIZERS}

__all__ = [
    "BASE_OPTIMIZERS",
    "METHODS",
    "ONE_PASS",
    "PASS_PER_TASK",
    "BaseOptimizer",
    "MethodSpec",
    "split_optimizer",
]
