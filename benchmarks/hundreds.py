"""Hundreds of tasks on a small network: what a step of every method that makes several passes costs beyond a plain one.

    python benchmarks/hundreds.py                  # about three minutes on one CPU core
    python benchmarks/hundreds.py --device cuda

K = 300: a linear head a task. K = 1,024: a task a sample of the batch, so that nothing is a task's alone. Tasks go
together through what they share (`chunk_size=K`). A step is forward and backward; that of the plain sum of the losses
is taken off. Seconds of processor time (on a GPU of the clock), medians of steps that take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

import equipoise as eq
from equipoise.methods import METHODS, PASS_PER_TASK

TARGETS = {300: 0.5, 1024: 2.0}
"""Tasks → seconds that a step may take beyond a plain one."""
WIDTH = 128


class Small(nn.Module):
    """Two hidden layers, and a head for each of K tasks or, for a task a sample, one."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(32, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(heads))


def losses_of_heads(model: Small, x: Tensor, y: Tensor) -> list[Tensor]:
    """A loss a head."""
    z = model.trunk(x)
    return [functional.mse_loss(head(z)[:, 0], y) for head in model.heads]


def losses_of_samples(model: Small, x: Tensor, y: Tensor) -> Tensor:
    """A loss a sample `[N]`."""
    return functional.mse_loss(model.heads[0](model.trunk(x))[:, 0], y, reduction="none")


def steps_of(count: int, methods: Sequence[str], device: torch.device) -> Mapping[str, Callable[[], object]]:
    """The plain step, as "", and each method's."""
    samples = count == 1024
    torch.manual_seed(0)
    model = Small(1 if samples else count).to(device)
    x, y = torch.randn(1024 if samples else 64, 32, device=device), torch.randn(1024 if samples else 64, device=device)
    losses_of: Callable[..., Sequence[Tensor] | Tensor] = losses_of_samples if samples else losses_of_heads
    names = [str(index) for index in range(count)]

    def plain() -> None:
        losses = losses_of(model, x, y)
        (losses if isinstance(losses, Tensor) else torch.stack(list(losses))).sum().backward()

    def balanced(method: eq.Method) -> Callable[[], object]:
        def step() -> None:
            method.backward(dict(zip(names, losses_of(model, x, y), strict=True)))
            method.zero_grad()

        return step

    made = {name: eq.make_method(name, model, names, chunk_size=count) for name in methods}
    return {"": plain, **{name: balanced(method) for name, method in made.items()}}


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
    parser.add_argument("--tasks", nargs="*", type=int, choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        count: measure(steps_of(count, arguments.methods, arguments.device), arguments.rounds, arguments.device)
        for count in arguments.tasks
    }
    lines = ["| s a step beyond a plain one | " + " | ".join(f"K = {k:,}, target {TARGETS[k]} s" for k in found) + " |"]
    lines.append("| --- |" + " ---: |" * len(found))
    lines += [
        f"| {name} | " + " | ".join(f"{own[name]:.3f}" for own in found.values()) + " |" for name in arguments.methods
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
