"""Accelerate and Fabric where they wrap the model in FullyShardedDataParallel (FSDP1), with one rank on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from integrations.loops import TASKS, Model, loader, losses_of
from torch import nn

import equipoise as eq

pytest.importorskip("accelerate")
pytest.importorskip("lightning")
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from lightning.fabric.strategies import FSDPStrategy

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_rank")]


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    AcceleratorState._reset_state(True)


def by_accelerate(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """It chooses FSDP on accelerators alone: here it is told that it has."""
    accelerator = Accelerator(cpu=True)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=1, cpu_ram_efficient_loading=False)
    return accelerator.prepare(Model())


def by_fabric(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """It gives FSDP the index of an accelerator."""
    monkeypatch.setattr(FSDPStrategy, "root_device", SimpleNamespace(index=torch.device("cpu")))
    return FSDPStrategy().setup_module(Model())


WRAPS = pytest.mark.parametrize("wrap", [by_accelerate, by_fabric])
SCALARS: dict[str, Callable[[nn.Module], Callable[..., torch.Tensor]]] = {
    "aggregator": lambda model: eq.Balancer(TASKS, eq.EMA(), eq.PCGrad()),
    "mao": lambda model: eq.MAO(model.parameters(), TASKS).loss,
    "given the model": lambda model: eq.Balancer(TASKS, eq.EMA(), model=model),
}


@pytest.mark.parametrize("name", SCALARS)
@WRAPS
def test_the_error_says_what_works(wrap: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrap(monkeypatch)
    (x,) = next(iter(loader()))
    losses = losses_of(model(x), x)
    with pytest.raises(ValueError, match=r"FullyShardedDataParallel.*use .*fully_shard \(FSDP2\).*or the scalar of an"):
        SCALARS[name](model)(losses).backward()
    assert all(p.grad is None for p in model.parameters())
    sum(losses.values()).backward()  # the graph is still there


@WRAPS
def test_an_objective_by_its_scalar_works(wrap: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found, plain = [], Model()
    model = wrap(monkeypatch)
    for each, way in ((model, "loss"), (plain, "backward")):
        balancer = eq.Balancer(TASKS, eq.EMA())
        for (x,) in list(loader())[:2]:
            losses = losses_of(each(x), x)
            balancer(losses).backward() if way == "loss" else balancer.backward(losses)
        found.append(torch.cat([p.grad.flatten() for p in each.parameters()]))
    torch.testing.assert_close(*found)
