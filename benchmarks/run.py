"""Cost of balancing, side by side with what people would use instead.

    python benchmarks/run.py            # the whole table: about 10 minutes on two CPU cores
    python benchmarks/run.py --quick    # fewer tasks and rounds

Writes results.json, results.md and cost.png into benchmarks/results/ (or --out).
"""

from __future__ import annotations

import argparse
import platform
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torchjd
import torchvision
from measure import Step, interleave, peak_memory, relative
from peers import LIBMTL, TORCHJD, libmtl_step, torchjd_step
from report import write_report
from rich.progress import Progress, TimeElapsedColumn
from sections import gramian_weights, mao_memory, optimizer_steps
from workloads import Workload, make_workload

import equipoise as eq
from equipoise.methods import METHODS

LOSS_BASED = [name for name, spec in METHODS.items() if spec.passes == "1"]
GRADIENT_BASED = [name for name, spec in METHODS.items() if spec.passes == "K"]


def equal_weights(workload: Workload) -> Step:
    """The reference: forward and backward of the summed losses, in plain PyTorch."""

    def step() -> None:
        workload.model.zero_grad()
        sum(workload.losses(workload.representation()).values()).backward()

    return step


def floor(workload: Workload) -> Step:
    """The least that exact task gradients can cost: one forward pass, the heads, K backward passes of the trunk."""
    shared = list(workload.model.trunk.parameters())

    def step() -> None:
        workload.model.zero_grad()
        representation = workload.representation()
        cut = representation.detach().requires_grad_()
        losses = list(workload.losses(cut).values())
        pairs = zip(losses, workload.model.heads, strict=True)
        heads = [torch.autograd.grad(loss, [cut, *head.parameters()]) for loss, head in pairs]
        for index, (gradient, *_) in enumerate(heads):
            torch.autograd.grad(representation, shared, gradient, retain_graph=index < len(heads) - 1)

    return step


def task_gradients(workload: Workload) -> Step:
    """Our exact task gradients, kept: what every aggregator starts from."""
    shared = list(workload.model.trunk.parameters())

    def step() -> None:
        workload.model.zero_grad()
        eq.task_gradients(workload.losses(workload.representation()), shared)

    return step


def method_step(workload: Workload, name: str) -> Step:
    """One of our methods: forward and `backward`; MAO's optimizer step is measured by itself."""
    potentials = dict.fromkeys(workload.tasks, 0.9) if METHODS[name].needs_potentials else None
    method = eq.make_method(name, workload.model, workload.tasks, potentials=potentials)

    def step() -> None:
        method.zero_grad()
        method.backward(workload.losses(workload.representation()))

    return step


def batched_task_gradients(workload: Workload) -> Step:
    """All task gradients in one backward pass that vmap makes K times as wide."""
    shared = list(workload.model.trunk.parameters())

    def step() -> None:
        workload.model.zero_grad()
        representation = workload.representation()
        cut = representation.detach().requires_grad_()
        losses = workload.losses(cut).values()
        pairs = zip(losses, workload.model.heads, strict=True)
        rows = [torch.autograd.grad(loss, [cut, *head.parameters()])[0] for loss, head in pairs]
        torch.autograd.grad(representation, shared, torch.stack(rows), is_grads_batched=True)

    return step


def one_pass(workload: Workload, names: Sequence[str]) -> dict[str, Step]:
    """What makes one backward pass through the trunk, and its reference."""
    steps = {"EW": equal_weights(workload)}
    for name in (name for name in names if name in LOSS_BASED):
        steps[f"equipoise {name}"] = method_step(workload, name)
        if name in LIBMTL:
            steps[f"LibMTL {name}"] = libmtl_step(workload, name)
    return steps


def pass_per_task(workload: Workload, names: Sequence[str]) -> dict[str, Step]:
    """What makes K backward passes through the trunk, the reference and the floor."""
    steps = {
        "EW": equal_weights(workload),
        "floor": floor(workload),
        "task gradients": task_gradients(workload),
        "task gradients, by vmap": batched_task_gradients(workload),
    }
    for name in (name for name in names if name in GRADIENT_BASED):
        steps[f"equipoise {name}"] = method_step(workload, name)
        if name in TORCHJD:
            steps[f"TorchJD {name}, one by one"] = torchjd_step(workload, name, parallel=False)
            steps[f"TorchJD {name}, vmap"] = torchjd_step(workload, name, parallel=True)
        if name in LIBMTL:
            steps[f"LibMTL {name}"] = libmtl_step(workload, name)
    return steps


def measure_workload(workload: Workload, names: Sequence[str], rounds: int, least: float) -> list[dict[str, Any]]:
    """Times and weighs every alternative; a peer that fails is reported with its error.

    What makes one backward pass takes its turns apart from what makes K, with three times the rounds: a difference of
    2 % is looked for there.
    """
    device = workload.inputs.device
    shared = sum(p.numel() * p.element_size() for p in workload.model.trunk.parameters())
    rows: list[dict[str, Any]] = []
    to_floor = 1.0
    for steps, turns in ((pass_per_task(workload, names), rounds), (one_pass(workload, names), 3 * rounds)):
        failed: dict[str, str] = {}
        for name in list(steps):
            try:
                steps[name]()
            except Exception as error:  # a peer's failure is a result
                failed[name] = f"{type(error).__name__}: {error}"
                del steps[name]
        times = interleave(steps, device, turns, least)
        memory = {}
        for name, step in steps.items():
            workload.model.zero_grad()
            memory[name] = peak_memory(step, device)
        if "floor" in times:
            to_floor = relative(times["floor"], times["EW"]).median
        for name in [name for name in steps if name not in {row["name"] for row in rows}]:
            to_ew = relative(times[name], times["EW"])
            to_base = relative(times[name], times["floor"]).median if "floor" in times else to_ew.median / to_floor
            rows.append(
                {
                    "name": name,
                    "ew": asdict(to_ew),
                    "floor": to_base,
                    "memory_over_ew": memory[name] / memory["EW"],
                    "copies_over_ew": (memory[name] - memory["EW"]) / shared,
                }
            )
        rows += [{"name": name, "error": error} for name, error in failed.items()]
    return rows


def plan(quick: bool) -> list[tuple[str, int, list[str], int]]:
    """What is measured: model, K, methods, rounds. The most at ResNet-18 with K = 3 and 26, where the targets are."""
    few = ["ema", "imtl-g", "mao"]
    if quick:
        return [("mlp", 3, few, 3), ("resnet18", 3, few, 3)]
    every = LOSS_BASED + GRADIENT_BASED
    return [
        *(("mlp", tasks, every, 5) for tasks in (2, 3, 10, 26, 40)),
        *(("transformer", tasks, few, 3) for tasks in (2, 3, 10, 26, 40)),
        ("resnet18", 3, every, 5),
        ("resnet18", 26, ["ema", "imtl-g", "pcgrad", "cagrad", "mao"], 3),
        *(("resnet18", tasks, few, 2) for tasks in (2, 10, 40)),
    ]


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer models, tasks and rounds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    warnings.filterwarnings("ignore", module="cvxpy|torchjd")
    results: dict[str, Any] = {
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "torchjd": getattr(torchjd, "__version__", "0.18"),
            "python": platform.python_version(),
        },
        "steps": {},
    }
    tasks = plan(arguments.quick)
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn()) as progress:
        bar = progress.add_task("benchmarks", total=len(tasks) + 2)
        for model, count, names, rounds in tasks:
            progress.update(bar, description=f"{model}, K={count}")
            workload = make_workload(model, count, device)
            results["steps"][workload.name] = measure_workload(workload, names, rounds, least=0.03)
            progress.advance(bar)
        progress.update(bar, description="weights from a Gramian")
        results["gramian"] = gramian_weights(rounds=5 if arguments.quick else 20)
        progress.advance(bar)
        progress.update(bar, description="optimizer steps")
        counts = (3,) if arguments.quick else (3, 26)
        results["optimizer"] = optimizer_steps(device, counts, rounds=3)
        results["memory"] = [row for count in counts for row in mao_memory(device, count)]
        progress.advance(bar)
    write_report(results, arguments.out)


if __name__ == "__main__":
    main()
