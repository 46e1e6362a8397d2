"""The parts of a step by themselves: weights from a Gramian, and optimizer steps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from measure import interleave, make_turn, relative
from peers import TORCHJD, AdaTask, MTAdam
from workloads import Workload, make_workload

import equipoise as eq
from equipoise.bench.experiment.costs import peak_bytes

OURS = {
    "pcgrad": eq.PCGrad,
    "cagrad": eq.CAGrad,
    "mgda": eq.MGDA,
    "imtl-g": eq.IMTLG,
    "nash-mtl": eq.NashMTL,
}


def gramian_weights(rounds: int) -> list[dict[str, Any]]:
    """Times the weights from a K×K Gramian on the CPU, ours and TorchJD's, in milliseconds."""
    cpu = torch.device("cpu")
    rows = []
    for tasks in (3, 26, 40):
        generator = torch.Generator().manual_seed(0)
        jacobian = torch.randn(tasks, 1000, generator=generator, dtype=torch.float64)
        gramian = jacobian @ jacobian.T
        losses = torch.ones(tasks, dtype=torch.float64)
        steps = {}
        for name, make in OURS.items():
            aggregator = make()
            aggregator.bind([f"task{index}" for index in range(tasks)])
            steps[f"equipoise {name}"] = partial(aggregator.weights, gramian, losses)
            peer = TORCHJD[name](tasks)
            on_gramian = hasattr(peer, "gramian_weighting")  # Nash-MTL's takes the Jacobian
            steps[f"TorchJD {name}"] = (
                partial(peer.gramian_weighting, gramian) if on_gramian else partial(peer, jacobian)
            )
        turns = {name: make_turn(step, cpu, least=0.01) for name, step in steps.items()}
        times = interleave(turns, rounds, "equipoise imtl-g")
        rows += [
            {"name": name, "K": tasks, "milliseconds": 1000 * statistics.median(taken.own)}
            for name, taken in times.items()
        ]
    return rows


def optimizer_steps(device: torch.device, counts: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Times one optimizer step on ResNet-18 in fused AdamW steps, and K of them as the floor."""
    rows = []
    for tasks in counts:
        model = make_workload("resnet18", tasks, device).model.trunk
        parameters = list(model.parameters())
        gradients = {f"task{index}": tuple(torch.randn_like(p) for p in parameters) for index in range(tasks)}
        for p, g in zip(parameters, gradients["task0"], strict=True):
            p.grad = g.clone()
        adamw = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
        mao = eq.MAO(parameters, list(gradients), lr=1e-6)
        mao.backward(_linear(parameters, gradients))
        adatask, mtadam = AdaTask(parameters, tasks, lr=1e-6), MTAdam(parameters, tasks, lr=1e-6)
        steps = {
            "fused AdamW": adamw.step,
            "equipoise MAO": mao.step,
            "AdaTask's loop": partial(adatask.step, list(gradients.values())),
            "MTAdam's loop": partial(mtadam.step, list(gradients.values())),
        }
        turns = {name: make_turn(step, device, least=0.05) for name, step in steps.items()}
        times = interleave(turns, rounds, "fused AdamW")
        rows += [
            {
                "name": name,
                "K": tasks,
                "adamw": asdict(relative(taken.own, taken.reference)),
                "k_adamw": asdict(relative([seconds / tasks for seconds in taken.own], taken.reference)),
            }
            for name, taken in times.items()
        ]
    return rows


def training_steps(device: torch.device, tasks: int) -> list[dict[str, Any]]:
    """Times and weighs a whole training step on ResNet-18: equal weights with AdamW, MAO, and MAO that streams.

    Memory is in copies of the parameters, over what is held between steps: the model, moments, the batch.
    """
    steps, turns, moments = {}, {}, {}
    for name in ("equal weights, AdamW", "MAO", "MAO, streaming"):
        workload = make_workload("resnet18", tasks, device)
        parameters = list(workload.model.parameters())
        size = sum(p.numel() * p.element_size() for p in parameters)
        if name == "equal weights, AdamW":
            optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
        else:
            optimizer = eq.MAO(parameters, workload.tasks, lr=1e-6, streaming="streaming" in name)
        steps[name] = partial(_train, workload, optimizer)
        turns[name] = make_turn(steps[name], device, least=0.05)
        moments[name] = sum(v.numel() * v.element_size() for state in optimizer.state.values() for v in state.values())
    times = interleave(turns, 2, "equal weights, AdamW")
    return [
        {
            "name": name,
            "K": tasks,
            "ew": asdict(relative(times[name].own, times[name].reference)),
            "step": peak_bytes(step, device) / size,
            "moments": moments[name] / size,
        }
        for name, step in steps.items()
    ]


def _train(workload: Workload, optimizer: torch.optim.Optimizer) -> None:
    losses = workload.losses(workload.representation())
    if isinstance(optimizer, eq.MAO):
        optimizer.backward(losses)
    else:
        sum(losses.values()).backward()
    optimizer.step()
    optimizer.zero_grad()


def _linear(
    parameters: Sequence[torch.Tensor], gradients: dict[str, tuple[torch.Tensor, ...]]
) -> dict[str, torch.Tensor]:
    """Losses whose gradients are the given ones."""
    return {task: sum((p * g).sum() for p, g in zip(parameters, row, strict=True)) for task, row in gradients.items()}
