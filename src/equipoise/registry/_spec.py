"""What the registry knows of a method."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer

from equipoise.search_space import Range, SearchSpace

ONE_PASS = "1"
PASS_PER_TASK = "K"

OWN = {"base", "params", "tasks", "lr", "weight_decay", "chunk_size", "check_finite", "process_group", "priorities"}
"""Arguments of an optimizer's class that are `make_method`'s, and no hyperparameters."""


WEIGHTS_LR = Range(1e-4, 1e-1, log=True)
"""Of learned weights: from the learning rates of models to a decade above; rates of its own in papers are 0.025."""


@dataclass(frozen=True)
class MethodSpec:
    """What the registry knows of a method.

    Attributes:
        description: one line.
        source: the paper.
        passes: backward passes through the shared part in a step, "1" or "K".
        takes: the class (or function) whose arguments are the method's hyperparameters.
        objective: makes the objective from the hyperparameters; None: equal weights.
        aggregator: makes the aggregator; None: there is none.
        optimizer: makes the optimizer that balances by itself, from parameters, tasks, `lr` and the hyperparameters;
            None: the method works with any optimizer.
        with_base: makes the same of another base optimizer, from its class, parameters, tasks and options; None: there
            is none.
        needs_potentials: the method wants every task's single-task accuracy.
        learns_weights: the objective's weights are parameters, learned with the model, in a group of their own: its
            learning rate is the hyperparameter `weights_lr`.
        probes_last_layer: its paper takes gradient statistics on the last shared layer.
        every: its paper takes gradient statistics in every nth step.
        search_space: hyperparameter → what it may be when it is tuned; by default what `takes` declares.
    """

    description: str
    source: str
    passes: str
    takes: Callable[..., Any]
    objective: Callable[..., nn.Module] | None = None
    aggregator: Callable[..., nn.Module] | None = None
    optimizer: Callable[..., Optimizer] | None = None
    with_base: Callable[..., Optimizer] | None = None
    needs_potentials: bool = False
    learns_weights: bool = False
    probes_last_layer: bool = False
    every: int = 1
    search_space: SearchSpace = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.search_space:
            learned = {"weights_lr": WEIGHTS_LR} if self.learns_weights else {}
            object.__setattr__(self, "search_space", {**getattr(self.takes, "search_space", {}), **learned})

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Name → default of what the method can be given; no default is `inspect.Parameter.empty`."""
        parameters = inspect.signature(self.takes).parameters.values()
        own = {"potentials"} if self.optimizer is None else OWN
        learned = {"weights_lr": None} if self.learns_weights else {}
        return {**{p.name: p.default for p in parameters if p.name not in own and p.kind != p.VAR_KEYWORD}, **learned}

    @property
    def family(self) -> str:
        """Where it decides: "objective" (losses), "aggregator" (gradients), or "optimizer" (updates)."""
        if self.optimizer is not None:
            return "optimizer"
        return "objective" if self.aggregator is None else "aggregator"
