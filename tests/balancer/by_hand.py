"""What a step should give, from one forward and backward pass a task; and an aggregator that remembers."""

import torch
from networks import TASKS, gradients

import equipoise as eq


class Recorder(eq.GramianAggregator):
    """Fixed weights by position; remembers what it was shown."""

    def __init__(self, weights):
        super().__init__()
        self.given = weights
        self.gramians = []
        self.losses = []

    def weights(self, gramian, losses):
        self.gramians.append(gramian)
        self.losses.append(losses)
        return gramian.new_tensor(self.given[: len(losses)])


def task_gradients_by_hand(model, x, tasks=TASKS):
    """{task: {name: gradient}}, each from a forward and backward pass of its own."""
    result = {}
    for task in tasks:
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(model.losses(x, [task])[task], list(named.values()), allow_unused=True)
        result[task] = {name: g for name, g in zip(named, found, strict=True) if g is not None}
    return result


def gramian_by_hand(rows, names):
    flat = [
        torch.cat([row[n].flatten() if n in row else torch.zeros_like(some(rows, n)).flatten() for n in names])
        for row in rows.values()
    ]
    return torch.tensor([[float(one @ other) for other in flat] for one in flat], dtype=torch.float64)


def some(rows, name):
    return next(row[name] for row in rows.values() if name in row)


def weighted(rows, name, weights):
    """`Σ_k w_k g_k` of a parameter, over the tasks that reach it."""
    return sum(weights[task] * row[name] for task, row in rows.items() if name in row)


def shared_names(model):
    shared = set(model.shared())
    return [name for name, p in model.named_parameters() if p in shared]


def assert_gradients(model, expected, **tolerance):
    found = {name: g for name, g in gradients(model).items() if g is not None}
    assert set(found) == set(expected)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], **(tolerance or {"rtol": 1e-10, "atol": 1e-12}))
