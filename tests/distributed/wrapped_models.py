"""Checks of models in wrappers: found, sharded, and partly outside of them."""

from __future__ import annotations

import copy

import pytest
import torch
from checking import BOUND, alone, check, gradients, losses_of, mine, one_process
from scenarios import STEPS, TASKS, Trainer, difference, network, wrapped
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.torch_version import TorchVersion

import equipoise as eq


@check()
def wrapped_models_are_found_without_being_given(rank, size, checkpoints):
    for kind in ("ddp", "fsdp", "fsdp-kept"):
        for part in (None, "shared"):
            model, twin = wrapped(network(), kind), network()
            trunk = {} if part is None else {"shared": [*model.parameters()][:4]}
            same = {} if part is None else {"shared": [*twin.parameters()][:4]}
            balancer = eq.Balancer(TASKS, eq.EMA(), eq.CAGrad(), **trunk)
            one = eq.Balancer(TASKS, eq.EMA(), eq.CAGrad(), **same, process_group=alone())
            for step in range(2):
                weights = balancer.backward(losses_of(model, step, mine(rank, size)))
                expected = one.backward(losses_of(twin, step))
            assert difference(gradients(model), gradients(twin)) < BOUND
            assert difference(weights.values(), expected.values()) < BOUND
            assert all(isinstance(p.grad, DTensor) == (kind != "ddp") for p in model.parameters() if p.grad is not None)


@check()
def fully_shard_needs_every_task_on_every_rank(rank, size, checkpoints):
    for name in ("ema", "pcgrad", "mao"):
        model = wrapped(network(), "fsdp-nested")
        method = eq.make_method(name, model, TASKS)
        losses = losses_of(model, 0, mine(rank, size))
        left = {task: loss for task, loss in losses.items() if task != "c" or rank != 1}
        with pytest.raises(ValueError, match=r"'c' is left out of losses on rank 1.*count 0"):
            method.backward(left)
        method.backward(losses)


@check()
def fully_shard_in_an_old_pytorch(rank, size, checkpoints):
    """It cannot gather parameters twice in one backward pass; one pass is no problem."""
    for name in ("pcgrad", "mao", "ew"):
        model = wrapped(network(), "fsdp")
        method = eq.make_method(name, model, TASKS)
        losses = losses_of(model, 0, mine(rank, size))
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(torch, "__version__", TorchVersion("2.6.0+cu124"))
            if name == "ew":
                method.backward(losses)
                continue
            with pytest.raises(RuntimeError, match=r"PyTorch 2\.7 or later; this is 2\.6\.0"):
                method.backward(losses)
        assert not gradients(model)


@check()
def moments_are_sharded_like_their_parameters(rank, size, checkpoints):
    trainer = Trainer("mao", "fsdp-nested", parts=size, part=rank).train(range(2), "missing")
    for parameter, state in trainer.method.optimizer.state.items():
        moments = [value for key, value in state.items() if key != "step"]
        assert moments
        assert isinstance(parameter, DTensor)
        assert all(m.placements == parameter.placements and m.shape == parameter.shape for m in moments)
        assert all(m.to_local().shape == parameter.to_local().shape for m in moments)


@check()
def graphs_kept_under_fully_shard_give_the_same_again(rank, size, checkpoints):
    for name in ("ema", "cagrad", "mao"):
        for how in ("fsdp-nested", "fsdp-kept"):
            model, twin = wrapped(network(), how), network()
            method = eq.make_method(name, model, TASKS)
            one = eq.make_method(name, twin, TASKS, process_group=alone())
            losses, whole = losses_of(model, 0, mine(rank, size)), losses_of(twin)
            for keep in (True, True, False):
                method.backward(losses, retain_graph=keep)
                one.backward(whole, retain_graph=keep)
            method.step()
            one.step()
            found = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
            assert difference(found, twin.parameters()) < BOUND


@check()
def a_model_sharded_over_one_rank(rank, size, checkpoints):
    group = alone()
    mesh = DeviceMesh.from_group(group, "cpu")
    for name in ("uw", "graddrop", "pcgrad", "mao"):
        one = one_process(name, range(STEPS), "some", micro=2)
        trainer = Trainer(name, micro=2, process_group=group)
        fully_shard(trainer.model, mesh=mesh)
        torch.manual_seed(7)
        trainer.method = eq.make_method(name, trainer.model, TASKS, lr=0.02, weight_decay=0.01, process_group=group)
        trainer.train(range(STEPS), "some")
        assert difference(trainer.parameters(), one.parameters()) < BOUND


@check()
def parameters_outside_the_wrapper_are_averaged_too(rank, size, checkpoints):
    """A trunk in a wrapper, heads outside."""
    for kind in ("ddp", "fsdp"):
        for aggregator in (None, eq.CAGrad()):
            model, twin = network(), network()
            model.trunk = (
                nn.parallel.DistributedDataParallel(model.trunk) if kind == "ddp" else fully_shard(model.trunk)
            )
            balancer = eq.Balancer(TASKS, None, aggregator, model=model)
            one = eq.Balancer(TASKS, None, copy.deepcopy(aggregator), model=twin, process_group=alone())
            for step in range(2):
                balancer.backward(losses_of(model, step, mine(rank, size)))
                one.backward(losses_of(twin, step))
            assert difference(gradients(model), gradients(twin)) < BOUND
