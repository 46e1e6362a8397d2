"""What is alive of the graphs while and after a step's backward passes, as long as the losses are."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

import equipoise as eq

TASKS = ("a", "b", "c", "d")


class Recorder:
    """Keeps weak references to the outputs of layers, which nothing but the graph holds."""

    def __init__(self):
        self.seen = []

    def __call__(self, name, tensor):
        self.seen.append((name, weakref.ref(tensor)))
        return tensor

    def alive(self):
        return sorted(name for name, reference in self.seen if reference() is not None)


class Heads(nn.Module):
    """A trunk, a branch of the first two tasks, and heads of two layers."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.trunk = nn.Linear(3, 5)
        self.branch = nn.Linear(5, 5)
        self.first = nn.ModuleDict({task: nn.Linear(5, 5) for task in TASKS})
        self.second = nn.ModuleDict({task: nn.Linear(5, 2) for task in TASKS})

    def forward(self, record):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
        low = record("low", self.trunk(x).tanh())
        high = record("high", self.branch(low).tanh())
        if self.kind == "hook":
            low.register_hook(lambda gradient: 0.5 * gradient)
            high.register_hook(lambda gradient: 0.5 * gradient)
        losses = {}
        for task in TASKS:
            z = high if task in "ab" or self.kind != "branch" else low
            if self.kind == "nested":
                z = record(f"{task}0", z + low.square())
            h = record(f"{task}1", self.first[task](z).tanh())
            if self.kind == "tied":
                h = record(f"{task}2", (h @ self.branch.weight).tanh())
            losses[task] = self.second[task](h).square().mean()
        return losses, [low, high]


KINDS = ["plain", "branch", "nested", "hook", "tied"]
COUNTS = dict.fromkeys(TASKS, 4)


def balancer(model, aggregator=None, **options):
    return eq.Balancer(TASKS, aggregator=aggregator, **options)


METHODS = {
    "objective": (lambda model: balancer(model), {}),
    "aggregator": (lambda model: balancer(model, eq.MGDA()), {}),
    "chunks": (lambda model: balancer(model, eq.MGDA(), chunk_size=2, engine="rows"), {}),
    "layers": (lambda model: balancer(model, eq.MGDA(), engine="layers"), {}),
    "jacobian": (lambda model: balancer(model, eq.GradDrop()), {}),
    "counts": (lambda model: balancer(model, eq.MGDA()), {"counts": COUNTS}),
    "accumulate": (lambda model: balancer(model, eq.MGDA()), {"accumulate": True}),
    "probe": (lambda model: balancer(model, eq.MGDA(), probe=model.trunk), {}),
    "part shared": (lambda model: balancer(model, eq.MGDA(), shared=[model.trunk.bias], probe=[model.trunk.bias]), {}),
    "mao": (lambda model: eq.MAO(model.parameters(), TASKS), {}),
    "streaming": (lambda model: eq.MAO(model.parameters(), TASKS, streaming=True), {}),
    "groups": (lambda model: eq.MAO(model.parameters(), TASKS, groups=2), {}),
    "representation": (lambda model: balancer(model, eq.MGDA()), "representation"),
}


def backward(method, losses, options, representation, **more):
    if options == "representation":
        options = {"representation": representation}
    return method.backward(losses, **(options or {}), **more)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_alive_after_backward(name, kind):
    model, record = Heads(kind), Recorder()
    make, options = METHODS[name]
    method = make(model)
    losses, (low, high) = model(record)
    assert len(record.alive()) == len(record.seen)
    backward(method, losses, options, low)
    del low, high
    assert record.alive() == []
    assert len(losses) == len(TASKS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["aggregator", "mao", "streaming", "counts"])
def test_a_head_is_gone_when_the_next_one_starts(name, kind):
    model, record = Heads(kind), Recorder()
    make, options = METHODS[name]
    method = make(model)
    losses, (low, high) = model(record)
    del low, high
    seen = {}

    def look(task):
        def hook(gradient):
            seen.setdefault(task, record.alive())

        return hook

    for task in TASKS:
        model.second[task].bias.register_hook(look(task))
    backward(method, losses, options, None)
    assert list(seen) == list(TASKS)
    for index, task in enumerate(TASKS):
        others = {name[0] for name in seen[task] if name not in ("low", "high")} - {task}
        assert others == set(TASKS[index + 1 :]), task


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_a_graph_that_is_retained_gives_the_same_again(name, kind):
    if name == "accumulate":
        pytest.skip("the second call is another micro-batch")
    make, options = METHODS[name]
    found = []
    model, record = Heads(kind), Recorder()
    losses, (low, _) = model(record)
    for retain in (True, False):
        torch.manual_seed(3)
        model.zero_grad()
        method = make(model)
        backward(method, losses, options, low, retain_graph=retain)
        if retain:
            assert len(record.alive()) == len(record.seen)
        if isinstance(method, eq.MAO):
            rows = method._pending.rows if name != "streaming" else {"": method._pending.ahead}
            found.append({(task, p): g.clone() for task, row in rows.items() for p, g in row.items()})
        else:
            found.append({p: p.grad.clone() for p in model.parameters() if p.grad is not None})
    first, second = found
    assert first
    assert first.keys() == second.keys()
    for key, gradient in first.items():
        assert torch.equal(gradient, second[key])
    with pytest.raises(RuntimeError, match="a second time"):
        backward(make(model), losses, options, low)


def test_without_retain_graph_each_single_head_is_autograds_error():
    for kind in KINDS:
        for task in TASKS:
            model = Heads(kind)
            losses, _ = model(Recorder())
            balancer(model, eq.MGDA()).backward(losses)
            with pytest.raises(RuntimeError, match="a second time"):
                losses[task].backward()


def test_tensors_that_hooks_have_packed_are_released_by_passes_alone():
    """What `saved_tensors_hooks` packed, as checkpointing and offloading do, is autograd's to release."""
    kept = []

    class Packed:
        def __init__(self, tensor):
            self.tensor = tensor
            kept.append(weakref.ref(self))

    for kind in ("plain", "branch"):
        kept.clear()
        model = Heads(kind)
        with torch.autograd.graph.saved_tensors_hooks(Packed, lambda packed: packed.tensor):
            losses, _ = model(Recorder())
        assert sum(reference() is not None for reference in kept) > 10
        balancer(model, eq.MGDA()).backward(losses)
        assert sum(reference() is not None for reference in kept) == 0
        assert losses
