"""A stand-in for the Balancer, and references in plain Python."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Sequence
from typing import Any, Literal

import pytest
import torch

from equipoise.objectives import Objective, WeightedSum, Weighting

TASKS = ("a", "b", "c")
Losses = dict[str, float]
Opened = dict[str, Any]


class Driver:
    """Drives an objective over TASKS by task name, as the Balancer does: open a step, compute, commit."""

    def __init__(self, method: Objective | Weighting, tasks: Sequence[str] = TASKS) -> None:
        self.objective = WeightedSum(method) if isinstance(method, Weighting) else method
        self.objective.bind(tasks)
        self.tasks = tuple(tasks)

    def _values(self, numbers: Losses, usable: Container[str] | None) -> tuple[list[str], torch.Tensor, Opened]:
        """The tasks present, their numbers (1 where a task is not `usable`), and what the step is opened with."""
        present = [task for task in self.tasks if task in numbers]
        taken = [usable is None or task in usable for task in present]
        values = [numbers[task] if take else 1.0 for task, take in zip(present, taken, strict=True)]
        indices = None if len(present) == len(self.tasks) else list(map(self.tasks.index, present))
        mask = None if usable is None else torch.tensor(taken, device="cpu")
        return present, torch.tensor(values, dtype=torch.float64, device="cpu"), {"present": indices, "usable": mask}

    def step(
        self, losses: Losses, commit: bool = True, usable: Container[str] | None = None
    ) -> tuple[float, Losses, dict[str, list[float]]]:
        """Returns the objective's value, `c_k` by task, and parameters' gradients by name, one a task (absent: 0)."""
        present, values, opened = self._values(losses, usable)
        with self.objective.step(**opened) as step:
            value = self.objective(values.requires_grad_())
            assert value.shape == ()
            coefficients, *slopes = torch.autograd.grad(value, [values, *self.parameters], allow_unused=True)
            if commit:
                step.commit(None if opened["usable"] is None else opened["usable"].any())
        gradients: dict[str, list[float]] = {}
        for (name, _), slope in zip(self.objective.named_parameters(), slopes, strict=True):
            gradients.setdefault(name.rpartition(".")[0], []).append(0.0 if slope is None else slope.item())
        return value.item(), dict(zip(present, coefficients.tolist(), strict=True)), gradients

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.objective.parameters())

    def weights(self, losses: Losses) -> Losses:
        """Returns `c_k` by task, which under a weighted sum are the weights."""
        return self.step(losses)[1]

    def observe(self, accuracies: Losses, commit: bool = True) -> None:
        _, values, opened = self._values(accuracies, None)
        self._hook("observe", values, opened=opened, commit=commit)

    def after_step(self, losses: Losses, commit: bool = True, usable: Container[str] | None = None) -> None:
        _, values, opened = self._values(losses, usable)
        self._hook("after_step", values, opened=opened, commit=commit)

    def observe_validation(self, losses: Losses, commit: bool = True) -> None:
        _, values, opened = self._values(losses, None)
        self._hook("observe_validation", values, opened=opened, commit=commit)

    def end_epoch(self, commit: bool = True) -> None:
        self._hook("end_epoch", opened={}, commit=commit)

    def _hook(self, name: str, *arguments: torch.Tensor, opened: Opened, commit: bool) -> None:
        with self.objective.step(**opened) as step:
            for module in self.objective.task_modules():
                getattr(module, name)(*arguments)
            if commit:
                step.commit()


@pytest.fixture
def drive() -> type[Driver]:
    return Driver


@pytest.fixture
def batches() -> list[Losses]:
    """Losses of 24 steps at very different scales; tasks are missing in some, never all."""
    numbers = random.Random(7)
    scales = {"a": 0.1, "b": 1.0, "c": 50.0}
    steps = []
    for index in range(24):
        losses = {task: scale * numbers.uniform(0.2, 2.0) for task, scale in scales.items()}
        for task in {3: "a", 4: "a", 7: "bc", 11: "c", 12: "ab", 17: "b", 22: "ac"}.get(index, ""):
            del losses[task]
        steps.append(losses)
    return steps


Rates = Callable[[Sequence[Losses | None], int | Literal["epoch"]], list[Losses]]


@pytest.fixture
def training_rates() -> Rates:
    def rates(events: Sequence[Losses | None], interval: int | Literal["epoch"]) -> list[Losses]:
        """The rates of each step among `events`; None stands for the end of an epoch."""
        means: dict[str, list[float]] = {task: [] for task in TASKS}
        current: dict[str, list[float]] = {task: [] for task in TASKS}
        result = []
        for event in events:
            if event is not None:
                result.append({t: means[t][-1] / means[t][-2] if len(means[t]) > 1 else 1.0 for t in event})
                for task, loss in event.items():
                    current[task].append(loss)
            for task in TASKS:
                complete = (event is None) if interval == "epoch" else len(current[task]) == interval
                if complete and current[task]:
                    means[task].append(sum(current[task]) / len(current[task]))
                    current[task] = []
        return result

    return rates


@pytest.fixture
def moving_averages() -> Callable[[Sequence[Losses], float], list[Losses]]:
    def averages(steps: Sequence[Losses], beta: float) -> list[Losses]:
        average: Losses = {}
        result = []
        for losses in steps:
            for task, loss in losses.items():
                average[task] = beta * loss + (1 - beta) * average[task] if task in average else loss
            result.append({task: average[task] for task in losses})
        return result

    return averages


@pytest.fixture
def events(batches: list[Losses]) -> list[Losses | None]:
    """The batches in epochs of uneven length; one epoch has no step, one lacks task "c"."""
    result: list[Losses | None] = []
    for index, losses in enumerate(batches):
        if 13 <= index <= 15:
            losses = {task: loss for task, loss in losses.items() if task != "c"}
        result.append(losses)
        if index in (3, 7, 12, 15, 18, 20):
            result.append(None)
        if index == 18:
            result.append(None)
    return result
