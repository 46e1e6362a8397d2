"""What statistics in every nth step save and lose: time of a step and quality on a built-in problem, on the CPU.

    python benchmarks/every.py                                       # digit-attributes, 40 tasks
    python benchmarks/every.py --problem digits --methods nash-mtl --every 1 8 --seeds 5

Quality is the mean over the tasks of their accuracy on test data (digit-attributes: F1) in percent, and the difference
to equal weights with the same seed; all with the problem's own learning rate and epochs. The time of a step (forward,
backward, optimizer) is the mean over whole cycles, beside equal weights' in the same process.
"""

from __future__ import annotations

import argparse
import time
from statistics import mean, stdev

import torch

import equipoise as eq
from equipoise.bench.experiment.batches import Batches
from equipoise.bench.experiment.training import accuracies, train
from equipoise.bench.experiment.trial import Trial
from equipoise.bench.problems import load_problem

CYCLES = 3
"""Cycles that are timed, after one that is not."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", default="digit-attributes")
    parser.add_argument("--methods", nargs="+", default=["imtl-g", "nash-mtl"])
    parser.add_argument("--every", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="fewer samples and epochs")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    problem = load_problem(chosen.problem)
    data = problem.data(chosen.quick)
    training = problem.training(chosen.quick)
    shared = {
        "epochs": training.epochs,
        "batch_size": training.batch_size,
        "evaluation_batch_size": training.evaluation_batch_size,
        "lr": training.lr,
        "weight_decay": training.weight_decay,
        "schedule": training.schedule,
    }
    tasks = [task.name for task in problem.tasks]

    def tested(method: str, every: int = 1) -> list[float]:
        trials = [Trial(method, seed, **shared, hyperparameters={"every": every}) for seed in range(chosen.seeds)]
        return [100 * mean(accuracies(problem, train(problem, data, trial)["test"]).values()) for trial in trials]

    def seconds(method: str, every: int = 1) -> float:
        """The time of a step, the mean over whole cycles."""
        torch.manual_seed(0)
        network = problem.model()
        made = eq.make_method(method, network, tasks, lr=training.lr, every=every)
        batch = next(iter(Batches(problem, data.train, training.batch_size, 0)))
        for index in range((1 + CYCLES) * every):
            if index == every:
                started = time.perf_counter()
            made.zero_grad()
            predictions = network(batch["input"])
            made.backward({task.name: task.loss(predictions, batch) for task in problem.tasks})
            made.step()
        return (time.perf_counter() - started) / (CYCLES * every)

    baseline = tested("ew")
    plain = min(seconds("ew") for _ in range(20))
    print(f"{problem.name}: {len(tasks)} tasks, {chosen.seeds} seeds")
    print(f"equal weights: {plain * 1e3:.1f} ms a step, {mean(baseline):.1f} %")
    for method in chosen.methods:
        for every in chosen.every:
            took = min(seconds(method, every) for _ in range(3))
            found = tested(method, every)
            differences = [value - other for value, other in zip(found, baseline, strict=True)]
            spread = f" ± {stdev(differences):.2f}" if chosen.seeds > 1 else ""
            print(
                f"{method:12} every={every:<3} {took * 1e3:6.1f} ms ({took / plain:.1f}×)  {mean(found):5.1f} % "
                f"({mean(differences):+.2f}{spread})",
                flush=True,
            )


if __name__ == "__main__":
    main()
