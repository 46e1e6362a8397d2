"""What a compiled graph's outputs depend on, read from its FX graph, as eager autograd has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise.gradients import reached_leaves
from equipoise.gradients.graph import compiled as compiled_graphs

Outputs = dict[str, Any]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    with torch._functorch.config.patch(donated_buffer=False):
        yield
    torch.compiler.reset()


class Awkward(nn.Module):
    """Outputs of every kind that a compiled graph tells apart, behind buffers and inputs that it overwrites."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.one, self.two = nn.Linear(4, 2), nn.Linear(4, 2)
        self.frozen = nn.Linear(4, 2).requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(3))
        self.gain = nn.Parameter(torch.ones(2))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, size: int, x: Tensor, y: Tensor, given: Tensor) -> Outputs:
        z = self.norm(self.trunk(x)).relu()
        self.mean.add_(z.mean(0).detach())
        given.add_(self.scale)
        one = self.one(z)
        return {
            "detached": z.sum().detach(),
            "one": one,
            "view of one": one.view(-1),
            "number": size + x.shape[0],
            "two": self.two(z) + self.frozen(z),
            "no gradient": self.frozen(x.new_ones(4)),
            "view of an input": y.view(-1),
            "parameter of two": self.two.weight.sum(),
            "input and parameter": y.exp().sum() * self.one.bias,
            "overwritten input": given.sum(1),
            "constant": torch.zeros_like(self.gain) + y[0].detach(),
            "gain": self.gain * 2,
        }


def reached(call: Callable[..., Outputs], model: nn.Module, samples: int) -> dict[str, set[str]]:
    x, y = torch.randn(samples, 3), torch.randn(samples, 2, requires_grad=True)
    leaf = torch.randn(samples, 3, requires_grad=True)
    names = {p: name for name, p in model.named_parameters()} | {y: "y", leaf: "leaf"}
    given = leaf * 1
    outputs = call(samples, x, y, given) | {"given": given}
    outputs = {key: value for key, value in outputs.items() if isinstance(value, Tensor) and value.requires_grad}
    rows = reached_leaves([value.sum() for value in outputs.values()])
    for value in outputs.values():  # what was compiled late now is
        value.sum().backward(retain_graph=True)
    return {key: {names[p] for p in row} for key, row in zip(outputs, rows, strict=True)}


@pytest.mark.parametrize("dynamic", [False, True])
def test_every_kind_of_output_reaches_what_it_reaches_in_eager_autograd(
    dynamic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_graphs, "_probed", lambda *args: pytest.fail("there is an FX graph"))
    model = Awkward()
    call = torch.compile(model, backend="aot_eager", dynamic=dynamic)
    expected = reached(model, model, 5)
    assert expected["one"] == expected["view of one"] != expected["two"]
    for samples in (5, 5, 7):
        assert reached(call, model, samples) == expected


def test_a_probe_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_graphs, "_backward_module", lambda graph: None)
    model = Awkward()
    assert reached(torch.compile(model, backend="aot_eager"), model, 5) == reached(model, model, 5)


def graph_of(function: Callable[[Tensor], Tensor]) -> Any:
    output = torch.compile(function, backend="aot_eager")(torch.ones(2, requires_grad=True))
    return compiled_graphs.compiled_graph(output.grad_fn)


def test_is_certain_where_there_is_an_fx_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled_graphs.is_certain(graph_of(torch.exp))
    monkeypatch.setattr(compiled_graphs, "_backward_module", lambda graph: None)
    assert not compiled_graphs.is_certain(graph_of(torch.sin))


def test_is_not_certain_where_operators_overwrite_their_arguments() -> None:
    """As some versions leave the graph that they compiled: its edges do not show all that depends on a tangent."""
    graph = graph_of(torch.exp)
    backward = compiled_graphs._backward_module(graph)
    assert backward is not None
    (multiply,) = backward.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor)
    multiply.target = torch.ops.aten.mul_.Tensor
    assert not compiled_graphs.is_certain(graph)
