"""The steps that are measured, by the names that they have in the tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from measure import Step
from peers import autogram_step, libmtl_step, torchjd_gradients, torchjd_step
from torch import Tensor
from workloads import Workload

import equipoise as eq
from equipoise.gradients.batching import TIMED, WARM_UP
from equipoise.registry import METHODS

SETTLING = 2 * (WARM_UP + TIMED) + 2
"""Steps on a GPU after which it is chosen how many tasks go at once."""

WAYS: dict[str, Callable[[int], dict[str, Any]]] = {
    "": lambda tasks: {},
    "one by one": lambda tasks: {"chunk_size": 1, "engine": "rows"},
    "batched": lambda tasks: {"chunk_size": tasks, "engine": "rows"},
    "layers": lambda tasks: {"engine": "layers"},
}
"""What follows the comma in "equipoise imtl-g, batched", and what it means for K tasks; nothing: as it is chosen."""


def make_step(workload: Workload, name: str) -> Step:
    """Makes the step of this name, such as "floor", "equipoise imtl-g, layers" or "TorchJD imtl-g, vmap"."""
    if name in PLAIN:
        return PLAIN[name](workload)
    alternative, _, way = name.partition(", ")
    library, method = alternative.split(maxsplit=1)
    if library == "equipoise":
        return method_step(workload, method, WAYS[way](len(workload.tasks)))
    if library == "LibMTL":
        return libmtl_step(workload, method)
    if way == "autogram":
        return autogram_step(workload, method)
    if method == "task gradients":
        return torchjd_gradients(workload, parallel=way == "vmap")
    return torchjd_step(workload, method, parallel=way == "vmap")


def method_step(workload: Workload, name: str, way: dict[str, Any]) -> Step:
    """One of our methods: forward and `backward`, and a second forward pass where it wants one (FAMO).

    MAO's optimizer step is measured by itself.
    """
    spec, model, tasks = METHODS[name], workload.model, workload.tasks
    method: Any
    if way and name != "mao":
        assert spec.aggregator is not None
        method = eq.Balancer(tasks, None if spec.objective is None else spec.objective(), spec.aggregator(), **way)
    else:
        potentials = dict.fromkeys(tasks, 0.9) if spec.needs_potentials else None
        sized = {argument: value for argument, value in way.items() if argument == "chunk_size"}
        method = eq.make_method(name, model, tasks, potentials=potentials, **sized)

    def step() -> None:
        model.zero_grad()
        method.backward(workload.losses(workload.representation()))
        if method.needs_after_step:
            with torch.no_grad():
                method.after_step(workload.losses(workload.representation()))

    if workload.inputs.device.type == "cuda" and spec.passes == "K" and not way:
        for _ in range(SETTLING):
            step()
    return step


def equal_weights(workload: Workload) -> Step:
    """The reference: forward and backward of the summed losses, in plain PyTorch."""

    def step() -> None:
        workload.model.zero_grad()
        sum(workload.losses(workload.representation()).values()).backward()

    return step


def floor(workload: Workload) -> Step:
    """The least that exact task gradients can cost: one forward pass, and K backward passes that keep nothing."""
    shared = list(workload.model.trunk.parameters())

    def step() -> None:
        workload.model.zero_grad()
        losses = list(workload.losses(workload.representation()).values())
        for index, loss in enumerate(losses):
            torch.autograd.grad(loss, shared, retain_graph=index < len(losses) - 1)

    return step


def batched_floor(workload: Workload) -> Step:
    """The same with the trunk's K backward passes at once: a pass through each head, then one under `torch.vmap`."""
    shared = list(workload.model.trunk.parameters())

    def step() -> None:
        workload.model.zero_grad()
        representation = workload.representation()
        cut = representation.detach().requires_grad_()
        losses = workload.losses(cut).values()
        pairs = zip(losses, workload.model.heads, strict=True)
        rows = [torch.autograd.grad(loss, [cut, *head.parameters()])[0] for loss, head in pairs]

        def backward(cotangent: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(representation, shared, cotangent)

        torch.vmap(backward)(torch.stack(rows))

    return step


def task_gradients(workload: Workload) -> Step:
    """Our exact task gradients, kept: what every aggregator starts from."""
    shared = list(workload.model.trunk.parameters())

    def step() -> None:
        workload.model.zero_grad()
        eq.task_gradients(workload.losses(workload.representation()), shared)

    return step


PLAIN: dict[str, Callable[[Workload], Step]] = {
    "EW": equal_weights,
    "floor": floor,
    "floor, batched": batched_floor,
    "task gradients": task_gradients,
}
"""What is measured beside methods."""
