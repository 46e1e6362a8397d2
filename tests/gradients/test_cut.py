"""Rows and gradients are those of separate backward passes, wherever the graphs of the losses merge."""

from __future__ import annotations

import pytest
import torch
from merging_graphs import (
    CASES,
    DTYPE,
    Parts,
    Scaled,
    hook_on_the_trunks_output,
    pyramid,
    random_graph,
    retained,
    trunk_and_heads,
)
from torch import Tensor, nn

import equipoise as eq
from equipoise.aggregators import GramianAggregator
from equipoise.gradients.graph.cut import Cut
from equipoise.gradients.graph.walk import Graph

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def separate_rows(build):
    """Each loss's gradients from a graph of its own."""
    count = len(build(Parts())[0])
    rows = []
    for index in range(count):
        p = Parts()
        losses, _ = build(p)
        trained = {name: value for name, value in p.parameters.items() if value.requires_grad}
        found = torch.autograd.grad(losses[index], list(trained.values()), allow_unused=True)
        rows.append({name: g for name, g in zip(trained, found, strict=True) if g is not None})
    return rows


def assert_rows(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, gradient in one.items():
            torch.testing.assert_close(gradient, other[name], **CLOSE, msg=lambda m, name=name: f"{name}: {m}")


def names_of(losses):
    return [f"task {index}" for index in range(len(losses))]


def rows_by_mao(build, retain_graph=False, **options):
    p = Parts()
    losses, _ = build(p)
    names = {value: name for name, value in p.parameters.items()}
    tasks = names_of(losses)
    optimizer = eq.MAO([value for value in names if value.requires_grad], tasks)
    optimizer.backward(dict(zip(tasks, losses, strict=True)), retain_graph=retain_graph, **options)
    rows = optimizer._pending.rows
    return [{names[leaf]: g for leaf, g in rows.get(task, {}).items()} for task in tasks]


class Weighed(GramianAggregator):
    """Weights that are easy to tell apart, whatever the Gramian, which it keeps."""

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        self.seen = gramian.clone()
        return torch.arange(1.0, len(gramian) + 1, dtype=gramian.dtype)


def by_statistics(build, probe=None, representation=False, **options):
    """`.grad` by name, and the Gramian, of a step with its statistics at a place."""
    p = Parts()
    losses, at = build(p)
    tasks = names_of(losses)
    aggregator = Weighed()
    probe = None if probe is None else [p.parameters[name] for name in probe]
    balancer = eq.Balancer(tasks, aggregator=aggregator, probe=probe, **options)
    more = {"representation": at} if representation else {}
    balancer.backward(dict(zip(tasks, losses, strict=True)), **more)
    return {name: value.grad for name, value in p.parameters.items() if value.grad is not None}, aggregator.seen


def weighed(rows, shared):
    total = {}
    taking = [any(name in shared for name in row) for row in rows]  # who shares nothing takes no part
    for index, row in enumerate(rows):
        for name, gradient in row.items():
            part = gradient * (sum(taking[: index + 1]) if name in shared else 1)
            total[name] = total[name] + part if name in total else part
    return total


def reached_by_two(rows):
    every = [name for row in rows for name in row]
    return {name for name in every if every.count(name) > 1}


def products(rows, names):
    rows = [row for row in rows if any(name in names for name in row)]
    shapes = {name: gradient.shape for row in rows for name, gradient in row.items()}
    flat = [[row.get(name, torch.zeros(shapes[name], dtype=DTYPE)).flatten() for name in names] for row in rows]
    matrix = torch.stack([torch.cat(row) if row else torch.zeros(1, dtype=DTYPE) for row in flat])
    return matrix @ matrix.T


@pytest.mark.parametrize("build", CASES)
def test_rows_are_those_of_separate_passes(build):
    expected = separate_rows(build)
    assert_rows(rows_by_mao(build), expected)
    assert_rows(rows_by_mao(build, retain_graph=True), expected)
    assert_rows(rows_by_mao(build, accumulate=False, counts=dict.fromkeys(names_of(expected), 2)), expected)


@pytest.mark.parametrize("options", [{"engine": "rows"}, {"engine": "layers"}, {"engine": "rows", "chunk_size": 2}])
@pytest.mark.parametrize("build", CASES)
def test_gradients_are_those_of_separate_passes(build, options):
    if build is retained and options["engine"] == "layers":
        pytest.skip("a retained .grad cannot hold several tasks at once (see gramian_by_layers)")
    expected = separate_rows(build)
    found, seen = by_statistics(build, **options)
    shared = reached_by_two(expected)
    assert_rows([found], [weighed(expected, shared)])
    torch.testing.assert_close(seen, products(expected, shared), **CLOSE)


@pytest.mark.parametrize("build", CASES)
def test_gradients_with_a_probe_are_those_of_separate_passes(build):
    expected = separate_rows(build)
    everywhere = [name for name in expected[0] if all(name in row for row in expected)]
    if not everywhere:
        pytest.skip("no parameter is reached by all")
    found, seen = by_statistics(build, probe=everywhere[:1])
    assert_rows([found], [weighed(expected, reached_by_two(expected))])
    torch.testing.assert_close(seen, products(expected, everywhere[:1]), **CLOSE)


def gradients_at(build, count):
    """Each loss's gradients at the representation, after what hooks there do."""
    rows = []
    for index in range(count):
        losses, at = build(Parts())
        found = torch.autograd.grad(losses[index], at, allow_unused=True)
        rows.append({str(k): g for k, g in enumerate(found) if g is not None})
    return rows


@pytest.mark.parametrize("build", [case for case in CASES if case(Parts())[1] is not None])
def test_gradients_with_a_representation_are_those_of_separate_passes(build):
    expected = separate_rows(build)
    p = Parts()
    _, at = build(p)
    if build is pyramid:
        with pytest.raises(ValueError, match="on the way from another one"):
            by_statistics(build, representation=True)
        return
    names = {value: name for name, value in p.parameters.items()}
    under = {names[leaf] for row in Graph(at).leaves for leaf in row}
    found, seen = by_statistics(build, representation=True)
    assert_rows([found], [weighed(expected, reached_by_two(expected) | under)])
    at_places = gradients_at(build, len(expected))
    torch.testing.assert_close(seen, products(at_places, {name for row in at_places for name in row}), **CLOSE)


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_rows_of_random_graphs(first):
    for seed in range(first, first + 20):
        build = random_graph(seed)
        expected = separate_rows(build)
        assert_rows(rows_by_mao(build), expected)
        shared = reached_by_two(expected)
        found, seen = by_statistics(build, probe=["trunk"])
        assert_rows([found], [weighed(expected, shared)])
        torch.testing.assert_close(seen, products(expected, ["trunk"]), **CLOSE)
        found, _ = by_statistics(build, representation=True)
        assert_rows([found], [weighed(expected, shared | {"trunk", "trunk bias"})])


def test_a_compiled_trunk():
    torch.compiler.reset()
    expected = separate_rows(trunk_and_heads)
    p = Parts()
    eq.MAO([torch.zeros(1, requires_grad=True)], ["a"])  # before the model is compiled
    trunk = torch.compile(p.layer, backend="aot_eager")

    def build(own):
        own.generator, own.parameters = p.generator, p.parameters
        z = trunk("trunk", own.input())
        return [own.head(name, z) for name in "abc"], [z]

    for _ in range(2):
        assert_rows(rows_by_mao(build), expected)
        for options in ({}, {"probe": ["trunk", "trunk bias"]}):
            for value in p.parameters.values():
                value.grad = None
            found, _ = by_statistics(build, **options)
            assert_rows([found], [weighed(expected, reached_by_two(expected))])
    torch.compiler.reset()


def test_what_is_retained_at_the_cut_is_the_sum_of_the_tasks():
    found = []
    for ours in (True, False):
        p = Parts()
        losses, (z,) = retained(p)
        if ours:
            eq.MAO(list(p.parameters.values()), names_of(losses)).backward(
                dict(zip(names_of(losses), losses, strict=True))
            )
        else:
            sum(losses).backward()
        found.append(z.grad)
    torch.testing.assert_close(*found, **CLOSE)


def test_hooks_run_once_a_task():
    """As documented: on parameters, on modules, and on tensors where the graphs meet, there with zeros before."""
    calls = {}

    def count(name):
        calls[name] = 0

        def hook(*given):
            gradient = given[-1][0] if isinstance(given[-1], tuple) else given[-1]
            calls[name] += bool(gradient.abs().sum() > 0)

        return hook

    p = Parts()
    trunk, head = p.module("trunk"), p.module("head")
    trunk[0].weight.register_hook(count("trunk parameter"))
    head[0].weight.register_hook(count("head parameter"))
    trunk.register_full_backward_hook(count("trunk"))
    head.register_full_backward_hook(count("head"))
    z = trunk(p.layer("first", p.input()))
    z.register_hook(count("tensor"))
    losses = [head(z).square().mean(), p.head("b", z), p.head("c", z)]
    eq.MAO(list(p.parameters.values()), names_of(losses)).backward(dict(zip(names_of(losses), losses, strict=True)))
    assert calls == {"trunk parameter": 3, "head parameter": 1, "tensor": 3, "trunk": 3, "head": 1}


def test_a_function_that_has_a_variable_is_no_leaf():
    weight, scale = (nn.Parameter(torch.ones(4, dtype=DTYPE)) for _ in range(2))
    z = Scaled.apply(weight * 1, scale)
    losses = [z.sum(), z.square().sum()]
    graph = Graph(losses)
    assert [set(row) for row in graph.leaves] == [{weight, scale}] * 2
    cut = Cut(graph)
    assert all(not any(leaf is scale or leaf is weight for leaf in row) for row in cut.above)


def test_where_the_graphs_are_cut():
    losses, (z,) = trunk_and_heads(Parts())
    for cut, last in ((Cut(Graph(losses)), [z.grad_fn]), (Cut(Graph(losses), in_turn=True), [])):
        assert [[edge.node for edge in row] for row in cut.edges] == [[z.grad_fn], [z.grad_fn], last]
    losses, (z,) = hook_on_the_trunks_output(Parts())
    assert [[edge.node for edge in row] for row in Cut(Graph(losses)).edges] == [[loss.grad_fn] for loss in losses]


def test_a_hook_that_only_looks_at_an_uncut_graph_sees_no_zeros():
    p = Parts()
    z = p.layer("trunk", p.input())
    own = p.layer("own", z)
    seen = []
    own.register_hook(lambda gradient: seen.append(float(gradient.abs().sum())))
    losses = {"a": p.head("a", own), "b": p.head("b", z)}
    eq.MAO(list(p.parameters.values()), losses).backward(losses)
    assert len(seen) == 1
    assert seen[0] > 0
