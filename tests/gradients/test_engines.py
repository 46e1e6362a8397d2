"""Whichever way a step takes through the graphs, its numbers are those of one backward pass a task."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from architectures import ARCHITECTURES, TASKS, make
from torch import nn
from torch.utils.checkpoint import checkpoint
from ways import ONE_BY_ONE, WAYS, assert_close, balanced, gradients_of, run, tensors

import equipoise as eq

WITHIN = {torch.float64: 1e-10, torch.float32: 1e-5}
METHODS = {
    "pcgrad": eq.PCGrad,
    "mgda": eq.MGDA,
    "cagrad": eq.CAGrad,
    "nash-mtl": eq.NashMTL,
    "imtl-g": eq.IMTLG,
    "gradnorm": eq.GradNorm,
}


class Recording:
    """Keeps the Gramian that an aggregator is given."""

    def __init__(self, aggregator):
        self.gramians = []
        self._solved = aggregator.solved
        aggregator.solved = self

    def __call__(self, gramian, *arguments):
        self.gramians.append(gramian.clone())
        return self._solved(gramian, *arguments)


def shared_gramian(model, losses):
    """The Gramian from a backward pass a task, on the leaves that two or more reach."""
    parameters = list(model.parameters())
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses.values()]
    columns = [column for column in zip(*rows, strict=True) if sum(g is not None for g in column) > 1]
    matrix = torch.stack(
        [
            torch.cat(
                [
                    (torch.zeros_like(next(g for g in column if g is not None)) if column[k] is None else column[k])
                    .flatten()
                    .double()
                    for column in columns
                ]
            )
            for k in range(len(rows))
        ]
    )
    return matrix @ matrix.T


def trained(architecture, method, dtype, **options):
    """What two steps come to: gradients, weights, state; the Gramians, and what they are by hand; and the ways."""
    model = make(architecture, dtype)
    balancer = eq.Balancer(TASKS, aggregator=METHODS[method](), **options)
    recording = Recording(balancer.aggregator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    found, by_hand, ways = {}, [], set()
    for step in range(2):
        torch.manual_seed(step)
        losses = model.losses(step)
        if options == ONE_BY_ONE:
            by_hand.append(shared_gramian(model, losses))
        optimizer.zero_grad()
        weights = balancer.backward(losses)
        ways.add(balancer.way)
        found |= tensors({f"gradients {step}": gradients_of(model), f"weights {step}": weights})
        optimizer.step()
    state = balancer.state_dict()
    state.pop("_extra_state")
    return found | tensors({"model": dict(model.state_dict()), "state": dict(state)}), recording.gramians, by_hand, ways


@cache
def one_by_one(architecture, method, dtype):
    found, gramians, by_hand, ways = trained(architecture, method, dtype, **ONE_BY_ONE)
    assert ways == {"rows: chunk_size=1"}
    assert_gramians(gramians, by_hand, WITHIN[dtype])
    return found, by_hand


def assert_gramians(found, expected, within):
    for gramian, by_hand in zip(found, expected, strict=True):
        assert (gramian - by_hand).abs().max() <= within * by_hand.abs().max()


EVERY = [(way, dtype) for way in WAYS for dtype in WITHIN if way != "rows, 3 at once" or dtype == torch.float64]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("way", "dtype"), EVERY)
def test_numbers_are_those_of_a_backward_pass_a_task(way, dtype, architecture, method):
    found, gramians, _, ways = trained(architecture, method, dtype, **WAYS[way])
    if architecture == "forward a task":
        asked = ", not layers (the tasks' graphs merge at parameters alone)" if way == "layers" else ""
        why = "on a CPU more gain nothing" if way == "layers" else "no two tasks share a part of the graph"
        assert ways == {f"rows{asked}: one after the other: {why}"}
    elif way == "layers":
        assert ways == {"layers"}
    else:
        assert ways == {f"rows: chunk_size={WAYS[way]['chunk_size']}"}
    expected, by_hand = one_by_one(architecture, method, dtype)
    assert_gramians(gramians, by_hand, WITHIN[dtype])
    assert_close(found, expected, WITHIN[dtype])


def moved_by_mao(architecture, dtype, chunk_size):
    model = make(architecture, dtype)
    optimizer = eq.MAO(model.parameters(), TASKS, lr=0.01, eps=1e-2, chunk_size=chunk_size)
    for step in range(2):
        torch.manual_seed(step)
        optimizer.backward(model.losses(step))
        optimizer.step()
        optimizer.zero_grad()
    moments = {
        name: {key: value for key, value in optimizer.state[p].items() if "avg" in key}
        for name, p in model.named_parameters()
    }
    return tensors({"model": dict(model.state_dict()), "state": moments})


@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("chunk_size", [3, len(TASKS)])
def test_mao_moves_by_the_same(chunk_size, architecture, dtype):
    assert_close(moved_by_mao(architecture, dtype, chunk_size), moved_by_mao(architecture, dtype, 1), WITHIN[dtype])


def checkpointed(model):
    inner = nn.Sequential(model.trunk, nn.Dropout(0.5), nn.Linear(6, 6).double())
    model.trunk = nn.Sequential(inner[2])
    model.inner = inner
    model.features = lambda x: dict.fromkeys(TASKS, checkpoint(inner, x, use_reentrant=False))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("way", WAYS)
def test_activation_checkpointing_with_dropout(way):
    assert_close(run(checkpointed, balanced(**WAYS[way])), run(checkpointed, balanced(**ONE_BY_ONE)), 1e-10)


def missing(model, balancer, index):
    every = model.losses(index)
    return balancer.backward({task: every[task] for task in ("bd" if index == 0 else TASKS)})


def not_positive(model, balancer, index):
    losses = model.losses(index)
    losses["b"] = losses["b"] - 100
    return balancer.backward(losses)


def scaled(model, balancer, index):
    return balancer.backward(model.losses(index), scaler=torch.amp.GradScaler("cpu", init_scale=8.0))


def retained(model, balancer, index):
    losses = model.losses(index)
    balancer.backward(losses, retain_graph=True)
    return balancer.backward(losses)


def untrained_inputs(model, balancer, index):
    x = model.inputs(index).requires_grad_()
    model.inputs = lambda step: x
    weights = balancer.backward(model.losses(index))
    del model.inputs
    return weights | {"inputs": x.grad}


def frozen(model, balancer, index):
    model.trunk[0].weight.requires_grad_(False)
    return balancer.backward(model.losses(index))


def gradients_there(model, balancer, index):
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return balancer.backward(model.losses(index))


def hooks(model, balancer, index):
    called = []
    changed = [
        model.trunk[0].weight.register_hook(lambda g: -2 * g),
        model.trunk[2].bias.register_hook(lambda g: None),
        model.trunk[2].register_full_backward_hook(lambda _, into, __: tuple(2 * g for g in into)),
        model.trunk[0].bias.register_post_accumulate_grad_hook(called.append),
    ]
    weights = balancer.backward(model.losses(index))
    for handle in changed:
        handle.remove()
    assert called == [model.trunk[0].bias]
    return weights


def hook_at_the_cut(model, balancer, index):
    handle = model.trunk.register_forward_hook(lambda _, __, output: output.register_hook(lambda g: -3 * g) and None)
    weights = balancer.backward(model.losses(index))
    handle.remove()
    return weights


def micro_batches(model, balancer, index):
    balancer.backward(model.losses(index + 5), accumulate=True)
    return balancer.backward(model.losses(index))


def micro_batches_counted(model, balancer, index):
    balancer.backward(model.losses(index + 5), accumulate=True, counts={"a": 1, "b": 2, "c": 0, "d": 4})
    return balancer.backward(model.losses(index), counts=dict.fromkeys(TASKS, 2))


SITUATIONS = [
    missing,
    not_positive,
    scaled,
    retained,
    untrained_inputs,
    frozen,
    gradients_there,
    hooks,
    hook_at_the_cut,
    micro_batches,
    micro_batches_counted,
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.filterwarnings("ignore:equipoise")
def test_in_every_situation(situation, way):
    def steps(options):
        model = make("partly shared")
        balancer = eq.Balancer(TASKS, eq.EMA(), eq.CAGrad(), **options)
        found = {}
        for index in range(2):
            model.zero_grad()
            weights = situation(model, balancer, index)
            found |= tensors({f"gradients {index}": gradients_of(model), f"weights {index}": weights})
        return found | tensors({"state": {n: v for n, v in balancer.state_dict().items() if "_extra_state" not in n}})

    assert_close(steps(WAYS[way]), steps(ONE_BY_ONE), 1e-10)


def test_hooks_that_are_not_linear_see_every_row():
    def clipped(model):
        model.trunk[0].weight.register_hook(lambda g: g.clamp(-0.01, 0.01))
        model.trunk[1].register_full_backward_hook(lambda _, into, __: tuple(g / g.norm() for g in into))

    expected = run(clipped, balanced(**ONE_BY_ONE))
    assert_close(run(clipped, balanced(engine="rows", chunk_size=4)), expected, 1e-10)
