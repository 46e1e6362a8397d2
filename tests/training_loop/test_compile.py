"""What `torch.compile` and activation checkpointing hide from autograd's graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from networks import TASKS, assert_same, batch, gradients
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from training_loop.loops import Model, losses_of

import equipoise as eq
from equipoise.gradients import reached_leaves
from equipoise.gradients.graph import compiled as compiled_graphs

Forward = Callable[[Tensor], dict[str, Tensor]]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """PyTorch's default, which a Balancer changes, and no compiled graph from elsewhere."""
    torch.compiler.reset()
    with torch._functorch.config.patch(donated_buffer=True):
        yield
    torch.compiler.reset()


@pytest.fixture
def no_fx_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where PyTorch took the compiled backward pass from a cache that has no more than that."""
    monkeypatch.setattr(compiled_graphs, "_backward_module", lambda graph: None)


def compiled(function: Forward) -> Forward:
    return torch.compile(function, backend="aot_eager")


def whole(model: Model) -> Forward:
    return compiled(model.forward)


def trunk_only(model: Model) -> Forward:
    model.features = compiled(model.features)  # type: ignore[method-assign]
    return model.forward


def heads_only(model: Model) -> Forward:
    for task in TASKS:
        model.heads[task].compile(backend="aot_eager")
    return model.forward


def with_a_break(model: Model) -> Forward:
    features = model.features

    def broken(x: Tensor) -> Tensor:
        z = features(x)
        torch._dynamo.graph_break()
        return z

    model.features = broken  # type: ignore[method-assign]
    return compiled(model.forward)


WAYS = [whole, trunk_only, heads_only, with_a_break]


@pytest.mark.parametrize("way", WAYS)
def test_finds_what_eager_autograd_finds(way: Callable[[Model], Forward]) -> None:
    eq.Balancer(TASKS)
    eager, other = Model(), Model()
    forward, x = way(other), batch(0)
    names = {p: name for model in (eager, other) for name, p in model.named_parameters()}
    for losses in (losses_of(forward(x), x), losses_of(forward(x), x, without="b")):
        expected = reached_leaves(list(losses_of(eager(x), x, None if "b" in losses else "b").values()))
        found = reached_leaves(list(losses.values()))
        assert [{names[p] for p in row} for row in found] == [{names[p] for p in row} for row in expected]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("aggregator", [None, eq.MGDA])
def test_same_gradients_and_none_where_eager_has_none(
    way: Callable[[Model], Forward], aggregator: type[eq.Aggregator] | None
) -> None:
    eager, other = Model().double(), Model().double()
    forward = way(other)
    balancers = [eq.Balancer(TASKS, eq.EMA(), aggregator and aggregator()) for _ in range(2)]
    for step, without in enumerate([None, "c", None]):
        x = batch(step).double()
        for model, call, balancer in zip((eager, other), (eager, forward), balancers, strict=True):
            model.zero_grad()
            balancer.backward(losses_of(call(x), x, without))
        for (name, expected), found in zip(gradients(eager).items(), gradients(other).values(), strict=True):
            assert (found is None) == (expected is None), name
            if expected is not None:
                torch.testing.assert_close(found, expected, msg=name)


def test_losses_inside_the_compiled_function() -> None:
    eager, other = Model(), Model()
    inside = torch.compile(lambda x: losses_of(other.forward(x), x), backend="aot_eager")
    one, two = eq.Balancer(TASKS, aggregator=eq.CAGrad()), eq.Balancer(TASKS, aggregator=eq.CAGrad())
    one.backward(losses_of(eager(batch(0)), batch(0)))
    two.backward(inside(batch(0)))
    for (name, expected), found in zip(gradients(eager).items(), gradients(other).values(), strict=True):
        assert (found is None) == (expected is None), name
        if expected is not None:
            torch.testing.assert_close(found, expected, msg=name)


def passes_of_a_step() -> list[int]:
    """Counts the backward passes through the compiled graph in each of three steps, less the one for each task."""
    model = Model()
    forward, balancer = whole(model), eq.Balancer(TASKS, aggregator=eq.MGDA())
    counts = []
    for step in range(3):
        passes: list[int] = []
        outputs = forward(batch(step))
        (node,) = {output.grad_fn for output in outputs.values()}
        assert node is not None
        node.register_hook(lambda *_, passes=passes: passes.append(1))
        balancer.backward(losses_of(outputs, batch(step)))
        counts.append(len(passes) - len(TASKS))
    return counts


def test_what_depends_on_what_is_read_without_a_backward_pass() -> None:
    assert passes_of_a_step() == [0, 0, 0]


def test_without_an_fx_graph_an_output_that_does_not_reach_all_is_probed_once_a_step(no_fx_graph: None) -> None:
    assert passes_of_a_step() == [len(TASKS)] * 3


def test_an_output_that_reaches_all_is_probed_once(monkeypatch: pytest.MonkeyPatch, no_fx_graph: None) -> None:
    model, probes = Model(), []
    forward, probed = trunk_only(model), compiled_graphs._probed
    monkeypatch.setattr(compiled_graphs, "_probed", lambda *args: probes.append(args[2]) or probed(*args))
    for step in range(3):
        reached_leaves(list(losses_of(forward(batch(step)), batch(step)).values()))
    assert [len(candidates) for candidates in probes] == [len(list(model.trunk.parameters())), 0, 0]


def test_a_nan_sent_through_leaves_no_trace_and_anomaly_detection_silent(no_fx_graph: None) -> None:
    model = Model()
    forward = whole(model)
    with torch.autograd.set_detect_anomaly(True):
        eq.Balancer(TASKS, aggregator=eq.MGDA()).backward(losses_of(forward(batch(0)), batch(0)))
    assert all(g is None or g.isfinite().all() for g in gradients(model).values())


def plain_step(forward: Forward) -> None:
    torch.stack(list(losses_of(forward(batch(0)), batch(0)).values())).sum().backward()


@pytest.mark.parametrize(
    "act",
    [
        lambda losses: eq.Balancer(TASKS, aggregator=eq.MGDA()).backward(losses),
        lambda losses: eq.Balancer(TASKS).backward(losses, retain_graph=True),
        lambda losses: eq.MAO([torch.zeros(1, requires_grad=True)], TASKS).backward(losses),
        lambda losses: eq.task_gradients(losses, [torch.zeros(1, requires_grad=True)]),
    ],
    ids=["aggregator", "retain_graph", "mao", "task_gradients"],
)
def test_a_graph_compiled_for_one_backward_pass_is_refused(act: Callable[[dict[str, Tensor]], object]) -> None:
    """Compiled, and run backward, before there was a Balancer: PyTorch would overwrite what the second pass needs."""
    model = Model()
    forward = whole(model)
    plain_step(forward)
    before = gradients(model)
    losses = losses_of(forward(batch(1)), batch(1))
    with pytest.raises(RuntimeError, match=r"call torch\.compiler\.reset\(\) after making it"):
        act(losses)
    assert_same(gradients(model), before)


def test_it_works_after_the_reset_that_the_error_asks_for() -> None:
    model, eager = Model(), Model()
    forward = whole(model)
    plain_step(forward)
    model.zero_grad()
    balancer = eq.Balancer(TASKS, aggregator=eq.MGDA())
    torch.compiler.reset()
    balancer.backward(losses_of(forward(batch(1)), batch(1)))
    eq.Balancer(TASKS, aggregator=eq.MGDA()).backward(losses_of(eager(batch(1)), batch(1)))
    for expected, found in zip(gradients(eager).values(), gradients(model).values(), strict=True):
        if expected is not None:
            torch.testing.assert_close(found, expected)


def test_one_backward_pass_of_such_a_graph_is_fine() -> None:
    model = Model()
    forward = whole(model)
    plain_step(forward)
    eq.Balancer(TASKS).backward(losses_of(forward(batch(1)), batch(1)))


def test_a_graph_compiled_after_a_balancer_takes_plain_steps_in_between() -> None:
    model = Model()
    balancer = eq.Balancer(TASKS, aggregator=eq.MGDA())
    forward = whole(model)
    plain_step(forward)
    balancer.backward(losses_of(forward(batch(1)), batch(1)))


@pytest.mark.parametrize(
    "make", [lambda m: eq.Balancer(TASKS, aggregator=eq.MGDA()), lambda m: eq.MAO(m.parameters(), TASKS)]
)
def test_reentrant_checkpointing_is_refused(make: Callable[[Model], eq.Balancer | eq.MAO]) -> None:
    model = Model()
    x = batch(0).requires_grad_()
    z = checkpoint(model.features, x, use_reentrant=True)
    losses = {task: model.heads[task](model.own(z)).square().mean() for task in TASKS}
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        make(model).backward(losses)
    assert all(p.grad is None for p in model.parameters())
    eq.Balancer(TASKS).backward(losses)
    assert model.trunk.weight.grad is not None
