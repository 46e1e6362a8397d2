"""The ways that a step can take through the graphs, and what steps by any of them come to."""

from __future__ import annotations

import torch
from architectures import TASKS, make
from torch import Tensor

import equipoise as eq

WAYS = {
    "layers": {"engine": "layers"},
    "rows, 3 at once": {"engine": "rows", "chunk_size": 3},
    "rows, all at once": {"engine": "rows", "chunk_size": len(TASKS)},
}
ONE_BY_ONE = {"engine": "rows", "chunk_size": 1}


class NeedsValues(torch.autograd.Function):
    """Its backward pass looks at a number, which `torch.vmap` has none of."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (2 if gradient.sum().item() > 1e9 else 3)


def tensors(tree, path=""):
    """All tensors of nested mappings and sequences, by path; numbers as tensors, too."""
    if isinstance(tree, Tensor):
        return {path: tree.detach().clone()}
    if isinstance(tree, dict):
        tree = list(tree.items())
    elif isinstance(tree, list | tuple):
        tree = list(enumerate(tree))
    elif isinstance(tree, float):
        return {path: torch.tensor(tree)}
    else:
        return {}
    return {name: tensor for key, value in tree for name, tensor in tensors(value, f"{path}/{key}").items()}


def assert_close(found, expected, within):
    """Every tensor, measured by the largest entry of all of its kind: some gradients are 0 but for rounding."""
    assert list(found) == list(expected)
    scales: dict[str, float] = {}
    for name, tensor in expected.items():
        kind = name.split("/")[1]
        scales[kind] = max(scales.get(kind, 0.0), tensor.double().abs().max().item())
    for name, tensor in expected.items():
        off = (found[name].double() - tensor.double()).abs().max().item()
        assert off <= within * scales[name.split("/")[1]], f"{name} is off by {off}"


def run(change, make_step, steps=2):
    torch.manual_seed(2)
    model = make("mlp")
    change(model)
    step, found = make_step(model), {}
    for index in range(steps):
        torch.manual_seed(index)
        found |= {f"/{index}{name}": tensor for name, tensor in step(index).items()}
    return found


def gradients_of(model):
    return {name: p.grad.to_dense() for name, p in model.named_parameters() if p.grad is not None}


def balanced(ways=None, aggregator=eq.MGDA, **options):
    """Makes a step that gives gradients."""

    def make_step(model):
        balancer = eq.Balancer(TASKS, aggregator=aggregator(), **options)

        def step(index):
            model.zero_grad()
            weights = balancer.backward(model.losses(index))
            if ways is not None:
                ways.append(balancer.way)
            return tensors({"gradients": gradients_of(model), "weights": weights})

        return step

    return make_step
