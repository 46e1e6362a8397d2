"""A model and a loop in which every method runs, with the ways of running it that the tests cross."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from networks import TASKS, Network, batch
from torch import Tensor, nn

import equipoise as eq

POTENTIALS = {"a": 0.9, "b": 0.8, "c": 0.7}
METRICS = [{"a": 0.3, "b": 0.5, "c": 0.6}, {"a": 0.5, "c": 0.6}, {"a": 0.55, "b": 0.6, "c": 0.6}]
MISSING = {1: "b", 4: "c"}
"""Step → task that has no label in it."""

SIZES = [6, 6, 4, 4, 6, 4]
"""Samples in each step; another size makes `torch.compile` compile anew, for any size."""


class Model(Network):
    """The network with a forward method that gives every head's output, labels or not."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.features(x)
        ab = self.branch(z).tanh()
        features = {"a": ab, "b": ab, "c": self.own(z).tanh()}
        return {task: self.heads[task](features[task]) for task in TASKS}

    def features(self, x: Tensor) -> Tensor:
        return (self.trunk(x) + self.frozen(x)).tanh()


def losses_of(outputs: Mapping[str, Tensor], x: Tensor, without: str | None = None) -> dict[str, Tensor]:
    """Positive losses at different scales, whose gradients conflict."""
    target = x.sum(1, keepdim=True)
    scales = {"a": 1.0, "b": 30.0, "c": 0.05}
    signs = {"a": 1.0, "b": -1.0, "c": 0.5}
    return {
        task: scales[task] * (output - signs[task] * target).square().mean() + 0.01
        for task, output in outputs.items()
        if task != without
    }


def inputs(step: int, model: nn.Module) -> Tensor:
    return batch(step, SIZES[step]).to(next(model.parameters()).dtype)


def make(name: str, model: nn.Module, **options: Any) -> Any:
    """Makes a method; random ones draw the same numbers each time."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        potentials = POTENTIALS if name.startswith("amtl") else None
        return eq.make_method(name, model, TASKS, lr=0.01, weight_decay=0.1, potentials=potentials, **options)


def train(
    method: Any,
    model: nn.Module,
    forward: Callable[[Tensor], dict[str, Tensor]] | None = None,
    steps: range = range(6),
    backward: Callable[[Any, dict[str, Tensor], Tensor], None] | None = None,
    step: Callable[[Any], None] | None = None,
) -> None:
    """Trains: `forward`, `backward` and `step` take the place of the plain ways."""
    forward = model if forward is None else forward
    for index in steps:
        x, without = inputs(index, model), MISSING.get(index)
        if backward is None:
            method.backward(losses_of(forward(x), x, without))
        else:
            backward(method, losses_of(forward(x), x, without), x)
        (step or type(method).step)(method)
        method.zero_grad()
        if method.needs_after_step:
            with torch.no_grad():
                method.after_step(losses_of(forward(x), x, without))
        if index % 2:
            method.end_epoch(METRICS[index // 2])


def distance(one: nn.Module, other: nn.Module) -> float:
    """The largest difference between parameters, relative to how far they moved."""
    start = dict(type(one)().to(next(one.parameters()).dtype).named_parameters())
    worst = 0.0
    for name, p in one.named_parameters():
        q = dict(other.named_parameters())[name]
        moved = (p - start[name]).abs().max().item()
        worst = max(worst, (p - q).abs().max().item() / max(moved, 1e-3))
    return worst
