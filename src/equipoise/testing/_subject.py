"""What checks run on: a network with all that matters to balancing, batches of it, and a method made for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equipoise._method import Method
from equipoise._state import TaskModule
from equipoise.methods import make_method
from equipoise.objectives import Equal, WeightedSum
from equipoise.testing._comparing import frozen, is_same

TASKS = ("a", "b", "c")
METRICS = [{"a": 0.5, "b": 0.3, "c": 0.7}, {"a": 0.6, "c": 0.9}, {"b": 0.55}]
POTENTIALS = {"a": 0.9, "b": 0.6, "c": 0.8}
PRESENT = ["abc", "ac", "abc", "b", "ab", "abc", "c", "bc", "abc", "a", "abc", "abc"]
"""The tasks that have a label in each step."""


VALIDATION = 1000
"""Of the first validation batch; smaller ones are trained on."""


OWN = {*vars(TaskModule()), "_preferences", "_kept_rows", "columns"}
"""Attributes that every part of a method has, and looks after."""


class Network(nn.Module):
    """Tasks a and b share a branch, all three share the trunk; `frozen` takes part, `unused` does not."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        self.trunk = nn.Linear(4, 6)
        self.frozen = nn.Linear(4, 6).requires_grad_(False)
        self.branch = nn.Linear(6, 5)
        self.own = nn.Linear(6, 5)
        self.heads = nn.ModuleDict({task: nn.Linear(5, 2) for task in TASKS})
        self.unused = nn.Linear(2, 2)
        torch.set_rng_state(state)

    def losses(self, x: Tensor, tasks: Iterable[str] = TASKS) -> dict[str, Tensor]:
        """Returns mean losses of the tasks, all positive and at different scales."""
        x = x.to(self.trunk.weight)
        z = (self.trunk(x) + self.frozen(x)).tanh()
        ab = self.branch(z).tanh()
        features = {"a": ab, "b": ab, "c": self.own(z).tanh()}
        target = x.sum(1, keepdim=True)
        scales = {"a": 1.0, "b": 30.0, "c": 0.05}
        signs = {"a": 1.0, "b": -1.0, "c": 0.5}
        return {
            task: scales[task] * (self.heads[task](features[task]) - signs[task] * target).square().mean() + 0.01
            for task in tasks
        }

    def shared(self) -> list[nn.Parameter]:
        """Returns the parameters that two tasks or more use."""
        return [*self.trunk.parameters(), *self.branch.parameters()]


def batch(index: int, size: int = 6) -> Tensor:
    """Returns the inputs of step `index`, `[size, 4]`."""
    return torch.randn(size, 4, generator=torch.Generator().manual_seed(100 + index))


class Subject:
    """A method under test.

    Args:
        make: makes it for a network and tasks; or whatever `make_method` takes for a name.
        single: the one task that it trains, if it is a baseline.
        always: the task that it cannot do without, if there is one.
        **hyperparameters: what it is made with.

    Attributes:
        is_instance: what was given is copied, seed and all.
        is_optimizer: it has moments of its own, and no Balancer.
        parts: the objective, the aggregator and all inside them.
        learns: it has weights that are learned with the model.
        draws: it draws random numbers.
        keeps: it keeps something of a task.
        masked: its objective or its aggregator promises to be.
        adds_up: two halves of a batch are by definition what the batch is: no objective looks at each.
    """

    def __init__(
        self,
        make: Callable[..., Method] | object,
        single: str | None = None,
        always: str | None = None,
        **hyperparameters: Any,
    ) -> None:
        self._given = make
        self._hyperparameters = hyperparameters
        self.single = single
        self.always = always
        model, method = self.make()
        step(model, method, 0, TASKS)  # what depends on the tasks is there at last
        self.is_instance = isinstance(make, TaskModule)
        self.is_optimizer = method.balancer is None
        plain = method.balancer is None or all(
            isinstance(part, (WeightedSum, Equal)) for part in method.balancer.objective.modules()
        )
        self.adds_up = plain and single is None
        aggregator = None if method.balancer is None else method.balancer.aggregator
        self.masked = (aggregator is not None and aggregator.masked) or (
            not plain and all(part.masked for part in method.balancer.objective.task_modules())  # type: ignore[union-attr]
        )
        self.parts = parts_of(method)
        self.learns = any(part._learned for part in self.parts)
        self.draws = any(part.generator is not None for part in self.parts)
        self.keeps = self.is_optimizer or any([*p._learned, *p.buffers(recurse=False)] for p in self.parts)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "parts": []}  # their class may be of a file that another process has not imported

    def changed_attributes(self) -> list[str]:
        """The names of plain attributes that training changes: what they say is neither saved nor undone."""
        model, method = self.make()
        before = [(part, frozen(vars(part))) for part in parts_of(method)]
        train(model, method, 0, 4)
        return [
            name
            for part, old in before
            for name, value in vars(part).items()
            if name not in OWN and not is_same(frozen(value), old.get(name))
        ]

    def make(
        self,
        tasks: Sequence[str] = TASKS,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        model: nn.Module | None = None,
        **options: Any,
    ) -> tuple[Network, Method]:
        """Makes a new network and its method, from a seed."""
        network: Any = Network().to(dtype) if model is None else model
        torch.manual_seed(seed)
        options = {"lr": 0.02, "weight_decay": 0.01, **self._hyperparameters, **options}
        name: Any = self._given
        if is_maker(name):
            return network, name(network, tasks, **options)
        if isinstance(name, str) and name.startswith("amtl"):
            options["potentials"] = {task: POTENTIALS[task] for task in tasks}
        return network, make_method(name, network, tasks, **options)


def parts_of(method: Method) -> list[TaskModule]:
    """The objective, the aggregator and all inside them."""
    modules: Iterable[nn.Module] = () if method.balancer is None else method.balancer.modules()
    return [part for part in modules if isinstance(part, TaskModule)]


def is_maker(given: object) -> bool:
    """Whether it makes methods, and is none itself."""
    return callable(given) and not inspect.isclass(given) and not isinstance(given, nn.Module)


def step(model: Network, method: Method, index: int, tasks: Iterable[str]) -> dict[str, Tensor]:
    """Makes one training step with the losses of `tasks`, after a validation batch; returns the weights."""
    method.zero_grad()
    if method.needs_validation_losses:
        with torch.no_grad():
            method.observe_validation(model.losses(batch(VALIDATION + index), tasks))
    weights = method.backward(model.losses(batch(index), tasks))
    method.step()
    if method.needs_after_step:
        with torch.no_grad():
            method.after_step(model.losses(batch(index), tasks))
    return weights


def train(model: Network, method: Method, start: int = 0, stop: int = 12, present: Sequence[str] = PRESENT) -> None:
    """Trains on steps `start` to `stop`, with an evaluation after every third."""
    for index in range(start, stop):
        step(model, method, index, present[index])
        if index % 3 == 2:
            evaluated = METRICS[index // 3 % len(METRICS)]
            method.end_epoch({task: value for task, value in evaluated.items() if task in method.tasks})
