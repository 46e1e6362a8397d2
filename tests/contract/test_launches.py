"""A method of one backward pass launches little more than plain PyTorch does for the summed losses."""

import pytest
import torch
from registry import POTENTIALS
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import equipoise as eq
from equipoise.registry import METHODS

LOSS_BASED = [name for name, spec in METHODS.items() if spec.passes == "1"]

MOST = 12
"""Operators beyond those of plain PyTorch, with any number of tasks."""

MORE = {"relobralo": 21, "cov": 22, "ldc-mtl": 23, "go4align": 52}
"""The same for formulas that have more to compute with the K numbers: several running statistics, or a clustering."""


class Operators(TorchDispatchMode):
    """Counts the operators that compute something."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not (function.is_view or "empty" in function.name())
        return function(*args, **(kwargs or {}))


def operators(step):
    for _ in range(3):  # the first steps find out more
        step()
    with Operators() as counted:
        step()
    return counted.count


@pytest.mark.parametrize("count", [3, 40])
@pytest.mark.parametrize("name", LOSS_BASED)
def test_a_step_launches_little(name, count):
    tasks = [f"task {index}" for index in range(count)]
    trunk, heads = nn.Linear(4, 5), nn.ModuleDict({task: nn.Linear(5, 1) for task in tasks})
    model = nn.ModuleList([trunk, heads])
    inputs = torch.randn(6, 4)
    potentials = dict.fromkeys(tasks, POTENTIALS["a"]) if name.startswith("amtl") else None
    method = eq.make_method(name, model, tasks, potentials=potentials)

    def losses():
        z = trunk(inputs).tanh()
        return {task: head(z).square().mean() for task, head in heads.items()}

    def plain():
        model.zero_grad()
        sum(losses().values()).backward()

    def balanced():
        method.zero_grad()
        method.backward(losses())

    assert operators(balanced) <= operators(plain) + MORE.get(name, MOST)
