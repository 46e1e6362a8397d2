"""Checks of going on from what was saved: by each rank, and in distributed checkpoints."""

from __future__ import annotations

import torch
import torch.distributed.checkpoint as dcp
from checking import BOUND, check, one_process
from scenarios import STEPS, Trainer, difference
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import equipoise as eq

SAVED = ("ema", "uw", "imtl", "pcgrad", "mao")


@check()
def resuming_is_not_to_have_stopped(rank, size, checkpoints):
    """Bit for bit, in new objects, from files, with labels missing in the first step after."""
    for kind in ("plain", "ddp"):
        for name in [*eq.list_methods(), "single:b"] if size == 2 and kind == "plain" else SAVED:
            straight = Trainer(name, kind, parts=size, part=rank).train(range(5), "missing")
            first = Trainer(name, kind, parts=size, part=rank).train(range(2), "missing")
            path = checkpoints / f"{size}-{rank}-resume.pt"
            torch.save([first.model.state_dict(), first.method.state_dict()], path)
            second = Trainer(name, kind, parts=size, part=rank)
            torch.rand(rank + 1)  # new processes have other random states
            model, method = torch.load(path, weights_only=True)
            second.model.load_state_dict(model)
            second.method.load_state_dict(method)
            second.train(range(2, 5), "missing")
            assert all(map(torch.equal, straight.parameters(), second.parameters())), (kind, name)
            assert all(map(torch.equal, straight.states(), second.states())), (kind, name)


def whole(trainer):
    """What is saved: one module that holds the model and, where there is one, the Balancer."""
    parts = {"model": trainer.model} | (
        {} if trainer.method.balancer is None else {"balancer": trainer.method.balancer}
    )
    return nn.ModuleDict(parts), trainer.method.optimizer


def save(trainer, path):
    model, optimizer = get_state_dict(*whole(trainer))
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=path)


def load(trainer, path):
    model, optimizer = get_state_dict(*whole(trainer))
    state = {"model": model, "optimizer": optimizer}
    dcp.load(state, checkpoint_id=path, planner=dcp.DefaultLoadPlanner(allow_partial_load=True))
    set_state_dict(*whole(trainer), model_state_dict=state["model"], optim_state_dict=state["optimizer"])


@check(4)
def a_distributed_checkpoint_is_saved(rank, size, checkpoints):
    for name in SAVED:
        for kind in ("fsdp-nested", "ddp"):
            save(Trainer(name, kind, parts=size, part=rank).train(range(2), "missing"), checkpoints / f"{name}-{kind}")


@check(2)
def a_distributed_checkpoint_goes_on_with_fewer_ranks(rank, size, checkpoints):
    for name in SAVED:
        one = one_process(name, range(STEPS), "missing")
        for saved in ("fsdp-nested", "ddp"):
            for kind in ("fsdp", "plain"):
                trainer = Trainer(name, kind, parts=size, part=rank)
                load(trainer, checkpoints / f"{name}-{saved}")
                trainer.train(range(2, STEPS), "missing")
                assert (
                    difference([*trainer.parameters(), *trainer.states()], [*one.parameters(), *one.states()]) < BOUND
                )
                if name == "mao":
                    kept = [set(state) for state in trainer.method.optimizer.state.values()]
                    expected = [set(state) for state in one.method.optimizer.state.values()]
                    assert kept == expected
