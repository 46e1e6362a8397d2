"""Run by torchrun: each rank trains on its part of the samples under a monitor, and writes down what it recorded."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from networks import TASKS, Network, batch
from torch.nn.parallel import DistributedDataParallel

import equipoise as eq

NAMES = ["ew", "imtl-g", "mao"]
PRESENT = [("abc", "abc"), ("ab", "bc"), ("abc", "c"), ("abc", "abc")]
"""The tasks labelled on the first and on the second rank, for each step."""


class Losses(torch.nn.Module):
    """Computes the losses in its forward pass, as DistributedDataParallel wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network().double()

    def forward(self, x, tasks):
        return self.network.losses(x, tasks)


def train(name, parts, part, wrapped, folder):
    """Trains on all parts together, or on one of them among several ranks; returns the samples."""
    model = Losses()
    trained = DistributedDataParallel(model, find_unused_parameters=True) if wrapped else model
    method = eq.make_method(name, trained, TASKS, lr=0.02, weight_decay=0.01)
    path = folder / f"{name}-{parts}-{wrapped}.jsonl"
    monitor = eq.BalanceMonitor(method, trained, every=2, writers=path)
    for index, present in enumerate(PRESENT):
        mine = [part] if parts > 1 else [0, 1]
        losses, counts = {}, {}
        for which in mine:
            for task, loss in trained(batch(10 * index + which), present[which]).items():
                losses[task] = losses.get(task, 0) + 6 * loss
                counts[task] = counts.get(task, 0) + 6
        method.backward({task: loss / counts[task] for task, loss in losses.items()}, counts=counts)
        method.step()
        method.zero_grad()
    return monitor.recording.layers, monitor.records


def main(folder):
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    found = {
        f"{name} {wrapped}": train(name, size, rank, wrapped, folder) for name in NAMES for wrapped in (False, True)
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # threads of PyTorch's that are still there can abort an interpreter that cleans up
