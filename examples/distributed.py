"""Training on many devices: on one machine, or on several, with labels missing on some of the ranks.

    torchrun --nproc-per-node 2 examples/distributed.py
    torchrun --nproc-per-node 2 examples/distributed.py --shard --method mao --checkpoint runs/houses
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 examples/distributed.py

The last command is given on each of two machines with 8 devices, HOST being one of them. `--shard` takes `fully_shard`
(FSDP2) in place of DistributedDataParallel. With `--checkpoint`, a run that is started again goes on where the folder's
checkpoint left off, on any number of ranks, sharded or not.
"""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import equipoise as eq

TASKS = ("price", "year")


class Houses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU())
        self.heads = nn.ModuleDict({task: nn.Linear(64, 1) for task in TASKS})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x)
        return {task: head(z).squeeze(1) for task, head in self.heads.items()}


def houses(count: int) -> TensorDataset:
    """Features, labels and which labels are known: every price, and one year in twenty."""
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, 8, generator=generator)
    labels = torch.stack([x[:, :3].sum(1).tanh(), (x[:, 2:6].sum(1) * x[:, 0]).tanh()], 1)
    known = torch.rand(count, 2, generator=generator) < torch.tensor([1.0, 0.05])
    return TensorDataset(x, labels * known, known)


def main(method_name: str, shard: bool, epochs: int, checkpoint: Path | None) -> float:
    device = torch.device("cuda", dist.get_node_local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.manual_seed(0)
    model = Houses().to(device)
    if shard:
        fully_shard(model.trunk)
        fully_shard(model)
    else:
        model = DistributedDataParallel(model)
    method = eq.make_method(method_name, model, TASKS, lr=2e-3)

    # The checkpoint: one module of all that has a state, and the optimizer.
    parts = nn.ModuleDict({"model": model} | ({"balancer": method.balancer} if method.balancer else {}))
    done = torch.zeros(())

    def state() -> dict:
        modules, optimizer = get_state_dict(parts, method.optimizer)
        return {"modules": modules, "optimizer": optimizer, "epochs": done}

    if checkpoint is not None and (checkpoint / ".metadata").exists():
        saved = state()
        dcp.load(saved, checkpoint_id=checkpoint, planner=dcp.DefaultLoadPlanner(allow_partial_load=True))
        set_state_dict(parts, method.optimizer, model_state_dict=saved["modules"], optim_state_dict=saved["optimizer"])

    data = houses(2048)
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=16, sampler=sampler)
    for epoch in range(int(done), epochs):
        sampler.set_epoch(epoch)
        for x, labels, known in loader:
            counts = eq.count_labels(dict(zip(TASKS, known.unbind(1), strict=True)))
            x, labels, known = x.to(device), labels.to(device), known.to(device)
            outputs = model(x)
            losses = {
                task: eq.masked_mean((outputs[task] - labels[:, i]).square(), known[:, i])
                for i, task in enumerate(TASKS)
            }
            method.backward(losses, counts=counts)  # on most ranks, most batches have no year
            method.step()
            method.zero_grad()
        method.end_epoch()
        done += 1
    if checkpoint is not None:
        dcp.save(state(), checkpoint_id=checkpoint)

    x, labels, known = (tensor.to(device) for tensor in houses(1000).tensors)
    with torch.no_grad():
        error = (model(x)["price"] - labels[:, 0]).square().mean().item()
    if dist.get_rank() == 0:
        print(f"{dist.get_world_size()} ranks, {int(done)} epochs: squared error of the price {error:.6f}")
    return error


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", default="pcgrad")
    parser.add_argument("--shard", action="store_true")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--checkpoint", type=Path)
    given = parser.parse_args()
    dist.init_process_group()
    main(given.method, given.shard, given.epochs, given.checkpoint)
    dist.destroy_process_group()
