"""The parts of a step by themselves: weights from a Gramian, optimizer steps, and whether all ways agree."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from measure import Step, interleave, launches, make_turn, relative
from peers import TORCHJD, AdaTask, MTAdam
from steps import WAYS
from workloads import Workload, make_workload

import equipoise as eq
from equipoise.monitor.costs import peak_bytes

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
    """Times one optimizer step on ResNet-18 in fused AdamW steps, and K of them as the floor.

    The loops of others grow with K as they do with K = 3, where they are measured.
    """
    rows = []
    for tasks in counts:
        model = make_workload("resnet18", tasks, device).model.trunk
        parameters = list(model.parameters())
        gradients = {f"task{index}": tuple(torch.randn_like(p) for p in parameters) for index in range(tasks)}
        copies = [p.detach().clone() for p in parameters]  # what is in `.grad` of its own would be one more task to MAO
        for p, g in zip(copies, gradients["task0"], strict=True):
            p.grad = g.clone()
        adamw = torch.optim.AdamW(copies, lr=1e-6, fused=True)
        mao = eq.MAO(parameters, list(gradients), lr=1e-6)
        mao.backward(_linear(parameters, gradients))
        steps: dict[str, Step] = {"fused AdamW": adamw.step, "equipoise MAO": mao.step}
        if tasks == 3:
            rows_of = list(gradients.values())
            steps["AdaTask's loop"] = partial(AdaTask(parameters, tasks, lr=1e-6).step, rows_of)
            steps["MTAdam's loop"] = partial(MTAdam(parameters, tasks, lr=1e-6).step, rows_of)
        turns = {name: make_turn(step, device, least=0.05) for name, step in steps.items()}
        times = interleave(turns, rounds, "fused AdamW")
        rows += [
            {
                "name": name,
                "K": tasks,
                "launches": launches(steps[name], device),
                "adamw": asdict(relative(taken.own, taken.reference)),
                "k_adamw": asdict(relative([seconds / tasks for seconds in taken.own], taken.reference)),
            }
            for name, taken in times.items()
        ]
    return rows


def exactness(device: torch.device) -> list[dict[str, Any]]:
    """Measures how far IMTL-G's gradients by batches and by layers are from those by rows, one by one.

    That is the norm of the difference by the norm of the gradient, of all shared parameters together: one whose true
    gradient is zero, such as a bias before batch normalisation, has nothing but rounding by itself.
    """
    rows = []
    tasks = 5
    for model in ("mlp", "convolutions", "transformer"):
        for dtype in (torch.float32, torch.float64):
            workload = make_workload(model, tasks, device)
            inputs = workload.inputs.to(dtype) if workload.inputs.is_floating_point() else workload.inputs
            workload = replace(
                workload, model=workload.model.to(dtype), inputs=inputs, targets=workload.targets.to(dtype)
            )
            gradients = {}
            for way in ("one by one", "batched", "layers"):
                workload.model.zero_grad()
                balancer = eq.Balancer(workload.tasks, aggregator=eq.IMTLG(), **WAYS[way](tasks))
                balancer.backward(workload.losses(workload.representation()))
                gradients[way] = [p.grad for p in workload.model.trunk.parameters() if p.grad is not None]
            for way in ("batched", "layers"):
                flat, plain = (torch.cat([g.flatten() for g in gradients[name]]) for name in (way, "one by one"))
                apart = float((flat - plain).norm() / plain.norm())
                rows.append({"name": model, "way": way, "dtype": str(dtype).removeprefix("torch."), "apart": apart})
    return rows


def training_steps(device: torch.device, tasks: int, rounds: int) -> list[dict[str, Any]]:
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
    times = interleave(turns, rounds, "equal weights, AdamW")
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
