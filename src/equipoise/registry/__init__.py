"""Every method by name: what it is, where it is from, how it is made."""

from equipoise.registry._own import GROUP, find_own, is_method, methods_in, spec_of
from equipoise.registry._spec import ONE_PASS, PASS_PER_TASK, MethodSpec
from equipoise.registry.aggregators import AGGREGATORS
from equipoise.registry.base_optimizers import BASE_OPTIMIZERS, DEFAULT_OPTIMIZER, BaseOptimizer, split_optimizer
from equipoise.registry.objectives import OBJECTIVES
from equipoise.registry.optimizers import OPTIMIZERS

METHODS: dict[str, MethodSpec] = {**OBJECTIVES, **AGGREGATORS, **OPTIMIZERS}

__all__ = [
    "BASE_OPTIMIZERS",
    "DEFAULT_OPTIMIZER",
    "GROUP",
    "METHODS",
    "ONE_PASS",
    "PASS_PER_TASK",
    "BaseOptimizer",
    "MethodSpec",
    "find_own",
    "is_method",
    "methods_in",
    "spec_of",
    "split_optimizer",
]
