"""A compiled model whose first batch gives parameters no gradient trains them all the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from networks import batch
from torch import Tensor, nn

import equipoise as eq
from equipoise.gradients.graph import compiled as compiled_graphs

TASKS = ("masked", "dead", "expert")
LEFT_OUT = {0: "masked", 1: "dead", 2: "expert"}
INACTIVE = [True, True, False, False, False]


class Sparse(nn.Module):
    """Where it is inactive, no sample has the first task's label, the second's units are dead, the expert is unused."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.trunk = nn.Linear(4, 6)
            self.heads = nn.ModuleDict({task: nn.Linear(6, 2) for task in TASKS})
            self.sparse = nn.ModuleDict({task: nn.Linear(6, 2) for task in TASKS})
        self.double()

    def forward(self, x: Tensor, inactive: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x).tanh()
        y = {task: layer(z) for task, layer in self.sparse.items()}
        parts = {
            "masked": y["masked"].masked_fill(inactive, 0.0),
            "dead": (y["dead"] - 1e3 * inactive).relu(),
            "expert": torch.where(inactive, x[:, :2], y["expert"]),
        }
        return {task: self.heads[task](z) + parts[task] for task in TASKS}


def sgd(model: nn.Module, aggregator: eq.Aggregator | None) -> tuple[Any, torch.optim.Optimizer]:
    return eq.Balancer(TASKS, aggregator=aggregator), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def mao(model: nn.Module) -> tuple[Any, torch.optim.Optimizer]:
    optimizer = eq.MAO(model.parameters(), TASKS, lr=0.01)
    return optimizer, optimizer


METHODS = {
    "ew": lambda model: sgd(model, None),
    "pcgrad": lambda model: sgd(model, eq.PCGrad()),
    "mao": mao,
}


def trained(model: Sparse, forward: Callable[..., dict[str, Tensor]], method: str) -> Sparse:
    """Trains from the start: one task is left out at first, in the order in which they wait for a gradient."""
    model.load_state_dict(Sparse().state_dict())
    model.zero_grad()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        balancer, optimizer = METHODS[method](model)
    for step, inactive in enumerate(INACTIVE):
        x = batch(step).double()
        outputs = forward(x, torch.tensor(inactive))
        losses = {
            task: (output - x.sum(1, keepdim=True)).square().mean()
            for task, output in outputs.items()
            if task != LEFT_OUT.get(step)
        }
        balancer.backward(losses)
        optimizer.step()
        optimizer.zero_grad()
    return copy.deepcopy(model)


def compiled(backend: str) -> tuple[Sparse, Callable[..., dict[str, Tensor]]]:
    model = Sparse()
    return model, torch.compile(model, backend=backend)


@pytest.fixture(scope="module", params=["aot_eager", "inductor", "inductor, cached", "no FX graph"])
def way(request: pytest.FixtureRequest) -> Iterator[tuple[str, Sparse, Callable[..., dict[str, Tensor]]]]:
    """A model, compiled once for all tests."""
    torch.compiler.reset()
    with torch._functorch.config.patch(donated_buffer=False), pytest.MonkeyPatch.context() as monkeypatch:
        if request.param == "no FX graph":
            monkeypatch.setattr(compiled_graphs, "_backward_module", lambda graph: None)
        backend = "inductor" if request.param.startswith("inductor") else "aot_eager"
        model, forward = compiled(backend)
        if request.param == "inductor, cached":
            trained(model, forward, "ew")
            torch.compiler.reset()
            model, forward = compiled(backend)
        yield request.param, model, forward
    torch.compiler.reset()


@pytest.mark.parametrize("method", METHODS)
def test_trains_what_eager_autograd_trains(
    way: tuple[str, Sparse, Callable[..., dict[str, Tensor]]], method: str
) -> None:
    kind, model, forward = way
    start, eager = Sparse().state_dict(), Sparse()
    expected, found = trained(eager, eager, method).state_dict(), trained(model, forward, method).state_dict()
    for name, value in expected.items():
        moved = (value - start[name]).abs().max()
        assert moved > 1e-3, name
        if kind == "no FX graph" and method == "mao":  # its moments begin with the first gradient that is known of
            assert (found[name] - start[name]).abs().max() > 0.3 * moved, name
        else:
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)
