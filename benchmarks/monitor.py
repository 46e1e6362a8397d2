"""What BalanceMonitor costs: training steps that are sampled, that are not, and without a monitor, in turn.

    python benchmarks/monitor.py            # about 5 minutes on two CPU cores

Prints, per model and method, what a sample adds, in steps without a monitor, and the share of training time that
sampling every 50 steps takes. A step is forward, backward, and AdamW's (or MAO's) step; nothing is spent on loading
data. On a CPU the time is this process's processor time, so that the ratio holds on a busy machine, too.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from measure import Step, interleave, make_turn
from rich.console import Console
from rich.table import Table
from workloads import make_workload

import equipoise as eq

EVERY = 50


def training_step(name: str, tasks: int, method_name: str, every: int | None, device: torch.device) -> Step:
    """A step of training by a method of our own, on a model of its own; sampled every `every` steps, if at all."""
    workload = make_workload(name, tasks, device)
    method = eq.make_method(method_name, workload.model, workload.tasks, lr=1e-4)
    monitor = None if every is None else eq.BalanceMonitor(method, workload.model, every=every)

    def step() -> None:
        method.backward(workload.losses(workload.representation()))
        method.step()
        method.zero_grad()
        if monitor is not None:
            monitor.records.clear()

    return step


def quartiles(values: list[float]) -> str:
    """Returns the median and what half of the values lie between."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["resnet18", "transformer", "mlp"])
    parser.add_argument("--methods", nargs="+", default=["ew", "pcgrad", "mao"])
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    table = Table(title=f"BalanceMonitor, K={arguments.tasks}, {device.type}")
    for column in ("model", "method", "step, ms", "a sample adds, steps", "no sample, %", f"every={EVERY}, %"):
        table.add_column(column)
    for model in arguments.models:
        for method in arguments.methods:
            turns = {
                what: make_turn(training_step(model, arguments.tasks, method, every, device), device, 0.2, clock)
                for what, every in (("without", None), ("idle", 10**9), ("sampled", 1))
            }
            times = interleave(turns, arguments.rounds, "without")
            rounds = list(zip(times["idle"].reference, times["idle"].own, times["sampled"].own, strict=True))
            table.add_row(
                model,
                method,
                f"{1000 * statistics.median(times['without'].own):.3g}",
                quartiles([(sampled - idle) / without for without, idle, sampled in rounds]),
                quartiles([100 * (idle / without - 1) for without, idle, _ in rounds]),
                quartiles([100 * (sampled - idle) / without / EVERY for without, idle, sampled in rounds]),
            )
    Console().print(table)


if __name__ == "__main__":
    main()
