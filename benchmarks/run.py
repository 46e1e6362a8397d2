"""Cost of balancing, side by side with what people would use instead.

    python benchmarks/run.py            # the whole table: about 12 minutes on two CPU cores
    python benchmarks/run.py --quick    # fewer tasks and rounds

On the CPU, and on a GPU where there is one. Writes results.json, results.md and cost.png into benchmarks/results/ (or
--out).
"""

from __future__ import annotations

import argparse
import platform
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision
from measure import Step, Turn, interleave, make_turn, relative
from peers import LIBMTL, TORCHJD, libmtl_step, torchjd_step
from report import write_report
from rich.progress import Progress, TimeElapsedColumn
from sections import gramian_weights, optimizer_steps, training_steps
from workloads import Workload, make_workload

import equipoise as eq
from equipoise.bench.experiment.costs import peak_bytes
from equipoise.methods import METHODS

LOSS_BASED = [name for name, spec in METHODS.items() if spec.passes == "1"]
GRADIENT_BASED = [name for name, spec in METHODS.items() if spec.passes == "K"]


@dataclass(frozen=True)
class Case:
    """What is measured together.

    Attributes:
        model, tasks: the workload.
        methods: ours.
        rounds: turns that each alternative takes.
        peers: the methods that other libraries' are measured of, too.
        vmap: also all tasks' gradients in one backward pass by vmap.
    """

    model: str
    tasks: int
    methods: Sequence[str]
    rounds: int
    peers: Sequence[str]
    vmap: bool = True


def equal_weights(workload: Workload) -> Step:
    """The reference: forward and backward of the summed losses, in plain PyTorch."""

    def step() -> None:
        workload.model.zero_grad()
        sum(workload.losses(workload.representation()).values()).backward()

    return step


def floor(workload: Workload) -> Step:
    """The least that exact task gradients can cost: one forward pass, and K backward passes that keep nothing."""
    shared = list(workload.model.trunk.parameters())

    def step() -> None:
        workload.model.zero_grad()
        losses = list(workload.losses(workload.representation()).values())
        for index, loss in enumerate(losses):
            torch.autograd.grad(loss, shared, retain_graph=index < len(losses) - 1)

    return step


def task_gradients(workload: Workload) -> Step:
    """Our exact task gradients, kept: what every aggregator starts from."""
    shared = list(workload.model.trunk.parameters())

    def step() -> None:
        workload.model.zero_grad()
        eq.task_gradients(workload.losses(workload.representation()), shared)

    return step


def method_step(workload: Workload, name: str) -> Step:
    """One of our methods: forward and `backward`, and a second forward pass where it wants one (FAMO).

    MAO's optimizer step is measured by itself.
    """
    potentials = dict.fromkeys(workload.tasks, 0.9) if METHODS[name].needs_potentials else None
    method = eq.make_method(name, workload.model, workload.tasks, potentials=potentials)

    def step() -> None:
        method.zero_grad()
        method.backward(workload.losses(workload.representation()))
        if method.needs_after_step:
            with torch.no_grad():
                method.after_step(workload.losses(workload.representation()))

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


def one_pass(workload: Workload, case: Case) -> dict[str, Step]:
    """What makes one backward pass through the trunk, and its reference."""
    steps = {"EW": equal_weights(workload)}
    for name in (name for name in case.methods if name in LOSS_BASED):
        steps[f"equipoise {name}"] = method_step(workload, name)
        if name in LIBMTL and name in case.peers:
            steps[f"LibMTL {name}"] = libmtl_step(workload, name)
    return steps


def pass_per_task(workload: Workload, case: Case) -> dict[str, Step]:
    """What makes K backward passes through the trunk, the reference and the floor."""
    steps = {
        "EW": equal_weights(workload),
        "floor": floor(workload),
        "task gradients": task_gradients(workload),
    }
    if case.vmap:
        steps["task gradients, vmap"] = batched_task_gradients(workload)
    for name in (name for name in case.methods if name in GRADIENT_BASED):
        steps[f"equipoise {name}"] = method_step(workload, name)
        if name in TORCHJD and name in case.peers:
            steps[f"TorchJD {name}, one by one"] = torchjd_step(workload, name, parallel=False)
            if case.vmap:
                steps[f"TorchJD {name}, vmap"] = torchjd_step(workload, name, parallel=True)
        if name in LIBMTL and name in case.peers:
            steps[f"LibMTL {name}"] = libmtl_step(workload, name)
    return steps


def measure_case(case: Case, device: torch.device) -> list[dict[str, Any]]:
    """Times and weighs every alternative; what fails is reported with its error.

    What makes one backward pass takes its turns apart from what makes K, with three times the rounds: a difference of
    2 % is looked for there. The floor of such a method is equal weights.
    """
    workload = make_workload(case.model, case.tasks, device)
    shared = sum(p.numel() * p.element_size() for p in workload.model.trunk.parameters())
    rows: list[dict[str, Any]] = []
    for make, base, rounds in ((pass_per_task, "floor", case.rounds), (one_pass, "EW", 3 * case.rounds)):
        turns, memory, failed = {}, {}, []
        for name, step in make(workload, case).items():
            try:
                turns[name] = make_turn(step, device, least=0.03)
            except Exception as error:  # a failure is a result
                failed.append({"name": name, "error": f"{type(error).__name__}: {error}"})
                continue
            workload.model.zero_grad()
            memory[name] = peak_bytes(step, device)
        if base == "floor":
            turns["EW"] = settled(turns["EW"])
        times = interleave(turns, rounds, "EW")
        rows += failed
        rows += [
            {
                "name": "EW, among those of one pass" if name == base == "EW" else name,
                "ew": asdict(relative(taken.own, taken.reference)),
                "floor": relative(taken.own, taken.reference if base == "EW" else times[base].own).median,
                "memory_over_ew": memory[name] / memory["EW"],
                "copies_over_ew": (memory[name] - memory["EW"]) / shared,
            }
            for name, taken in times.items()
        ]
    return rows


def settled(turn: Turn) -> Turn:
    """A turn whose first call does not count: it meets the memory that K gradients have left."""

    def second() -> float:
        turn()
        return turn()

    return second


def plan(quick: bool) -> list[Case]:
    """What is measured: every method on the MLP with K = 3 and 40 and on ResNet-18 with K = 3, elsewhere a few.

    ResNet-18 with K = 26 has what the targets name; Gramian aggregators differ there by their weights alone, which are
    measured by themselves. Vmap, which gains nothing on its convolutions, is tried with K = 2 alone.
    """
    few = ["ema", "imtl-g", "pcgrad", "mao"]
    if quick:
        return [Case("mlp", 3, few, 3, few), Case("resnet18", 3, few, 3, few)]
    every = LOSS_BASED + GRADIENT_BASED
    return [
        *(Case("mlp", tasks, few, 3, few) for tasks in (2, 10, 26)),
        Case("mlp", 3, every, 2, every),
        Case("mlp", 40, every, 2, [name for name in every if name != "nash-mtl"]),  # TorchJD's takes 2 s a step
        *(Case("transformer", tasks, few, 2, few) for tasks in (2, 3, 10, 26, 40)),
        Case("resnet18", 2, few, 2, few),
        Case("resnet18", 3, every, 2, every, vmap=False),
        Case("resnet18", 10, ["ema", "imtl-g", "mao"], 2, ["imtl-g"], vmap=False),
        Case("resnet18", 26, ["ema", "imtl-g", "pcgrad", "nash-mtl", "mao"], 2, ["imtl-g", "pcgrad"], vmap=False),
        Case("resnet18", 40, ["ema", "imtl-g", "mao"], 1, [], vmap=False),
    ]


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer models, tasks and rounds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="cvxpy|torchjd")
    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    cases = plan(arguments.quick)
    counts = (3,) if arguments.quick else (3, 26)
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn()) as progress:
        bar = progress.add_task("benchmarks", total=(len(cases) + 1) * len(devices) + 1)
        progress.update(bar, description="weights from a Gramian")
        gramian = gramian_weights(rounds=5 if arguments.quick else 10)
        progress.advance(bar)
        measured: dict[str, Any] = {}
        for device in devices:
            steps = {}
            for case in cases:
                progress.update(bar, description=f"{device}: {case.model}, K={case.tasks}")
                steps[f"{case.model}, K={case.tasks}"] = measure_case(case, device)
                progress.advance(bar)
            progress.update(bar, description=f"{device}: optimizer steps")
            measured[device.type] = {
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
                "steps": steps,
                "optimizer": optimizer_steps(device, counts, rounds=3),
                "training": [row for count in counts for row in training_steps(device, count)],
            }
            progress.advance(bar)
    machine = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "torchjd": version("torchjd"),
        "LibMTL": version("LibMTL"),
        "python": platform.python_version(),
    }
    write_report({"machine": machine, "gramian": gramian, "devices": measured}, arguments.out)


if __name__ == "__main__":
    main()
