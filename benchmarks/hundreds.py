"""Hundreds of tasks on a small network: what a step of every method that makes several passes costs beyond a plain one.

    python benchmarks/hundreds.py                  # about ten minutes on one CPU core
    python benchmarks/hundreds.py --device cuda

300 heads: a linear head a task. 1,024 samples: a task a sample of the batch, so that nothing is a task's alone; the
same by `PerSample`, where the method keeps nothing by task. Tasks go together through what they share
(`chunk_size=K`). A step is forward and backward; that of the plain sum of the losses is taken off. Seconds of processor
time (on a GPU of the clock), medians of steps that take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

import equipoise as eq
from equipoise.registry import METHODS, PASS_PER_TASK

CASES = {
    "300 heads, target 0.5 s": (300, False),
    "1,024 samples, target 2 s": (1024, False),
    "1,024 samples, PerSample": (1024, True),
}
"""Column → tasks, and whether PerSample takes them."""


class Small(nn.Module):
    """The MLP of `workloads.py`, and so many linear heads."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        widths = [32, 64, 64, 64, 64]
        self.trunk = nn.Sequential(*(nn.Sequential(nn.Linear(*pair), nn.ReLU()) for pair in pairwise(widths)))
        self.heads = nn.ModuleList(nn.Linear(64, 1) for _ in range(heads))

    def losses(self, x: Tensor, y: Tensor) -> Tensor | list[Tensor]:
        """A loss a head; with one head, a loss a sample."""
        z = self.trunk(x)
        if len(self.heads) == 1:
            return functional.mse_loss(self.heads[0](z)[:, 0], y, reduction="none")
        return [functional.mse_loss(head(z)[:, 0], y) for head in self.heads]


def steps_of(case: str, methods: Sequence[str], device: torch.device) -> dict[str, Callable[[], object]]:
    """The plain step, as "", and each method's that there is."""
    count, per_sample = CASES[case]
    torch.manual_seed(0)
    model = Small(count if count == 300 else 1).to(device)
    x, y = (torch.randn(32 if count == 300 else count, *shape, device=device) for shape in ((32,), ()))
    names = [str(index) for index in range(count)]

    def plain() -> None:
        losses = model.losses(x, y)
        (losses if isinstance(losses, Tensor) else torch.stack(losses)).sum().backward()

    def balanced(name: str) -> Callable[[], object]:
        if per_sample:
            balance = eq.PerSample(METHODS[name].aggregator() if METHODS[name].aggregator else None)
            return lambda: balance.backward(model.losses(x, y))
        method = eq.make_method(name, model, names, chunk_size=count)

        def step() -> None:
            method.backward(dict(zip(names, model.losses(x, y), strict=True)))
            method.zero_grad()

        return step

    steps: dict[str, Callable[[], object]] = {"": plain}
    for name in methods:
        try:
            steps[name] = balanced(name)
        except ValueError:  # PerSample takes no others
            assert per_sample
    return steps


def measure(steps: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """The median seconds of a step beyond the plain one of the same round."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(rounds + 1):
        for name, step in steps.items():
            start = clock()
            step()
            if device.type != "cpu":
                torch.get_device_module(device).synchronize()
            if index:  # the first is a warm-up
                taken[name].append(clock() - start)
    plain = taken.pop("")
    return {n: statistics.median(s - p for s, p in zip(own, plain, strict=True)) for n, own in taken.items()}


def main() -> None:
    """Measures, and prints a table."""
    several = [name for name, spec in METHODS.items() if spec.passes == PASS_PER_TASK]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--methods", nargs="*", choices=several, default=several)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = arguments.device
    found = {case: measure(steps_of(case, arguments.methods, device), arguments.rounds, device) for case in CASES}
    print("| s a step beyond a plain one |", " | ".join(found), "|")
    print("| --- |" + " ---: |" * len(found))
    for name in arguments.methods:
        print(f"| {name} |", " | ".join(f"{own[name]:.2f}" if name in own else "" for own in found.values()), "|")


if __name__ == "__main__":
    main()
