"""What BalanceMonitor costs: training steps that are sampled, that are not, and without a monitor, in turn.

    python benchmarks/monitor.py            # about 5 minutes on two CPU cores

Prints, per model and method, what a sample adds, in steps without a monitor, and the share of training time that
sampling every 50 steps takes. A step is forward, backward, and AdamW's (or MAO's) step; nothing is spent on loading
data. On a CPU the time is this process's processor time, so that the ratio holds on a busy machine, too.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch
from measure import Step
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


def turn(step: Step, repeats: int, device: torch.device) -> float:
    """Returns seconds a step: of the processor on a CPU, else on the clock."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    for _ in range(repeats):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (clock() - start) / repeats


def measure(steps: dict[str, Step], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Times all steps in turn, in random order, round after round."""
    repeats = {}
    for name, step in steps.items():
        turn(step, 3, device)
        repeats[name] = max(1, round(0.2 / turn(step, 1, device)))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name in random.sample(list(steps), len(steps)):
            times[name].append(turn(steps[name], repeats[name], device))
    return times


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
    table = Table(title=f"BalanceMonitor, K={arguments.tasks}, {device.type}")
    for column in ("model", "method", "step, ms", "a sample adds, steps", "no sample, %", f"every={EVERY}, %"):
        table.add_column(column)
    for model in arguments.models:
        for method in arguments.methods:
            steps = {
                what: training_step(model, arguments.tasks, method, every, device)
                for what, every in (("without", None), ("idle", 10**9), ("sampled", 1))
            }
            times = measure(steps, arguments.rounds, device)
            rounds = list(zip(times["without"], times["idle"], times["sampled"], strict=True))
            table.add_row(
                model,
                method,
                f"{1000 * statistics.median(times['without']):.3g}",
                quartiles([(sampled - idle) / without for without, idle, sampled in rounds]),
                quartiles([100 * (idle / without - 1) for without, idle, _ in rounds]),
                quartiles([100 * (sampled - idle) / without / EVERY for without, idle, sampled in rounds]),
            )
    Console().print(table)


if __name__ == "__main__":
    main()
