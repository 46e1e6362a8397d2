"""One run: train a problem's network by one method with one seed, select an epoch on validation, test it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from equipoise.experiment.statistics import relative_gain
from equipoise.methods import make_method
from equipoise.problems import SCHEDULES, Problem, Splits
from equipoise.problems._base import Batch, MapDataset

Values = dict[str, dict[str, float]]
"""Task → measure (and whatever else its metrics compute) → value."""

Record = dict[str, Any]
"""What came of a run, as `train` returns it."""

MIN_POTENTIAL = 0.01
"""The least single-task accuracy that is handed to accuracy-based methods: they divide by it."""


@dataclass(frozen=True)
class Trial:
    """What one run is: all that decides its outcome.

    Attributes:
        method: a name in the registry, `single:<task>` included.
        seed: decides initial weights, order of the batches and everything random.
        epochs, batch_size, evaluation_batch_size, lr, weight_decay, schedule: see `equipoise.problems.Training`.
        hyperparameters: the method's own.
        device: where it runs.
        reference: each task's main measure on validation by the single-task run of the same seed, against which
            epochs are scored; None for a single-task run.
        potentials: each task's validation accuracy by that run, for the methods that need it.
    """

    method: str
    seed: int
    epochs: int
    batch_size: int
    evaluation_batch_size: int
    lr: float
    weight_decay: float
    schedule: str = "constant"
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    reference: Mapping[str, float] | None = None
    potentials: Mapping[str, float] | None = None

    @property
    def single(self) -> str | None:
        """The one task that a single-task run trains."""
        return self.method.removeprefix("single:") if self.method.startswith("single:") else None


class DivergedError(Exception):
    """A loss became NaN or infinite."""


class Batches:
    """A training split's batches. They depend on the seed alone, never on the method.

    The order comes from a generator of its own; what a dataset draws while it is read (augmentation) from PyTorch's
    default generator, which is set aside meanwhile, so that the model's dropout and random methods do not shift it.
    """

    def __init__(self, problem: Problem, dataset: MapDataset, batch_size: int, seed: int) -> None:
        order = torch.Generator().manual_seed(seed)
        self._loader = problem.loader(dataset, batch_size, order)
        self._state = torch.Generator().manual_seed(seed).get_state()

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        iterator = None
        while True:
            outside = torch.get_rng_state()
            torch.set_rng_state(self._state)
            try:
                iterator = iter(self._loader) if iterator is None else iterator
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self._state = torch.get_rng_state()
                torch.set_rng_state(outside)
            yield batch


class Averages:
    """Means over an epoch of numbers by task, which need not be there in every step; no synchronisation."""

    def __init__(self) -> None:
        self._steps: list[tuple[tuple[str, ...], Tensor]] = []

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Adds a step."""
        if values:
            self._steps.append((tuple(values), torch.stack([value.detach() for value in values.values()])))

    def means(self) -> dict[str, float]:
        """Returns each task's mean over the steps it was in."""
        found: dict[str, list[float]] = {}
        for names, values in self._steps:
            for name, value in zip(names, values.tolist(), strict=True):
                found.setdefault(name, []).append(value)
        return {name: sum(values) / len(values) for name, values in found.items()}


def build(problem: Problem, trial: Trial) -> tuple[nn.Module, Any]:
    """Returns the seeded network on its device, and the method that trains it."""
    torch.manual_seed(trial.seed)
    model = problem.model().to(trial.device)
    method = make_method(
        trial.method,
        model,
        [task.name for task in problem.tasks],
        lr=trial.lr,
        weight_decay=trial.weight_decay,
        potentials=None if trial.potentials is None else dict(trial.potentials),
        **trial.hyperparameters,
    )
    return model, method


def compute_losses(problem: Problem, model: nn.Module, batch: Batch, single: str | None = None) -> dict[str, Tensor]:
    """Returns the losses of the tasks that the batch has labels for, or of `single` alone."""
    predictions = problem.predict(model, batch)
    losses = {task.name: task.loss(predictions, batch) for task in problem.tasks if single in (None, task.name)}
    return {name: loss for name, loss in losses.items() if loss is not None}


def training_step(
    problem: Problem, model: nn.Module, method: Any, batch: Batch, single: str | None = None
) -> tuple[dict[str, Tensor], Mapping[str, Tensor]]:
    """Makes one step of training. Returns the losses and the weights that the method gave them.

    Raises:
        DivergedError: a loss is NaN or infinite; asked on the CPU only, where asking is free.
    """
    losses = compute_losses(problem, model, batch, single)
    if not losses:
        return {}, {}
    for name, loss in losses.items():
        if loss.device.type == "cpu" and not math.isfinite(loss.item()):
            raise DivergedError(f"the loss of {name!r} became {loss.item()}")
    weights = method.backward(losses)
    method.step()
    if method.needs_after_step:
        with torch.no_grad():
            method.after_step(compute_losses(problem, model, batch, single))
    method.zero_grad()
    return losses, weights or {}


def evaluate(problem: Problem, model: nn.Module, dataset: MapDataset, trial: Trial) -> Values:
    """Returns what every task's metrics compute on a split; NaN for a task without a label in it.

    A single-task run is evaluated on its task alone.
    """
    tasks = [task for task in problem.tasks if trial.single in (None, task.name)]
    metrics = {task.name: task.metrics().to(trial.device) for task in tasks}
    model.eval()
    with torch.no_grad():
        for batch in problem.loader(dataset, trial.evaluation_batch_size, None):
            batch = problem.to_device(batch, torch.device(trial.device))
            predictions = problem.predict(model, batch)
            for task in tasks:
                task.update(metrics[task.name], predictions, batch)
    model.train()
    values: Values = {}
    for task in tasks:
        collection = metrics[task.name]
        if any(metric.update_called for metric in collection.values()):
            values[task.name] = {name: float(value) for name, value in collection.compute().items()}
        else:
            values[task.name] = {measure.name: math.nan for measure in task.measures}
    return values


def score(problem: Problem, values: Values, reference: Mapping[str, float] | None) -> float:
    """Returns what an epoch is selected by, higher is better.

    It is the mean over tasks of the main measure's relative gain over the single-task run of the same seed, or, for
    a single-task run, the main measure itself, negated where lower is better.
    """
    scores = []
    for task in problem.tasks:
        if task.name in values:
            main = task.measures[0]
            value = values[task.name][main.name]
            if reference is None:
                scores.append(value if main.higher_is_better else -value)
            else:
                scores.append(relative_gain(value, reference[task.name], main.higher_is_better))
    return sum(scores) / len(scores)


def accuracies(problem: Problem, values: Values) -> dict[str, float]:
    """Returns the accuracy of every task that has values."""
    found = {task.name: task.accuracy(values[task.name]) for task in problem.tasks if task.name in values}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def train(
    problem: Problem,
    data: Splits,
    trial: Trial,
    on_epoch: Callable[[int, float], None] = lambda epoch, score: None,
    on_step: Callable[[], None] = lambda: None,
    picture: Path | None = None,
) -> Record:
    """Runs a trial.

    Args:
        problem: what is trained.
        data: the problem's data.
        trial: how.
        on_epoch: called with the number of every finished epoch, from 1, and its score.
        on_step: called before every step; may raise to stop.
        picture: where a picture of predictions goes, if the problem draws one.

    Returns:
        A record that JSON can hold: `status` ("finished", or "diverged" with a `message`), `epochs` (each with mean
        training loss and weights, validation measures, accuracies and score), `selected` (the number of the epoch
        with the best score), `test` (the measures at that epoch) and `seconds`.
    """
    started = time.perf_counter()
    model, method = build(problem, trial)
    batches = Batches(problem, data.train, trial.batch_size, trial.seed)
    factor, steps = SCHEDULES[trial.schedule], max(1, trial.epochs * len(batches))
    scheduler = LambdaLR(method.optimizer, lambda step: factor(min(step / steps, 1)))
    epochs: list[dict[str, Any]] = []
    record: Record = {"method": trial.method, "seed": trial.seed, "lr": trial.lr, "epochs": epochs}
    best = -math.inf
    chosen: dict[str, Tensor] = {}
    for epoch in range(1, trial.epochs + 1):
        try:
            losses, weights = _train_epoch(problem, model, method, scheduler, batches, trial, on_step)
        except DivergedError as error:
            return record | {"status": "diverged", "message": f"{error} in epoch {epoch}"}
        values = evaluate(problem, model, data.validation, trial)
        accuracy = accuracies(problem, values)
        method.end_epoch(accuracy)
        value = score(problem, values, trial.reference)
        epochs.append({"loss": losses, "weights": weights, "validation": values, "accuracy": accuracy, "score": value})
        if value > best or not chosen:
            best = value
            chosen = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            record["selected"] = epoch
        on_epoch(epoch, value)
    model.load_state_dict(chosen)
    record["test"] = evaluate(problem, model, data.test, trial)
    if picture is not None:
        _draw(problem, model, data.test, trial, picture)
    return record | {"status": "finished", "seconds": time.perf_counter() - started}


def _train_epoch(
    problem: Problem,
    model: nn.Module,
    method: Any,
    scheduler: LambdaLR,
    batches: Batches,
    trial: Trial,
    on_step: Callable[[], None],
) -> tuple[dict[str, float], dict[str, float]]:
    """Trains for an epoch; returns each task's mean loss and weight."""
    losses, weights = Averages(), Averages()
    for batch in batches:
        on_step()
        moved = problem.to_device(batch, torch.device(trial.device))
        step_losses, step_weights = training_step(problem, model, method, moved, trial.single)
        if step_losses:
            scheduler.step()
        losses.add(step_losses)
        weights.add(step_weights)
    means = losses.means()
    for name, value in means.items():
        if not math.isfinite(value):
            raise DivergedError(f"the loss of {name!r} became {value}")
    return means, weights.means()


def _draw(problem: Problem, model: nn.Module, dataset: MapDataset, trial: Trial, path: Path) -> None:
    """Draws predictions for the first test batch, if the problem has a picture of them."""
    model.eval()
    with torch.no_grad():
        batch = problem.to_device(
            next(iter(problem.loader(dataset, trial.evaluation_batch_size, None))), torch.device(trial.device)
        )
        figure = problem.picture(problem.predict(model, batch), batch)
    if figure is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
