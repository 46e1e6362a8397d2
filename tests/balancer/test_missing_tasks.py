"""Tasks that a step's losses leave out."""

import torch
from balancer.by_hand import Recorder, assert_gradients, gramian_by_hand, shared_names, task_gradients_by_hand, weighted
from networks import TASKS, Network, batch

import equipoise as eq


def test_missing_tasks_leave_the_rest_as_if_alone():
    model = Network().double()
    rows = task_gradients_by_hand(model, batch(0), ["a", "c"])
    aggregator = Recorder([0.3, -2.0])
    weights = eq.Balancer(TASKS, aggregator=aggregator).backward(model.losses(batch(0), ["a", "c"]))
    trunk = ["trunk.weight", "trunk.bias"]
    given = {"a": 0.3, "c": -2.0}
    expected = {
        name: weighted(rows, name, given if name in trunk else dict.fromkeys(TASKS, 1.0))
        for name in dict.fromkeys(name for row in rows.values() for name in row)
    }
    assert_gradients(model, expected)
    assert list(weights) == ["a", "c"]
    torch.testing.assert_close(aggregator.gramians[0], gramian_by_hand(rows, trunk), rtol=1e-9, atol=1e-12)


def test_once_shared_always_shared():
    model = Network().double()
    balancer = eq.Balancer(TASKS, aggregator=Recorder([0.5, 0.5, 0.5]))
    balancer.backward(model.losses(batch(0)))
    model.zero_grad()
    rows = task_gradients_by_hand(model, batch(1), ["a"])["a"]
    balancer.backward(model.losses(batch(1), ["a"]))
    shared = shared_names(model)
    assert_gradients(model, {name: (0.5 if name in shared else 1.0) * g for name, g in rows.items()})


def test_tasks_that_share_nothing_may_be_alone_in_a_step():
    """Only a step in which every task is present shows that nothing is shared."""
    model = Network().double()
    balancer = eq.Balancer(TASKS, aggregator=eq.IMTLG())
    rows = task_gradients_by_hand(model, batch(0), ["b"])["b"]
    balancer.backward(model.losses(batch(0), ["b"]))
    assert_gradients(model, rows)
