"""What BalanceMonitor costs: training steps that are sampled, that are not, and without a monitor, in turn.

    python benchmarks/monitor.py            # about 5 minutes on two CPU cores

Prints, per model and method, a sampled step in steps without a monitor, and from it the share of training time that
sampling every 50 steps takes. A step is forward, backward, AdamW's (or MAO's) step; nothing is spent on loading data.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from measure import Step, interleave, relative
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
    for column in ("model", "method", "step, ms", "sampled step, in steps", "not sampled", f"every={EVERY}: share, %"):
        table.add_column(column)
    for model in arguments.models:
        for method in arguments.methods:
            steps = {
                what: training_step(model, arguments.tasks, method, every, device)
                for what, every in (("without", None), ("not sampled", 10**9), ("sampled", 1))
            }
            times = interleave(steps, device, arguments.rounds, least=0.2)
            sampled = relative(times["sampled"], times["without"])
            between = relative(times["not sampled"], times["without"])
            extra = [s - n for s, n in zip(times["sampled"], times["not sampled"], strict=True)]
            share = 100 * statistics.median(relative_share(extra, times["without"]))
            table.add_row(
                model,
                method,
                f"{1000 * statistics.median(times['without']):.3g}",
                f"{sampled.median:.2f} ({sampled.low:.2f} to {sampled.high:.2f})",
                f"{between.median:.3f} ({between.low:.3f} to {between.high:.3f})",
                f"{share:.1f}",
            )
    Console().print(table)


def relative_share(extra: list[float], step: list[float]) -> list[float]:
    """Returns, round by round, what a sample adds over EVERY steps, in parts of their time."""
    return [more / (EVERY * base) for more, base in zip(extra, step, strict=True)]


if __name__ == "__main__":
    main()
