"""What cannot go through the graphs together goes one task after the other, and is not tried again."""

from __future__ import annotations

import pytest
import torch
from architectures import TASKS
from torch import nn
from ways import ONE_BY_ONE, WAYS, NeedsValues, assert_close, balanced, run, tensors

import equipoise as eq


class Doubled(torch.autograd.Function):
    """Has no rule for `torch.vmap`."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class CallsAnother(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sin()

    @staticmethod
    def backward(ctx, gradient):
        return Doubled.apply(gradient)


class WritesInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return 3 * x

    @staticmethod
    def backward(ctx, gradient):
        result = torch.empty(ctx.shape, dtype=gradient.dtype)
        return result.copy_(gradient).mul_(3)


def with_function(function):
    def change(model):
        model.trunk.register_forward_hook(lambda module, args, output: function.apply(output))

    return change


def sparse(model):
    embedding = nn.Embedding(7, 4, sparse=True)
    nn.init.constant_(embedding.weight, 0.3)
    model.trunk.insert(0, embedding.double())
    model.inputs = lambda step: torch.tensor([[1], [3], [1], [6], [2]]) % (5 - step)
    model.features = lambda x: dict.fromkeys(TASKS, model.trunk(x[:, 0]))


def tied(model):
    def features(x):
        z = model.trunk(x)
        return {task: z + model.trunk[0].weight[:6].sum(1) for task in TASKS}

    model.features = features


def compiled(model):
    model.trunk = torch.compile(model.trunk, backend="aot_eager")


def moved(**options):
    """Makes a step of MAO."""

    def make_step(model):
        optimizer = eq.MAO(model.parameters(), TASKS, lr=0.01, eps=1e-2, **options)

        def step(index):
            optimizer.zero_grad()
            optimizer.backward(model.losses(index))
            optimizer.step()
            return tensors({"model": dict(model.state_dict())})

        return step

    return make_step


class Batches:
    """Counts how often several tasks are taken through a graph together."""

    def __init__(self, monkeypatch):
        self.count, self._vmap = 0, torch.vmap
        monkeypatch.setattr(torch, "vmap", self)

    def __call__(self, *arguments, **options):
        self.count += 1
        return self._vmap(*arguments, **options)


@pytest.fixture
def batches(monkeypatch):
    return Batches(monkeypatch)


UNBATCHABLE = {
    "a number": with_function(NeedsValues),
    "a function without a rule": with_function(CallsAnother),
    "writing in place": with_function(WritesInPlace),
    "sparse": sparse,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", UNBATCHABLE)
def test_what_cannot_be_batched_goes_one_by_one_and_is_not_tried_again(case, way, batches):
    expected = run(UNBATCHABLE[case], balanced(**ONE_BY_ONE))
    assert batches.count == 0
    ways = []
    found = run(UNBATCHABLE[case], balanced(ways, **WAYS[way]), steps=2)
    assert_close(found, expected, 1e-10)
    assert batches.count == 1
    first, second = ways
    if way == "layers":
        assert first.startswith("rows, not layers (The tasks cannot go through the graph together: ")
        assert second.startswith(first.removesuffix(")"))
    else:
        assert first.startswith("rows: one after the other: ")
        assert second == first


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", UNBATCHABLE)
def test_mao_takes_what_cannot_be_batched_one_by_one(case, batches):
    expected = run(UNBATCHABLE[case], moved(chunk_size=1))
    assert_close(run(UNBATCHABLE[case], moved(chunk_size=4)), expected, 1e-10)
    assert batches.count == 1


@pytest.mark.filterwarnings("error:equipoise")
def test_compiled_graphs_go_one_by_one(batches):
    torch._dynamo.reset()
    expected = run(lambda model: None, balanced(**ONE_BY_ONE))
    for name, options in WAYS.items():
        ways = []
        assert_close(renamed(run(compiled, balanced(ways, **options))), expected, 1e-10)
        asked = ", not layers (torch.compile made the graph)" if name == "layers" else ""
        why = "on a CPU more gain nothing" if name == "layers" else "torch.compile made the graph"
        assert ways == [f"rows{asked}: one after the other: {why}"] * 2
    assert batches.count == 0


def renamed(found):
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in found.items()}


@pytest.mark.parametrize("way", WAYS)
def test_where_tasks_do_not_part_above_what_they_share(way, batches):
    expected, ways = run(tied, balanced(**ONE_BY_ONE)), []
    assert_close(run(tied, balanced(ways, **WAYS[way])), expected, 1e-10)
    if way == "layers":
        assert ways == ["layers"] * 2
    else:
        assert ways[0].startswith("rows: one after the other: a task's graph is not apart above")
        assert batches.count == 0


@pytest.mark.parametrize("options", [{"engine": "layers"}, {"engine": "rows", "chunk_size": 4}])
def test_a_part_that_cannot_be_batched_may_come_into_play_later(options):
    """Say with a task that had no label before, or where depth is random."""

    def change(model):
        model.trunk.register_forward_hook(
            lambda module, args, output: NeedsValues.apply(output) if args[0].sum() > 0 else output
        )
        model.inputs = lambda step: torch.full((5, 4), float(2 * (step > 1) - 1), dtype=torch.float64)

    ways = []
    found = run(change, balanced(ways, **options), steps=4)
    assert_close(found, run(change, balanced(**ONE_BY_ONE), steps=4), 1e-10)
    assert ways[1] in ("layers", "rows: chunk_size=4")
    assert "together" in ways[2] or "one after the other" in ways[2]
