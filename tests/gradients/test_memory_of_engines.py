"""Whichever way a step takes: graphs are released, and what it gives is memory of its own."""

from __future__ import annotations

import pytest
import torch
from architectures import TASKS, make
from torch import nn
from ways import WAYS

import equipoise as eq


@pytest.mark.parametrize("case", ["mlp", "tied", "partly shared"])
@pytest.mark.parametrize("chunk_size", [1, 3, 4])
def test_the_graph_is_released(chunk_size, case):
    """In the first step, which does not know yet whether tasks can go together, as in later ones."""
    model, balancer = make(case), eq.Balancer(TASKS, aggregator=eq.MGDA(), engine="rows", chunk_size=chunk_size)
    for step in range(2):
        losses = model.losses(step)
        balancer.backward(losses)
        for loss in losses.values():
            with pytest.raises(RuntimeError, match="a second time"):
                loss.backward(retain_graph=True)


class Kept(torch.autograd.Function):
    """`x`, whose second input's gradient is a tensor that somebody else holds."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, kept):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx, gradient):
        return gradient, ctx.saved_tensors[0], None


def keeping(model):
    model.kept, model.weight = torch.full((3,), 2.0, dtype=torch.float64), nn.Parameter(torch.zeros(3).double())
    model.trunk.register_forward_hook(lambda module, args, output: Kept.apply(output, model.weight, model.kept))


def waiting_rows(model, chunk_size, kind):
    """The rows that wait after a micro-batch, and what goes on with them."""
    if kind == "mao":
        optimizer = eq.MAO(model.parameters(), TASKS, chunk_size=chunk_size)
        optimizer.backward(model.losses(0))
        return optimizer._pending.rows, optimizer.step
    balancer = eq.Balancer(TASKS, aggregator=eq.MGDA(), chunk_size=chunk_size)
    balancer.backward(model.losses(0), accumulate=True)
    return balancer._balancing.rows.waiting.micro_batches.rows, lambda: balancer.backward(model.losses(1))


@pytest.mark.parametrize("kind", ["balancer", "mao"])
@pytest.mark.parametrize("chunk_size", [1, 3, 4])
def test_what_waits_is_nobody_elses_and_no_larger_than_it_has_to_be(chunk_size, kind):
    model = make("mlp")
    keeping(model)
    rows, _ = waiting_rows(model, chunk_size, kind)
    every = [gradient for row in rows.values() for gradient in row.values()]
    places = {gradient.untyped_storage().data_ptr() for gradient in every}
    assert len(places) == len(every)
    assert model.kept.untyped_storage().data_ptr() not in places
    assert all(gradient.untyped_storage().nbytes() == gradient.nbytes for gradient in every)
    assert all((row[model.weight] == 2).all() for row in rows.values())


@pytest.mark.parametrize("way", [*WAYS, None])
def test_grad_is_nobody_elses(way):
    model = make("mlp")
    keeping(model)
    eq.Balancer(TASKS, aggregator=eq.CAGrad(), **(WAYS[way] if way else {})).backward(model.losses(0))
    places = [p.grad.untyped_storage().data_ptr() for p in model.parameters()]
    assert len(set(places)) == len(places)
    assert model.kept.untyped_storage().data_ptr() not in places
    assert all(p.grad.untyped_storage().nbytes() == p.grad.nbytes for p in model.parameters())
