"""Checks of the scalar that balances: on all ranks' samples together, as `backward` does."""

from __future__ import annotations

import pytest
import torch
from checking import BOUND, alone, check, gradients, losses_of, mine
from scenarios import TASKS, difference, network, wrapped

import equipoise as eq


@check()
def scalars_balance_over_ranks(rank, size, checkpoints):
    """An objective's by way of the wrapper's averages, an aggregator's and MAO's by themselves; labels unevenly."""
    rows = mine(rank, size)
    counts = {task: 1 + (rank + index) % 2 for index, task in enumerate(TASKS)}
    for name, kind in [
        ("uw", "ddp"),
        ("ema", "fsdp"),
        ("ema", "ddp"),
        ("pcgrad", "ddp"),
        ("imtl", "plain"),
        ("mao", "ddp"),
    ]:
        model, twin = wrapped(network(), kind), network()
        torch.manual_seed(0)
        method = eq.make_method(name, model, TASKS, lr=0.02)
        torch.manual_seed(0)
        one = eq.make_method(name, twin, TASKS, lr=0.02, process_group=alone())
        total = {task: sum(1 + (r + index) % 2 for r in range(size)) for index, task in enumerate(TASKS)}
        for step in range(2):
            for by in (method, one):
                by.zero_grad()
            loss = method.loss(losses_of(model, step, rows), counts)
            (loss / 4).backward()
            # the same on one process: every rank's losses, weighed with its share of the samples
            parts = [losses_of(twin, step, mine(r, size)) for r in range(size)]
            weighed = {
                task: sum((1 + (r + index) % 2) / total[task] * part[task] for r, part in enumerate(parts))
                for index, task in enumerate(TASKS)
            }
            expected = one.loss(weighed)
            (expected / 4).backward()
            assert abs(float(loss.detach() / expected.detach()) - 1) < 1e-6  # float32
            if name != "mao":
                assert difference(gradients(model), gradients(twin)) < 1e-6
            for by in (method, one):
                by.step()
        found = [p.full_tensor() if kind == "fsdp" else p for p in model.parameters()]
        assert difference([p.detach() for p in found], [p.detach() for p in twin.parameters()]) < 1e-5


@check(2)
def scalars_under_fully_shard_say_what_to_do(rank, size, checkpoints):
    for name in ("pcgrad", "mao"):
        model = wrapped(network(), "fsdp-nested")
        method = eq.make_method(name, model, TASKS)
        losses = losses_of(model, 0, mine(rank, size))
        with pytest.raises(ValueError, match=r"fully_shard does not allow: call backward\(losses\)"):
            method.loss(losses)
        method.backward(losses)


@check(2)
def a_rank_without_a_label_has_a_scalar_too(rank, size, checkpoints):
    model, twin = network(), network()
    balancer = eq.Balancer(TASKS, eq.EMA(), eq.IMTLG(), model=model)
    one = eq.Balancer(TASKS, eq.EMA(), eq.IMTLG(), process_group=alone())
    losses = losses_of(model, 0) if rank == 0 else {}
    balancer(losses).backward()
    one(losses_of(twin, 0)).backward()
    assert difference(gradients(model), gradients(twin)) < BOUND
