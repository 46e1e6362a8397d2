"""DeepSpeed's ZeRO-1 and 2 with the scalar, on two processes without a GPU: the numbers of one process.

DeepSpeed compiles its communication the first time, and takes long to import: it is not among what the tests install.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import TASKS, Network, batch
from torch import Tensor

import equipoise as eq

METHODS: dict[str, tuple[Any, Any]] = {"ema": (eq.EMA, None), "uw": (eq.UW, None), "mgda": (None, eq.MGDA)}
STEPS, RANKS = 3, 2


class Model(Network):
    forward = Network.losses


def make(name: str) -> tuple[Model, eq.Balancer, torch.optim.Optimizer | None]:
    """The model, and a Balancer whose learned weights have an optimizer of their own."""
    objective, aggregator = (None if part is None else part() for part in METHODS[name])
    balancer = eq.Balancer(TASKS, objective, aggregator)
    learned = list(balancer.parameters())
    return Model(), balancer, torch.optim.AdamW(learned, lr=0.02, weight_decay=0.0) if learned else None


def trained(model: torch.nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def one_process(name: str) -> list[Tensor]:
    model, balancer, own = make(name)
    optimizer = torch.optim.AdamW(trained(model), lr=0.02, weight_decay=0.0)
    for index in range(STEPS):
        balancer(model(batch(index))).backward()
        for each in (optimizer, own):
            if each is not None:
                each.step()
                each.zero_grad()
    return [p.detach() for p in trained(model)]


def one_of_several(rank: int, folder: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), DS_ACCELERATOR="cpu")
    import deepspeed

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder / 'meeting'}", rank=rank, world_size=RANKS)
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    found = {}
    for name in METHODS:
        for stage in (1, 2):
            model, balancer, own = make(name)
            optimizer = torch.optim.AdamW(trained(model), lr=0.02, weight_decay=0.0)
            engine = deepspeed.initialize(
                model=model,
                optimizer=optimizer,
                config={
                    "train_micro_batch_size_per_gpu": 3,
                    "gradient_clipping": 0.0,  # DeepSpeed's default is 1
                    "zero_optimization": {"stage": stage},
                    "zero_allow_untested_optimizer": True,
                },
            )[0]
            for index in range(STEPS):
                engine.backward(balancer(engine(batch(index).chunk(RANKS)[rank])))
                engine.step()
                if own is not None:
                    own.step()
                    own.zero_grad()
            found[name, stage] = [p.detach().clone() for p in trained(model)]
    if rank == 0:
        torch.save(found, folder / "found.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_zero_1_and_2(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    torch.multiprocessing.spawn(one_of_several, (tmp_path,), nprocs=RANKS)
    found = torch.load(tmp_path / "found.pt")
    for name in METHODS:
        expected = one_process(name)
        for stage in (1, 2):
            torch.testing.assert_close(found[name, stage], expected, rtol=1e-5, atol=1e-6)
