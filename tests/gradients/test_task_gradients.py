import pytest
import torch
from networks import TASKS, Network, batch, gradients

import equipoise as eq


def test_equals_autograd_task_by_task():
    model = Network()
    parameters = list(model.parameters())
    trainable = [p for p in parameters if p.requires_grad]
    found = eq.task_gradients(model.losses(batch(0)), trainable)
    assert list(found) == list(TASKS)
    for task in TASKS:
        expected = torch.autograd.grad(model.losses(batch(0))[task], trainable, allow_unused=True)
        for one, other in zip(found[task], expected, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)
    assert any(gradient is None for gradient in found["a"])


def test_leaves_grad_alone():
    model = Network()
    eq.task_gradients(model.losses(batch(0)), model.trunk.parameters())
    assert all(gradient is None for gradient in gradients(model).values())


def test_takes_activations_too():
    model = Network()
    z = model.trunk(batch(0)).tanh()
    found = eq.task_gradients({"sum": z.sum(), "square": z.square().sum()}, [z])
    assert torch.equal(found["sum"][0], torch.ones_like(z))
    torch.testing.assert_close(found["square"][0], 2 * z.detach())


def test_frees_the_graph_unless_told_not_to():
    model = Network()
    losses = model.losses(batch(0))
    first = eq.task_gradients(losses, model.shared(), retain_graph=True)
    second = eq.task_gradients(losses, model.shared())
    for task in TASKS:
        for one, other in zip(first[task], second[task], strict=True):
            assert (one is None and other is None) or torch.equal(one, other)
    with pytest.raises(RuntimeError, match="second time"):
        eq.task_gradients(losses, model.shared())


@pytest.mark.parametrize(
    ("losses", "error", "words"),
    [
        ({}, ValueError, "empty"),
        (torch.ones((), requires_grad=True), TypeError, "mapping"),
        ({"a": 1.0}, TypeError, "'a' must be a tensor, found float"),
        ({"a": torch.ones(3, requires_grad=True)}, ValueError, r"'a'.*\(3,\).*mean"),
        ({"a": torch.ones(())}, ValueError, "'a' has no graph"),
    ],
)
def test_errors(losses, error, words):
    with pytest.raises(error, match=words):
        eq.task_gradients(losses, [torch.ones(3, requires_grad=True)])


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        (Network().trunk.weight, TypeError, "found a tensor: put it in a list"),
        (None, TypeError, "params must be a module or an iterable of parameters, found None"),
        ([3], ValueError, "params must be .* found 3 among them"),
    ],
)
def test_what_are_no_parameters_is_refused(params, error, words):
    with pytest.raises(error, match=words):
        eq.task_gradients(Network().losses(batch(0)), params)


def test_a_module_stands_for_its_parameters():
    model = Network()
    losses = model.losses(batch(0))
    found = eq.task_gradients(losses, model.trunk, retain_graph=True)
    expected = eq.task_gradients(losses, model.trunk.parameters())
    for task in TASKS:
        for one, other in zip(found[task], expected[task], strict=True):
            assert torch.equal(one, other)


def test_frozen_parameters_get_none():
    free, frozen = torch.ones(2, requires_grad=True), torch.ones(2)
    found = eq.task_gradients({"a": (free * frozen).sum(), "b": free.square().sum()}, [frozen, free])
    assert [row[0] for row in found.values()] == [None, None]
    torch.testing.assert_close(found["b"][1], torch.tensor([2.0, 2.0]))
