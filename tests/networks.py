"""A network with what matters to balancing: a trunk, a branch of two tasks, heads, frozen and unused parts."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

TASKS = ("a", "b", "c")


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
        """Mean losses of the tasks, all positive and at different scales."""
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
        return [*self.trunk.parameters(), *self.branch.parameters()]


def batch(index: int, size: int = 6) -> Tensor:
    """The inputs of step `index`."""
    return torch.randn(size, 4, generator=torch.Generator().manual_seed(100 + index))


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    """A copy of every `.grad`."""
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def assert_same(found: Any, expected: Any, path: str = "") -> None:
    """Asserts equality bit for bit, through mappings and sequences."""
    assert type(found) is type(expected), path
    if isinstance(expected, dict):
        assert list(found) == list(expected), path
        for key in expected:
            assert_same(found[key], expected[key], f"{path}[{key!r}]")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), path
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{path}[{index}]")
    elif isinstance(expected, Tensor):
        assert found.dtype == expected.dtype, path
        assert torch.equal(found, expected), f"{path}: {found} != {expected}"
    else:
        assert found == expected, path


def snapshot(*things: Any) -> list[Any]:
    """A deep copy of states: of modules, optimizers and methods with their `.grad`."""
    taken = []
    for thing in things:
        taken.append(copy.deepcopy(thing.state_dict()))
        if isinstance(thing, nn.Module):
            taken.append(gradients(thing))
    return taken
