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
from sections import gramian_weights, optimizer_steps
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


def alternatives(workload: Workload, names: Sequence[str]) -> dict[str, Step]:
    """Everything that is timed on a workload: the reference, the floor, our methods and the peers that have them."""
    steps = {"EW": equal_weights(workload), "floor": floor(workload), "task gradients": task_gradients(workload)}
    for name in names:
        steps[f"equipoise {name}"] = method_step(workload, name)
        if name in TORCHJD:
            steps[f"TorchJD {name}, one by one"] = torchjd_step(workload, name, parallel=False)
            steps[f"TorchJD {name}, vmap"] = torchjd_step(workload, name, parallel=True)
        if name in LIBMTL:
            steps[f"LibMTL {name}"] = libmtl_step(workload, name)
    return steps


def measure_workload(workload: Workload, names: Sequence[str], rounds: int, least: float) -> list[dict[str, Any]]:
    """Times and weighs every alternative; a peer that fails is reported with its error."""
    device = workload.inputs.device
    steps = alternatives(workload, names)
    failed: dict[str, str] = {}
    for name in list(steps):
        try:
            steps[name]()
        except Exception as error:  # a peer's failure is a result
            failed[name] = f"{type(error).__name__}: {error}"
            del steps[name]
    times = interleave(steps, device, rounds, least)
    memory = {name: peak_memory(step, device) for name, step in steps.items()}
    shared = sum(p.numel() * p.element_size() for p in workload.model.trunk.parameters())
    rows = [
        {
            "name": name,
            "ew": asdict(relative(times[name], times["EW"])),
            "floor": asdict(relative(times[name], times["floor"])),
            "memory_over_ew": memory[name] / memory["EW"],
            "copies_over_ew": (memory[name] - memory["EW"]) / shared,
        }
        for name in steps
    ]
    return rows + [{"name": name, "error": error} for name, error in failed.items()]


def plan(quick: bool) -> list[tuple[str, int, list[str], int]]:
    """What is measured: model, K, methods, rounds. The most at ResNet-18 with K = 3 and 26, where the targets are."""
    few = ["ema", "imtl-g", "pcgrad", "mao"]
    if quick:
        return [("mlp", 3, few, 3), ("resnet18", 3, few, 3)]
    every = LOSS_BASED + GRADIENT_BASED
    return [
        *(("mlp", tasks, every, 15) for tasks in (2, 3, 10, 26, 40)),
        *(("transformer", tasks, few, 5) for tasks in (2, 3, 10, 26, 40)),
        ("resnet18", 3, every, 7),
        ("resnet18", 26, ["ema", *GRADIENT_BASED], 3),
        *(("resnet18", tasks, few, 3) for tasks in (2, 10, 40)),
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
            results["steps"][workload.name] = measure_workload(workload, names, rounds, least=0.05)
            progress.advance(bar)
        progress.update(bar, description="weights from a Gramian")
        results["gramian"] = gramian_weights(rounds=5 if arguments.quick else 20)
        progress.advance(bar)
        progress.update(bar, description="optimizer steps")
        results["optimizer"] = optimizer_steps(device, (3,) if arguments.quick else (3, 26), rounds=3)
        progress.advance(bar)
    write_report(results, arguments.out)


if __name__ == "__main__":
    main()
