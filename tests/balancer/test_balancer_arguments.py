"""Arguments that a Balancer refuses."""

import math

import pytest
import torch
from networks import TASKS, Network, assert_same, batch, gradients, snapshot
from torch import nn

import equipoise as eq


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"tasks": []}, ValueError, "tasks is empty"),
        ({"tasks": "abc"}, TypeError, "single string 'abc'"),
        ({"tasks": ["a", "b", "a"]}, ValueError, "found twice: 'a'"),
        ({"tasks": ["a", 3]}, TypeError, "found 3 of type int"),
        ({"tasks": ["a", ""]}, ValueError, "must not be empty"),
        ({"tasks": ["a"], "objective": eq.EMA}, TypeError, r"a class needs to be called: EMA\(\)\.$"),
        ({"tasks": ["a"], "objective": eq.PCGrad()}, TypeError, r"Aggregators go into aggregator=\.$"),
        ({"tasks": ["a"], "aggregator": eq.EMA()}, TypeError, r"Objectives and weightings go into objective=\.$"),
        ({"tasks": None}, TypeError, "tasks must be a sequence of names, found None"),
        ({"tasks": ["a"], "model": [1]}, TypeError, r"model must be a torch.nn.Module, found \[1\]"),
        ({"tasks": ["a"], "shared": 3}, TypeError, "shared must be a module or an iterable of parameters, found 3"),
        ({"tasks": ["a"], "shared": []}, ValueError, "shared must be a module with parameters"),
        ({"tasks": ["a"], "shared": nn.ReLU()}, ValueError, "shared must be a module with parameters"),
        ({"tasks": ["a"], "shared": nn.Linear(1, 1).weight}, TypeError, "put it in a list"),
        ({"tasks": ["a"], "shared": ["weight"]}, ValueError, "shared must be"),
        ({"tasks": ["a"], "probe": nn.Linear(1, 1)}, ValueError, "probe needs an aggregator"),
        ({"tasks": ["a"], "aggregator": eq.GradDrop(), "probe": nn.Linear(1, 1)}, ValueError, "found GradDrop"),
        ({"tasks": ["a"], "objective": eq.Static({"b": 1.0})}, ValueError, "unknown task 'b'"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        eq.Balancer(**arguments)


def test_a_method_serves_one_set_of_tasks():
    method = eq.EMA()
    eq.Balancer(["a", "b"], method)
    with pytest.raises(ValueError, match=r"belongs to the tasks \['a', 'b'\].*make a new one"):
        eq.Balancer(["a", "c"], method)


@pytest.mark.parametrize("objective", [eq.Equal, eq.UW])
def test_counts_for_some_micro_batches_only_are_an_error_that_changes_nothing(objective):
    model = Network().double()
    balancer = eq.Balancer(TASKS, objective())
    balancer.backward(model.losses(batch(0)), accumulate=True)
    before = gradients(model)
    with pytest.raises(ValueError, match="for every micro-batch that is accumulated, or for none"):
        balancer.backward(model.losses(batch(1)), counts=dict.fromkeys(TASKS, 6))
    assert_same(gradients(model), before)
    assert all(parameter.grad is None for parameter in balancer.parameters())


@pytest.mark.parametrize("count", ["x", None, torch.ones(2), -1.0, math.inf])
def test_what_is_no_count_is_refused(count):
    model = Network()
    balancer = eq.Balancer(TASKS, eq.UW(), eq.MGDA())
    before = snapshot(model, balancer)
    with pytest.raises(ValueError, match=r"counts\['b'\] must be a finite number ≥ 0, found"):
        balancer.backward(model.losses(batch(0)), counts={"a": 1, "b": count, "c": 1})
    assert_same(snapshot(model, balancer), before)


def test_a_complex_loss_is_refused():
    loss = torch.ones((), dtype=torch.complex64, requires_grad=True)
    with pytest.raises(ValueError, match=r"'a' must be a real number, found torch\.complex64"):
        eq.Balancer(["a"]).backward({"a": loss})


@pytest.mark.parametrize("outer", [eq.WeightedSum, eq.GeometricMean])
@pytest.mark.parametrize("inner", [eq.UW(), None, eq.DWA])
def test_what_is_no_weighting_is_refused(outer, inner):
    with pytest.raises(TypeError, match="takes a Weighting instance"):
        outer(inner)
