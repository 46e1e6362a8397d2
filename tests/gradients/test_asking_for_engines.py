"""Engines are asked for, said to be taken or not, and refused where they do not fit."""

from __future__ import annotations

import copy
import pickle

import pytest
from architectures import TASKS, make
from torch import nn

import equipoise as eq


def test_where_layers_are_asked_for_and_cannot_be(monkeypatch):
    model, balancer = make("mlp"), eq.Balancer(TASKS, aggregator=eq.MGDA(), engine="layers")
    balancer.backward(model.losses(0), accumulate=True)
    assert balancer.way.startswith("rows, not layers (there are micro-batches): ")
    balancer.backward(model.losses(0))
    assert balancer.way.startswith("rows, not layers (there are micro-batches): ")
    balancer.backward({"a": model.losses(0)["a"]})
    assert balancer.way == "rows, not layers (there is one task): one task"
    monkeypatch.setattr(type(balancer.ranks), "active", True)
    balancer.backward(model.losses(0))
    assert balancer.way.startswith("rows, not layers (there are several ranks): ")
    monkeypatch.undo()
    balancer.backward(model.losses(0))
    assert balancer.way == "layers"
    assert "way='layers'" in repr(balancer)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"engine": "columns"}, "'columns'"),
        ({"engine": "layers"}, "no aggregator"),
        ({"engine": "layers", "aggregator": eq.GradDrop()}, "GradDrop"),
        ({"engine": "layers", "aggregator": eq.MGDA(), "probe": nn.Linear(1, 1)}, "a probe"),
    ],
)
def test_engine_that_does_not_fit(options, found):
    with pytest.raises(ValueError, match=f"(?s)engine.*{found}"):
        eq.Balancer(TASKS, **options)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_methods_are_made_with_them_and_copies_keep_them(again):
    model = make("mlp")
    method = eq.make_method("mgda", model, TASKS, engine="layers", chunk_size=3)
    model, method = again((model, method))
    method.backward(model.losses(0))
    assert method.balancer.way == "layers"
    method.zero_grad()
    method.backward(model.losses(0), accumulate=True)
    assert method.balancer.way.endswith(": chunk_size=3")
    mao = again(eq.make_method("mao", model, TASKS, chunk_size=3)).optimizer
    assert mao._batching.chunk_size == 3
    assert mao._reader._batching is mao._batching


@pytest.mark.parametrize("name", ["mao", "single:a", "uw", "graddrop"])
def test_methods_without_a_gramian_have_no_layers(name):
    with pytest.raises(ValueError, match="engine"):
        eq.make_method(name, make("mlp"), TASKS, engine="layers")
    eq.make_method(name, make("mlp"), TASKS, engine="rows", chunk_size=2)
    with pytest.raises(ValueError, match="chunk_size"):
        eq.make_method(name, make("mlp"), TASKS, chunk_size=0)
    with pytest.raises(ValueError, match="engine"):
        eq.make_method(name, make("mlp"), TASKS, engine="columns")
