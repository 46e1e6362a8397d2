"""One run: train a problem's network by one method with one seed, select an epoch on validation, test it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from equipoise.bench.experiment.batches import Batches, again_and_again, share
from equipoise.bench.experiment.checkpoints import load_checkpoint, save_checkpoint
from equipoise.bench.experiment.learner import DivergedError, Learner
from equipoise.bench.experiment.scoring import main_measures, score
from equipoise.bench.experiment.trial import SHARDED, Record, Trial, Values
from equipoise.bench.problems import SCHEDULES, Problem, Splits
from equipoise.bench.problems._base import Batch
from equipoise.bench.problems._errors import problem_code
from equipoise.monitor import BalanceMonitor, read_monitor

MIN_SAMPLES = 20
"""So many samples the balance monitor takes at least, of a run that has so many steps."""


@dataclass(frozen=True)
class Outputs:
    """Where a run writes what is not in its record; None: nowhere.

    Attributes:
        checkpoint: a file that the run goes on from, if it is there; written after every epoch but the last.
        picture: a picture of predictions, if the problem draws one.
        monitor: what the balance monitor saw.
        monitor_every: steps between its samples, fewer if that gave less than `MIN_SAMPLES`.
        origin: what else than the trial decides the outcome; with another one a checkpoint is another run's.
    """

    checkpoint: Path | None = None
    picture: Path | None = None
    monitor: Path | None = None
    monitor_every: int = 50
    origin: str = ""


def train(
    problem: Problem,
    data: Splits,
    trial: Trial,
    on_epoch: Callable[[int, float], None] = lambda epoch, score: None,
    on_step: Callable[[], None] = lambda: None,
    outputs: Outputs | None = None,
) -> Record:
    """Runs a trial.

    Args:
        problem: what is trained.
        data: the problem's data.
        trial: how.
        on_epoch: called with the number of every finished epoch, from 1, and its score.
        on_step: called before every step; may raise to stop.
        outputs: where what is not in the record goes.

    Returns:
        A record that JSON can hold: `status` ("finished", or "diverged" with a `message`), `epochs` (each with mean
        training loss and weights, validation measures, accuracies and score), `selected` (the number of the epoch
        with the best score), `test` (the measures at that epoch), `seconds`, and of several tasks `shared_parameters`,
        how many numbers of the network two of them depend on (unless it is sharded). If `trial.shares` and there is a
        monitor, `shares`: each task's mean share of what moved the shared parameters.
    """
    started = time.perf_counter()
    outputs = outputs or Outputs()
    learner = Learner(problem, trial)
    batches = Batches(problem, data.train, trial.batch_size, trial.seed)
    observed = Batches(problem, data.validation, trial.batch_size, trial.seed)
    factor, steps = SCHEDULES[trial.schedule], max(1, trial.epochs * len(batches))
    scheduler = LambdaLR(learner.method.optimizer, lambda step: factor(min(step / steps, 1)))
    every = max(1, min(outputs.monitor_every, steps // MIN_SAMPLES))
    epochs: list[dict[str, Any]] = []
    record: Record = {**trial.head, "epochs": epochs}
    reference, best = trial.reference, -math.inf
    chosen: dict[str, Tensor] = {}
    checkpoint = outputs.checkpoint
    saved = None if checkpoint is None else load_checkpoint(checkpoint, trial, outputs.origin)
    watched = None if saved is None or saved["monitor_every"] != every else saved["monitor"]
    monitor = None
    if outputs.monitor is not None:
        if watched is None and learner.fabric.is_global_zero:  # nothing is gone on with, or it was watched otherwise
            outputs.monitor.unlink(missing_ok=True)
        monitor = BalanceMonitor(learner.method, learner.network, every, outputs.monitor)
        if watched is not None:
            monitor.load_state_dict(watched)
    if saved is not None:
        learner.load_state_dict(saved["learner"])
        scheduler.load_state_dict(saved["scheduler"])
        batches.load_state_dict(saved["batches"])
        if learner.method.needs_validation_losses:
            observed.load_state_dict(saved["observed"])
        epochs += saved["epochs"]
        best, chosen, record["selected"] = saved["best"], saved["chosen"], saved["selected"]
        started -= saved["seconds"]
    for epoch in range(len(epochs) + 1, trial.epochs + 1):
        try:
            losses, weights = _train_epoch(problem, learner, scheduler, batches, observed, on_step)
        except DivergedError as error:
            return record | {"status": "diverged", "message": f"{error} in epoch {epoch}"}
        values = learner.evaluate(data.validation)
        accuracy = accuracies(problem, values)
        learner.method.end_epoch(accuracy)
        if trial.single is None and not reference:
            reference = main_measures(problem.tasks, epochs[0]["validation"] if epochs else values)
        value = score(problem.tasks, values, reference)
        epochs.append({"loss": losses, "weights": weights, "validation": values, "accuracy": accuracy, "score": value})
        if value > best or not chosen or (math.isnan(best) and not math.isnan(value)):
            best = value
            chosen = {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}
            record["selected"] = epoch
        if checkpoint is not None and epoch < trial.epochs and learner.saves:
            state = {
                "learner": learner.state_dict(),
                "scheduler": scheduler.state_dict(),
                "batches": batches.state_dict(),
                "observed": observed.state_dict(),
                "monitor": None if monitor is None else monitor.state_dict(),
                "monitor_every": every,
                "epochs": epochs,
                "best": best,
                "chosen": learner.gathered(chosen),
                "selected": record["selected"],
                "seconds": time.perf_counter() - started,
            }
            if learner.fabric.is_global_zero:
                save_checkpoint(checkpoint, trial, outputs.origin, state)
        on_epoch(epoch, value)
    if monitor is not None:
        monitor.detach()
    if trial.shares and outputs.monitor is not None:
        record["shares"] = read_monitor(outputs.monitor).shares()
    if trial.single is None and trial.strategy != SHARDED:
        record["shared_parameters"] = learner.shared_parameters
    learner.load_network(chosen)
    record["test"] = learner.evaluate(data.test)
    if outputs.picture is not None:
        learner.draw(data.test, outputs.picture)
    return record | {"status": "finished", "seconds": time.perf_counter() - started}


class Averages:
    """Means over an epoch of numbers by task, which need not be there in every step; no synchronisation meanwhile.

    Args:
        tasks: the tasks' names.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self._tasks = tasks
        self._steps: list[tuple[tuple[str, ...], Tensor, Tensor] | None] = []

    def add(self, values: Mapping[str, Tensor], counts: Mapping[str, int | Tensor] | None = None) -> None:
        """Adds a step.

        Args:
            values: the numbers.
            counts: over how many labels each is the mean, where it is one of this device's alone.
        """
        if not values:
            self._steps.append(None)
            return
        stacked = torch.stack([value.detach() for value in values.values()])
        counted = [1 if counts is None else counts[name] for name in values]
        self._steps.append((tuple(values), stacked, torch.stack([torch.as_tensor(count) for count in counted])))

    def means(self, sum_over_devices: Callable[[Tensor], Tensor] = lambda table: table) -> dict[str, float]:
        """Returns each task's mean over the steps that it was in.

        Args:
            sum_over_devices: adds up a tensor over the devices that share the batches.
        """
        sums = torch.zeros(2, len(self._steps), len(self._tasks), dtype=torch.float64)  # of count times value, of count
        for row, step in enumerate(self._steps):
            if step is not None:
                names, values, counts = step
                columns = [self._tasks.index(name) for name in names]
                known = counts.to("cpu", torch.float64)
                sums[0, row, columns] = torch.where(known > 0, values.to("cpu", torch.float64) * known, 0)
                sums[1, row, columns] = known
        totals, samples = sum_over_devices(sums)
        steps = samples > 0
        means = torch.where(steps, totals / samples, 0).sum(0) / steps.sum(0)
        return {name: float(mean) for name, mean, there in zip(self._tasks, means, steps.any(0), strict=True) if there}


def accuracies(problem: Problem, values: Values) -> dict[str, float]:
    """Returns the accuracy of every task that has values."""
    found = {}
    for task in problem.tasks:
        if task.name in values:
            with problem_code(f"the accuracy of task {task.name!r}"):
                found[task.name] = task.accuracy(values[task.name])
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _train_epoch(
    problem: Problem,
    learner: Learner,
    scheduler: LambdaLR,
    batches: Batches,
    observed: Batches,
    on_step: Callable[[], None],
) -> tuple[dict[str, float], dict[str, float]]:
    """Trains for an epoch; returns each task's mean loss and weight.

    A method that follows validation losses sees a batch of validation before every step, as CoBa's paper has it.
    """
    tasks, fabric = [task.name for task in problem.tasks], learner.fabric
    losses, weights = Averages(tasks), Averages(tasks)
    validation = again_and_again(observed)

    def mine(batch: Batch) -> Batch:
        return learner.to_device(share(batch, fabric.global_rank, fabric.world_size))

    for batch in batches:
        on_step()
        if learner.method.needs_validation_losses:
            learner.observe(mine(next(validation)))
        step = learner.step(mine(batch))
        if step.losses or fabric.world_size > 1:  # other devices may have labels
            scheduler.step()
        losses.add(step.losses, step.counts)
        weights.add(step.weights)
    means = losses.means(learner.sum_over_devices)
    for name, value in means.items():
        if not math.isfinite(value):
            raise DivergedError(f"the loss of {name!r} became {value}")
    return means, weights.means()
