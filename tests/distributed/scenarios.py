"""Training as one process does it and as several ranks do it, on the same samples."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import equipoise as eq

TASKS = ("a", "b", "c")
POTENTIALS = {"a": 0.9, "b": 0.6, "c": 0.8}
METRICS = {"a": 0.5, "b": 0.3, "c": 0.7}
SCALES = {"a": 1.0, "b": 20.0, "c": 0.2}
SAMPLES = 16
STEPS = 5


class Network(nn.Module):
    """Tasks a and b share a branch, all three share the trunk. Sizes that do not divide by the number of ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh())
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.branch = nn.Linear(6, 5)
        self.heads = nn.ModuleDict({"a": nn.Linear(5, 1), "b": nn.Linear(5, 1), "c": nn.Linear(6, 1)})

    def forward(self, x):
        z = self.trunk(x)
        z = z + self.frozen(z).tanh()
        ab = self.branch(z).tanh()
        return {task: self.heads[task](z if task == "c" else ab).squeeze(1) for task in TASKS}


def network():
    torch.manual_seed(3)
    return Network().double()


VALIDATION = 1000


def samples(step):
    """Inputs, and for each task its targets."""
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(SAMPLES, 5, dtype=torch.float64, generator=generator)
    return x, {task: x @ torch.randn(5, dtype=torch.float64, generator=generator) for task in TASKS}


def labelled(pattern, step, task):
    """Which samples have a label of the task. The samples' quarters are those of 4 ranks, their halves of 2."""
    index, quarter = TASKS.index(task), SAMPLES // 4
    quarters = torch.arange(SAMPLES) // quarter
    mask = torch.ones(SAMPLES, dtype=torch.bool)
    if pattern == "some":  # different numbers on each rank, none of them 0
        mask = torch.rand(SAMPLES, generator=torch.Generator().manual_seed(10 * step + index)) < 0.6
        mask[::2] |= torch.arange(SAMPLES // 2) % 2 == 0
    elif pattern == "missing":  # different numbers on each rank, and none on some
        if step == 0:
            mask = (quarters != index) & ((quarters > 1) | (task != "b"))
        elif step == 1:
            mask &= (task != "c") & ((quarters < 2) | (task != "a"))  # c is labelled nowhere
        elif step == 2:
            mask &= (task != "c") | (quarters == 3)
        elif step == 3:
            mask = quarters < 2  # the other ranks have no label at all
    elif pattern == "halves":  # where there are labels, all ranks have as many: exact without counts
        if step == 0:
            mask = (quarters < 2) == (task == "a") if task != "c" else mask
        elif step == 1:
            mask &= task != "c"
        elif step == 2:
            mask = quarters >= 2
    return mask


def wrapped(model, kind):
    """The model as it is (`plain`), in DistributedDataParallel, or sharded; a word after `-` says how."""
    kind, _, how = kind.partition("-")
    if kind == "ddp":
        return DistributedDataParallel(model, find_unused_parameters=how == "unused", static_graph=how == "static")
    if kind == "fsdp":
        mesh = (
            init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("copies", "shards"))
            if how == "hybrid"
            else None
        )
        if how in ("nested", "kept"):
            for module in (model.trunk[0], model.trunk[2], model.branch, *model.heads.values()):
                fully_shard(module, reshard_after_forward=how == "nested")
        fully_shard(model, mesh=mesh, reshard_after_forward=how != "kept")
    return model


class Trainer:
    """Trains with one method: as rank `part` of `parts`, or alone, which is what the others are compared with."""

    def __init__(self, name, kind="plain", optimizer="adamw", counts=True, micro=1, parts=1, part=0, **options):
        self.name, self.kind, self.counts, self.micro, self.parts, self.part = name, kind, counts, micro, parts, part
        self.model = wrapped(network(), kind)
        torch.manual_seed(7 + 100 * part)  # ranks need not be seeded alike
        potentials = POTENTIALS if name.startswith("amtl") else None
        self.method = eq.make_method(
            name, self.model, TASKS, lr=0.02, weight_decay=0.01, potentials=potentials, **options
        )
        if optimizer == "sgd" and self.method.balancer is not None:
            groups = [{"params": group["params"]} for group in self.method.optimizer.param_groups]
            self.method.optimizer = torch.optim.SGD(groups, 0.02, momentum=0.9)

    def train(self, steps, pattern):
        for index in steps:
            self.step(index, pattern)
            self.method.end_epoch(self.metrics(index))
        return self

    def step(self, index, pattern):
        self.method.zero_grad()
        if self.method.needs_validation_losses:
            with torch.no_grad():
                validation, counts = self.losses(index + VALIDATION, pattern, 0)
            if validation or self.parts > 1:
                self.method.observe_validation(validation, counts)
        for micro in range(self.micro):
            losses, counts = self.losses(index, pattern, micro)
            accumulate = micro < self.micro - 1
            local = self.model.no_sync() if accumulate and self.kind == "ddp-nosync" else nullcontext()
            with local:
                if losses or self.parts > 1:
                    self.weights = self.method.backward(losses, accumulate=accumulate, counts=counts)
        self.method.step()
        if self.method.needs_after_step:
            with torch.no_grad():
                self.method.after_step(self.losses(index, pattern, self.micro - 1)[0])

    def losses(self, index, pattern, micro):
        """The losses of a micro-batch, and counts if they are used."""
        x, targets = samples(index)
        mine = self.samples_of(micro)
        masks = {task: labelled(pattern, index, task)[mine] for task in TASKS}
        outputs = self.model(x[mine])
        counts = {task: int(mask.sum()) for task, mask in masks.items()}
        losses = {
            task: SCALES[task] * (outputs[task] - targets[task][mine])[masks[task]].square().mean() + 0.01
            for task in TASKS
            if counts[task]
        }
        if self.kind.startswith("fsdp"):  # where every rank has to run every task's backward pass
            losses |= {task: outputs[task].sum() * 0 for task in TASKS if not counts[task]}
        if not self.counts:
            return {task: loss / self.micro for task, loss in losses.items()}, None
        return losses, {task: counts[task] for task in losses}

    def samples_of(self, micro):
        """This rank's samples in a micro-batch; the ranks' together are those of the process that trains alone."""
        place = torch.arange(SAMPLES)
        in_micro = place % (SAMPLES // 4) // (SAMPLES // 4 // self.micro) == micro
        return place[in_micro & (place // (SAMPLES // self.parts) == self.part)]

    def metrics(self, index):
        """Accuracies as this rank measures them; over the ranks that give them they average to `METRICS`."""
        if index == 1:  # the first rank alone measures
            return METRICS if self.part == 0 else None
        shift = 0.0 if self.parts == 1 else 0.1 * (self.part / (self.parts - 1) - 0.5)
        return {task: value + shift for task, value in METRICS.items()}

    def parameters(self):
        found = [p.full_tensor() if isinstance(p, DTensor) else p for p in self.model.parameters()]
        if self.method.balancer is not None:
            found += self.method.balancer.parameters()
        return [p.detach().clone() for p in found]

    def states(self):
        return [] if self.method.balancer is None else [b.double() for b in self.method.balancer.buffers()]


def difference(found, expected):
    """The largest relative difference of any tensor: its norm against that of what is expected."""
    return max(float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in zip(found, expected, strict=True))


def alike_on_all_ranks(tensors):
    flat = torch.cat([t.double().flatten() for t in tensors]) if tensors else torch.zeros(1).double()
    first = flat.clone()
    dist.broadcast(first, 0)
    return torch.equal(first, flat)
