"""What MAO's moments take, and what keeping less of them costs.

    python benchmarks/moments.py     # about 100 seconds on one CPU core

Trains every fifth task of `digit-attributes` with MAO as it is, with first moments in bfloat16, with factored second
moments, and with both, from the same seeds. A row has the bytes of state a parameter and task that reaches it; the mean
over the tasks of the loss in the last epoch of training and on validation after it, mean ± standard deviation over the
seeds; how much the latter differs from the first row's, from seed to seed; and the processor time of a step beside the
first row's.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.markdown import Markdown
from torch import Tensor
from torch.nn import functional

import equipoise as eq
from equipoise.bench.problems.digit_attributes import DigitAttributes

EPOCHS, BATCH, SEEDS, LR = 3, 64, 3, 1e-3
TASKS = slice(0, None, 5)
WAYS: dict[str, dict[str, Any]] = {
    "MAO": {},
    "first moments in bfloat16": {"state_dtype": torch.bfloat16},
    "second moments factored": {"factored": True},
    "both": {"state_dtype": torch.bfloat16, "factored": True},
}


class Run(NamedTuple):
    """A training run: bytes a parameter and task, mean losses in training and on validation, seconds a step."""

    size: float
    training: float
    validation: float
    seconds: float


def train(options: dict[str, Any], seed: int) -> Run:
    """Trains once."""
    problem = DigitAttributes()
    data = problem.data()
    tasks = [task.name for task in problem.tasks][TASKS]
    inputs, answers = data.train[range(len(data.train))].values()
    validation, truth = data.validation[range(len(data.validation))].values()
    torch.manual_seed(seed)
    model = problem.model()
    optimizer = eq.MAO(model.parameters(), tasks, lr=LR, **options)

    def losses_of(images: Tensor, labels: Tensor) -> Tensor:
        logits = model(images)[:, TASKS]
        return functional.binary_cross_entropy_with_logits(logits, labels[:, TASKS], reduction="none").mean(0)

    last: list[float] = []
    seconds = 0.0
    for epoch in range(EPOCHS):
        for chosen in torch.randperm(len(inputs)).split(BATCH):
            losses = losses_of(inputs[chosen], answers[chosen])
            optimizer.backward(dict(zip(tasks, losses.unbind(), strict=True)))
            start = time.process_time()
            optimizer.step()
            seconds += time.process_time() - start
            optimizer.zero_grad()
            if epoch == EPOCHS - 1:
                last.append(losses.mean().item())
    state = [tensor for own in optimizer.state.values() for name, tensor in own.items() if name != "step"]
    reached = sum(p.numel() * int((own["step"] > 0).sum()) for p, own in optimizer.state.items())
    with torch.no_grad():
        after = losses_of(validation, truth).mean().item()
    steps = EPOCHS * -(-len(inputs) // BATCH)
    return Run(sum(t.nbytes for t in state) / reached, statistics.mean(last), after, seconds / steps)


def main() -> None:
    """Trains each way from each seed, and prints the table."""
    torch.set_num_threads(1)
    runs = {way: [train(options, seed) for seed in range(SEEDS)] for way, options in WAYS.items()}

    def spread(numbers: list[float]) -> str:
        return f"{statistics.mean(numbers):.4f} ± {statistics.stdev(numbers):.4f}"

    lines = [
        "| | bytes a parameter and task | training loss | validation loss | difference | time of a step |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    first = runs["MAO"]
    for way, own in runs.items():
        differences = [run.validation - other.validation for run, other in zip(own, first, strict=True)]
        ratio = sum(run.seconds for run in own) / sum(run.seconds for run in first)
        losses = f"{spread([run.training for run in own])} | {spread([run.validation for run in own])}"
        lines.append(f"| {way} | {own[0].size:.2f} | {losses} | {spread(differences)} | {ratio:.2f} |")
    Console(width=140).print(Markdown("\n".join(lines)))


if __name__ == "__main__":
    main()
