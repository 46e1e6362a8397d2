"""Cost of balancing, side by side with what people would use instead.

    python benchmarks/run.py                             # all: at most 15 minutes on two CPU cores, and more for a GPU
    python benchmarks/run.py --quick                     # fewer models, tasks and rounds
    python benchmarks/run.py --device cuda --only 'mlp'  # the parts that have this in their name, on a GPU

On the CPU, and on a GPU where there is one. Writes results.json, results.md, targets.md (for the README) and
cost.png into benchmarks/results/ (or --out).
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measure import Turn, interleave, launches, make_turn, relative
from plans import LOSS_BASED, Case, cpu_plan, gpu_plan, quick_plan
from report import write_report, write_tables
from rich.progress import Progress, TimeElapsedColumn
from sections import exactness, gramian_weights, optimizer_steps, training_steps
from steps import make_step
from workloads import make_workload

from equipoise.monitor.costs import peak_bytes

Part = Callable[[], list[dict[str, Any]]]
"""Measures one table's rows."""


def one_pass(name: str) -> bool:
    """Whether the step makes one backward pass."""
    return name.split(",")[0].split()[-1] in LOSS_BASED


def measure_case(case: Case, device: torch.device) -> list[dict[str, Any]]:
    """Times and weighs every alternative; what fails is reported with its error.

    What makes one backward pass takes its turns apart from what makes K, with three times the rounds: a difference of
    2 % is looked for there. The floor of such a method is equal weights.
    """
    workload = make_workload(case.model, case.tasks, device)
    shared = sum(p.numel() * p.element_size() for p in workload.model.trunk.parameters())
    alone = [name for name in case.names if one_pass(name)]
    several = [name for name in case.names if not one_pass(name)]
    rows: list[dict[str, Any]] = []
    for names, base, rounds in ((several, "floor", case.rounds), (alone, "EW", 3 * case.rounds)):
        turns, held, launched = {}, {}, {}
        for name in ["EW", *names] if names else []:
            try:
                step = make_step(workload, name)
                turns[name] = make_turn(step, device, least=0.03)
                launched[name] = launches(step, device)
            except Exception as error:  # a failure is a result
                turns.pop(name, None)
                rows.append({"name": name, "error": f"{type(error).__name__}: {error}"})
                continue
            workload.model.zero_grad()
            held[name] = peak_bytes(step, device)
        if base == "floor" and turns:
            turns["EW"] = settled(turns["EW"])
        times = interleave(turns, rounds, "EW") if turns else {}
        for name, taken in times.items():
            least = taken.reference if base == "EW" else times[base].own if base in times else None
            rows.append(
                {
                    "name": "EW, among those of one pass" if name == base == "EW" else name,
                    "seconds": taken.own,
                    "ew": asdict(relative(taken.own, taken.reference)),
                    "floor": relative(taken.own, least).median if least else None,
                    "launches": launched[name],
                    "memory_over_ew": held[name] / held["EW"],
                    "copies": held[name] / shared,
                }
            )
    return rows


def settled(turn: Turn) -> Turn:
    """A turn whose first call does not count: it meets the memory that K gradients have left."""

    def second() -> float:
        turn()
        return turn()

    return second


def parts_of(device: torch.device, quick: bool, rounds: int | None) -> dict[str, Part]:
    """Returns what is measured on a device, by name."""
    on_gpu = device.type == "cuda"
    cases = quick_plan() if quick else gpu_plan() if on_gpu else cpu_plan()
    counts = (3,) if quick else (3, 26, 40) if on_gpu else (3, 26)
    parts: dict[str, Part] = {"optimizer steps": partial(optimizer_steps, device, counts, rounds=rounds or 3)}
    for tasks in counts:
        parts[f"training steps, K={tasks}"] = partial(training_steps, device, tasks, rounds=rounds or 2)
    parts["exactness"] = partial(exactness, device)
    for case in cases:
        chosen = case if rounds is None else Case(case.model, case.tasks, case.names, rounds)
        parts[case.name] = partial(measure_case, chosen, device)
    return parts


def machine() -> dict[str, Any]:
    """Says what the numbers are of."""
    return {
        "threads": torch.get_num_threads(),
        "CPU": platform.machine(),
        **({"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        **{library: version(library) for library in ("torch", "torchvision", "torchjd", "LibMTL")},
        "python": platform.python_version(),
    }


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer models, tasks and rounds")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="on this one alone")
    parser.add_argument("--only", default="", help="only the parts with this in their names")
    parser.add_argument("--rounds", type=int, help="turns of each, in place of the plan's")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="cvxpy|torchjd")
    warnings.filterwarnings("ignore", "equipoise: .* learns its weights")  # no optimizer moves them here
    found = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    devices = [torch.device(name) for name in ([arguments.device] if arguments.device else found)]
    parts: dict[tuple[str, str], Part] = {("host", "weights from a Gramian"): partial(gramian_weights, rounds=10)}
    for device in devices:
        for name, part in parts_of(device, arguments.quick, arguments.rounds).items():
            parts[device.type, name] = part
    parts = {key: part for key, part in parts.items() if arguments.only in key[1]}
    measured: dict[str, dict[str, list[dict[str, Any]]]] = {}
    seconds: dict[str, float] = {}
    results = {"machine": machine(), "measured": measured, "seconds": seconds}
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn()) as progress:
        bar = progress.add_task("benchmarks", total=len(parts))
        for (where, name), part in parts.items():
            progress.update(bar, description=f"{where}: {name}")
            started = time.perf_counter()
            measured.setdefault(where, {})[name] = part()
            seconds[f"{where}: {name}"] = time.perf_counter() - started
            write_tables(results, arguments.out)  # so that a run that is cut off leaves what it has
            progress.advance(bar)
    write_report(results, arguments.out)


if __name__ == "__main__":
    main()
