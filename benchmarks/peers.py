"""What people would use instead: TorchJD, LibMTL, and AdaTask's and MTAdam's optimizers as their papers give them."""

from __future__ import annotations

import copy
import random
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torchjd.aggregation as torchjd
from torch import Tensor, nn
from torchjd.autogram import Engine
from torchjd.autojac import jac_to_grad, mtl_backward
from workloads import Workload

# LibMTL 1.1.5 imports a module that torchvision no longer has, for a function that is not used here.
_removed = types.ModuleType("torchvision.models.utils")
_removed.load_state_dict_from_url = torch.hub.load_state_dict_from_url  # type: ignore[attr-defined]
sys.modules.setdefault(_removed.__name__, _removed)
import LibMTL.weighting as libmtl  # noqa: E402

Step = Callable[[], object]

TORCHJD: dict[str, Callable[[int], nn.Module]] = {
    "imtl-g": lambda tasks: torchjd.IMTLG(),
    "mgda": lambda tasks: torchjd.MGDA(),
    "pcgrad": lambda tasks: torchjd.PCGrad(),
    "graddrop": lambda tasks: torchjd.GradDrop(),
    "cagrad": lambda tasks: torchjd.CAGrad(c=0.5),
    "nash-mtl": lambda tasks: torchjd.NashMTL(n_tasks=tasks),
}
"""Our name → TorchJD's aggregator for a number of tasks."""

LIBMTL: dict[str, tuple[str, dict[str, Any]]] = {
    "ew": ("EW", {}),
    "rlw": ("RLW", {"dist": "Normal"}),
    "uw": ("UW", {}),
    "gls": ("GLS", {}),
    "imtl": ("IMTL", {}),
    "mgda": ("MGDA", {"mgda_gn": "none"}),
    "pcgrad": ("PCGrad", {}),
    "cagrad": ("CAGrad", {"calpha": 0.5, "rescale": 1}),
}
"""Our name → LibMTL's class and the arguments of its `backward`."""


def torchjd_step(workload: Workload, name: str, parallel: bool) -> Step:
    """TorchJD: forward, `mtl_backward`, `jac_to_grad`; all tasks differentiated at once by vmap, or one by one."""
    model = workload.model
    aggregator = TORCHJD[name](len(workload.tasks))
    shared = list(model.trunk.parameters())

    def step() -> None:
        model.zero_grad()
        representation = workload.representation()
        losses = list(workload.losses(representation).values())
        mtl_backward(losses, features=representation, parallel_chunk_size=None if parallel else 1)
        jac_to_grad(shared, aggregator)

    return step


def torchjd_gradients(workload: Workload, parallel: bool) -> Step:
    """TorchJD's task gradients, kept: what `mtl_backward` leaves for an aggregator. MAO's backward is beside it."""
    model = workload.model

    def step() -> None:
        model.zero_grad()
        representation = workload.representation()
        losses = list(workload.losses(representation).values())
        mtl_backward(losses, features=representation, parallel_chunk_size=None if parallel else 1)
        for parameter in model.trunk.parameters():
            del parameter.jac  # type: ignore[attr-defined]

    return step


def autogram_step(workload: Workload, name: str) -> Step:
    """TorchJD's autogram: the Gramian by its engine, weights, and a weighted backward pass.

    The engine puts hooks on the trunk's modules, so that this is on a copy. `batch_dim=None` is what losses that are
    means over the batch, and batch normalisation, take. (The heads get the weighted gradient, too, not their own.)
    """
    workload = copy.deepcopy(workload)
    engine = Engine(workload.model.trunk, batch_dim=None)
    weighting = TORCHJD[name](len(workload.tasks)).gramian_weighting

    def step() -> None:
        workload.model.zero_grad()
        losses = torch.stack(list(workload.losses(workload.representation()).values()))
        losses.backward(weighting(engine.compute_gramian(losses)))

    return step


def libmtl_step(workload: Workload, name: str) -> Step:
    """LibMTL: its weighting's `backward`, on the trunk as shared parameters; without its trainer."""
    class_name, arguments = LIBMTL[name]
    model = workload.model
    weighting = getattr(libmtl, class_name)()
    weighting.task_num = len(workload.tasks)
    weighting.task_name = workload.tasks
    weighting.device = workload.inputs.device
    weighting.rep_grad = False
    weighting.epoch = 0
    weighting.get_share_params = model.trunk.parameters
    weighting.zero_grad_share_params = lambda: model.trunk.zero_grad(set_to_none=False)
    weighting.init_param()
    random.seed(0)
    np.random.seed(0)

    def step() -> None:
        model.zero_grad(set_to_none=False)
        losses = workload.losses(workload.representation())
        weighting.backward(torch.stack(list(losses.values())), **arguments)

    return step


class AdaTask:
    """AdaTask (Yang et al., AAAI 2023): Adam's moments per task, updated in a loop over tasks and parameters."""

    def __init__(self, parameters: Iterable[Tensor], tasks: int, lr: float = 1e-3) -> None:
        self.parameters, self.lr, self.steps = list(parameters), lr, 0
        self.first = [[torch.zeros_like(p) for p in self.parameters] for _ in range(tasks)]
        self.second = [[torch.zeros_like(p) for p in self.parameters] for _ in range(tasks)]

    @torch.no_grad()
    def step(self, gradients: Iterable[tuple[Tensor, ...]]) -> None:
        """Takes each task's gradients and moves the parameters by the sum of the tasks' Adam updates."""
        self.steps += 1
        for row, first, second in zip(gradients, self.first, self.second, strict=True):
            for p, g, m, v in zip(self.parameters, row, first, second, strict=True):
                m.mul_(0.9).add_(g, alpha=0.1)
                v.mul_(0.999).addcmul_(g, g, value=0.001)
                denominator = (v / (1 - 0.999**self.steps)).sqrt().add_(1e-8)
                p.addcdiv_(m / (1 - 0.9**self.steps), denominator, value=-self.lr)


class MTAdam:
    """MTAdam (Malkiel & Wolf, EMNLP 2021).

    Per layer each task's gradient is first scaled to the running norm of the first task's; the moments are per task,
    and all tasks are divided by the largest second moment.
    """

    def __init__(self, parameters: Iterable[Tensor], tasks: int, lr: float = 1e-3) -> None:
        self.parameters, self.lr, self.steps = list(parameters), lr, 0
        self.norms = [[torch.ones((), device=p.device) for p in self.parameters] for _ in range(tasks)]
        self.first = [[torch.zeros_like(p) for p in self.parameters] for _ in range(tasks)]
        self.second = [[torch.zeros_like(p) for p in self.parameters] for _ in range(tasks)]

    @torch.no_grad()
    def step(self, gradients: Iterable[tuple[Tensor, ...]]) -> None:
        """Takes each task's gradients and moves the parameters."""
        self.steps += 1
        rows = list(gradients)
        for index, p in enumerate(self.parameters):
            largest = torch.zeros_like(p)
            for row, norms, first, second in zip(rows, self.norms, self.first, self.second, strict=True):
                norms[index].mul_(0.9).add_(row[index].norm(), alpha=0.1)
                g = row[index] * (self.norms[0][index] / (norms[index] + 1e-8))
                first[index].mul_(0.9).add_(g, alpha=0.1)
                second[index].mul_(0.999).addcmul_(g, g, value=0.001)
                largest = torch.maximum(largest, second[index])
            denominator = (largest / (1 - 0.999**self.steps)).sqrt().add_(1e-8)
            for first in self.first:
                p.addcdiv_(first[index] / (1 - 0.9**self.steps), denominator, value=-self.lr)
