"""The check that several processes do what one does on the concatenated batch."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Sequence
from queue import Empty
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from equipoise.testing._comparing import assert_near
from equipoise.testing._subject import TASKS, Network, Subject, batch

WORLD_SIZE = 2
STEPS = 3


def check_ranks(subject: Subject) -> None:
    """Two processes under DistributedDataParallel (gloo) learn what one process learns from both batches.

    What makes the method has to be importable, as for any process that is spawned.
    """
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = context.Queue()
    processes = [context.Process(target=_rank, args=(subject, rank, port, queue)) for rank in range(WORLD_SIZE)]
    for process in processes:
        process.start()
    try:
        found = _answers(queue, processes)
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    errors = [result for result in found if isinstance(result, str)]
    assert not errors, errors[0]
    model, method = subject.make(dtype=torch.float64)
    for index in range(STEPS):
        _step(model, model, method, torch.cat([_share(index, rank) for rank in range(WORLD_SIZE)]))
    for state in found:
        there = {name: torch.from_numpy(value) for name, value in state.items()}
        what = "two processes do not learn what one learns from both batches"
        assert_near(there, model.state_dict(), what, rtol=1e-8, atol=1e-10)


def _answers(queue: Any, processes: Sequence[Any]) -> list[Any]:
    """What each process tells, as soon as all have, or one has ended without."""
    found: list[Any] = []
    while len(found) < len(processes):
        try:
            found.append(queue.get(timeout=1))
        except Empty:
            codes = [process.exitcode for process in processes]
            assert not any(codes), f"a process ended with exit code {max(code or 0 for code in codes)} and said nothing"
    return found


class _Losses(torch.nn.Module):
    """The network with its losses as its forward pass, for DistributedDataParallel to wrap."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.network.losses(x, TASKS)


def _share(index: int, rank: int) -> Tensor:
    return batch(WORLD_SIZE * index + rank)


def _step(losses_of: Any, network: Network, method: Any, x: Tensor) -> None:
    def losses() -> Any:
        return losses_of.losses(x) if losses_of is network else losses_of(x)

    if method.needs_validation_losses:
        with torch.no_grad():
            method.observe_validation(losses())
    method.zero_grad()
    method.backward(losses())
    method.step()
    if method.needs_after_step:
        with torch.no_grad():
            method.after_step(losses())


def _rank(subject: Subject, rank: int, port: int, queue: Any) -> None:
    """One process: trains on its share and tells its parameters, or what went wrong."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        torch.distributed.init_process_group("gloo", rank=rank, world_size=WORLD_SIZE)
        network = Network().double()
        network.unused.requires_grad_(False)
        wrapped = DistributedDataParallel(_Losses(network))
        _, method = subject.make(model=network)
        for index in range(STEPS):
            _step(wrapped, network, method, _share(index, rank))
        queue.put({name: value.numpy() for name, value in network.state_dict().items()})
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    except Exception as error:
        queue.put(f"rank {rank}: {type(error).__name__}: {error}")
