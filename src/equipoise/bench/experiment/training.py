"""One run: train a problem's network by one method with one seed, select an epoch on validation, test it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.optim.lr_scheduler import LambdaLR

from equipoise.bench.experiment.checkpoints import load_checkpoint, save_checkpoint
from equipoise.bench.experiment.statistics import relative_gain
from equipoise.bench.problems import SCHEDULES, Problem, Splits
from equipoise.bench.problems._base import Batch, MapDataset, Predictions
from equipoise.integrations.fabric import backward
from equipoise.methods import Method, make_method
from equipoise.monitor import BalanceMonitor

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch.distributed.device_mesh import DeviceMesh

Values = dict[str, dict[str, float]]
"""Task → measure (and whatever else its metrics compute) → value."""

Record = dict[str, Any]
"""What came of a run, as `train` returns it."""

SHARDED = "fsdp"
"""The strategy that shards the network."""

MIN_SAMPLES = 20
"""So many samples the balance monitor takes at least, of a run that has so many steps."""

MIN_POTENTIAL = 0.01
"""The least single-task accuracy that is handed to accuracy-based methods: they divide by it."""


@dataclass(frozen=True)
class Trial:
    """What one run is: all that decides its outcome.

    Attributes:
        method: a name in the registry, `single:<task>` included.
        seed: decides initial weights, order of the batches and everything random.
        epochs, batch_size, evaluation_batch_size, lr, weight_decay, schedule: see `equipoise.bench.problems.Training`.
        hyperparameters: the method's own; `potentials` among them stand in place of those below.
        device, devices, precision, strategy: where and how it runs, as Lightning Fabric takes them; of several devices
            each takes its share of every batch. The strategy `SHARDED` spreads parameters, gradients and optimizer
            states over them by `fully_shard`; such a run has no checkpoint.
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
    devices: int = 1
    precision: str = "32-true"
    strategy: str = "auto"
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
        self._order = torch.Generator().manual_seed(seed)
        self._loader = problem.loader(dataset, batch_size, self._order)
        self._state = torch.Generator().manual_seed(seed).get_state()

    def __len__(self) -> int:
        return len(self._loader)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns what decides the epochs to come; to be asked between two epochs."""
        return {"order": self._order.get_state(), "reading": self._state}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what `state_dict` gave."""
        self._order.set_state(state["order"])
        self._state = state["reading"]

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


def share(batch: Batch, rank: int, size: int) -> Batch:
    """Returns the part of a batch that one of `size` devices trains on: every `size`-th sample.

    Tensors and lists hold samples; mappings and tuples hold tensors and lists.
    """
    if size == 1:
        return batch
    if isinstance(batch, Mapping):
        return {key: share(value, rank, size) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(share(value, rank, size) for value in batch)
    return batch[rank::size] if isinstance(batch, (Tensor, list)) else batch


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


def build_method(problem: Problem, trial: Trial, network: nn.Module) -> Method:
    """Returns the method that trains a network, which is on its device."""
    return make_method(
        trial.method,
        network,
        [task.name for task in problem.tasks],
        lr=trial.lr,
        weight_decay=trial.weight_decay,
        **{"potentials": trial.potentials, **trial.hyperparameters},
    )


def make_fabric(trial: Trial) -> Fabric:
    """Returns Lightning Fabric as a trial asks for it; of several devices, this process's."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
    from lightning_fabric.strategies.strategy import Strategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    device = torch.device(trial.device)
    devices = trial.devices if device.index is None else [device.index]
    strategy: str | Strategy = trial.strategy
    if strategy == SHARDED:
        strategy = ModelParallelStrategy(_shard, data_parallel_size=trial.devices, tensor_parallel_size=1)
    return Fabric(accelerator=device.type, devices=devices, precision=cast("Any", trial.precision), strategy=strategy)


def _shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shards a network whole: which of its parts a problem calls as modules is not known."""
    fully_shard(module, mesh=mesh["data_parallel"])
    return module


class _Predictor(nn.Module):
    """A network, run as its problem runs it, for Fabric to wrap: precision and ranks see every forward pass."""

    def __init__(self, problem: Problem, network: nn.Module) -> None:
        super().__init__()
        self.problem, self.network = problem, network

    def forward(self, batch: Batch) -> Predictions:
        return self.problem.predict(self.network, batch)


class Learner:
    """A network, the method that trains it and Fabric, which runs them; seeded.

    Args:
        problem: what is trained.
        trial: how.

    Attributes:
        network: the network itself.
        method: the method; its optimizer may be given a scheduler.
        fabric: runs them.
    """

    def __init__(self, problem: Problem, trial: Trial) -> None:
        self.fabric = make_fabric(trial)
        self.fabric.launch()
        torch.manual_seed(trial.seed)
        self.network = problem.model()
        self._predict = self.fabric.setup_module(_Predictor(problem, self.network))
        self.method = build_method(problem, trial, self.network)
        self._optimizer: Any = self.fabric.setup_optimizers(self.method.optimizer)
        self._problem, self._single, self._size = problem, trial.single, trial.evaluation_batch_size

    def step(self, batch: Batch) -> tuple[dict[str, Tensor], Mapping[str, Tensor]]:
        """Makes one step of training. Returns the losses and the weights that the method gave them.

        Raises:
            DivergedError: a loss is NaN or infinite; asked on the CPU only, where asking is free.
        """
        losses = self._losses(batch)
        if not losses and self.fabric.world_size == 1:
            return {}, {}
        for name, loss in losses.items():  # of several devices one alone must not stop
            if loss.device.type == "cpu" and self.fabric.world_size == 1 and not math.isfinite(loss.item()):
                raise DivergedError(f"the loss of {name!r} became {loss.item()}")
        weights = backward(self.fabric, self.method, losses)
        self._optimizer.step()
        if self.method.needs_after_step:
            with torch.no_grad():
                self.method.after_step(self._losses(batch))
        self.method.zero_grad()
        return losses, weights or {}

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of the tasks that the batch has labels for, or of the single one."""
        predictions = self._predict(batch)
        tasks = [task for task in self._problem.tasks if self._single in (None, task.name)]
        losses = {task.name: task.loss(predictions, batch) for task in tasks}
        return {name: loss for name, loss in losses.items() if loss is not None}

    def evaluate(self, dataset: MapDataset) -> Values:
        """Returns what every task's metrics compute on a split; NaN for a task without a label in it.

        A single-task run is evaluated on its task alone. Of several devices each evaluates all of it.
        """
        tasks = [task for task in self._problem.tasks if self._single in (None, task.name)]
        metrics = {task.name: task.metrics().to(self.fabric.device) for task in tasks}
        for collection in metrics.values():
            for metric in collection.values():
                metric.sync_on_compute = False
        self.network.eval()
        with torch.no_grad():
            for batch in self._problem.loader(dataset, self._size, None):
                moved = self._problem.to_device(batch, self.fabric.device)
                predictions = self._predict(moved)
                for task in tasks:
                    task.update(metrics[task.name], predictions, moved)
        self.network.train()
        values: Values = {}
        for task in tasks:
            collection = metrics[task.name]
            if any(metric.update_called for metric in collection.values()):
                values[task.name] = {name: float(value) for name, value in collection.compute().items()}
            else:
                values[task.name] = {measure.name: math.nan for measure in task.measures}
        return values

    def draw(self, dataset: MapDataset, path: Path) -> None:
        """Draws predictions for the first test batch, if the problem has a picture of them."""
        self.network.eval()
        with torch.no_grad():
            batch = next(iter(self._problem.loader(dataset, self._size, None)))
            moved = self._problem.to_device(batch, self.fabric.device)
            figure = self._problem.picture(self._predict(moved), moved)
        if figure is not None and self.fabric.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=120)

    def state_dict(self) -> dict[str, Any]:
        """Returns all that is needed to go on bit for bit, the generators of random numbers included."""
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        cuda = self.fabric.device.type == "cuda"
        return {
            "network": self.network.state_dict(),
            "method": self.method.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.fabric.device) if cuda else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        self.network.load_state_dict(state["network"])
        self.method.load_state_dict(state["method"])
        if state["scaler"] is not None:
            cast("Any", self.fabric.strategy.precision).scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], self.fabric.device)


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
        with the best score), `test` (the measures at that epoch) and `seconds`.
    """
    started = time.perf_counter()
    outputs = outputs or Outputs()
    learner = Learner(problem, trial)
    batches = Batches(problem, data.train, trial.batch_size, trial.seed)
    factor, steps = SCHEDULES[trial.schedule], max(1, trial.epochs * len(batches))
    scheduler = LambdaLR(learner.method.optimizer, lambda step: factor(min(step / steps, 1)))
    every = max(1, min(outputs.monitor_every, steps // MIN_SAMPLES))
    epochs: list[dict[str, Any]] = []
    record: Record = {"method": trial.method, "seed": trial.seed, "lr": trial.lr, "epochs": epochs}
    best = -math.inf
    chosen: dict[str, Tensor] = {}
    checkpoint = None if trial.strategy == SHARDED else outputs.checkpoint
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
        epochs += saved["epochs"]
        best, chosen, record["selected"] = saved["best"], saved["chosen"], saved["selected"]
        started -= saved["seconds"]
    for epoch in range(len(epochs) + 1, trial.epochs + 1):
        try:
            losses, weights = _train_epoch(problem, learner, scheduler, batches, on_step)
        except DivergedError as error:
            return record | {"status": "diverged", "message": f"{error} in epoch {epoch}"}
        values = learner.evaluate(data.validation)
        accuracy = accuracies(problem, values)
        learner.method.end_epoch(accuracy)
        value = score(problem, values, trial.reference)
        epochs.append({"loss": losses, "weights": weights, "validation": values, "accuracy": accuracy, "score": value})
        if value > best or not chosen:
            best = value
            chosen = {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}
            record["selected"] = epoch
        if checkpoint is not None and epoch < trial.epochs and learner.fabric.is_global_zero:
            state = {
                "learner": learner.state_dict(),
                "scheduler": scheduler.state_dict(),
                "batches": batches.state_dict(),
                "monitor": None if monitor is None else monitor.state_dict(),
                "monitor_every": every,
                "epochs": epochs,
                "best": best,
                "chosen": chosen,
                "selected": record["selected"],
                "seconds": time.perf_counter() - started,
            }
            save_checkpoint(checkpoint, trial, outputs.origin, state)
        on_epoch(epoch, value)
    if monitor is not None:
        monitor.detach()
    learner.network.load_state_dict(chosen)
    record["test"] = learner.evaluate(data.test)
    if outputs.picture is not None:
        learner.draw(data.test, outputs.picture)
    return record | {"status": "finished", "seconds": time.perf_counter() - started}


def _train_epoch(
    problem: Problem, learner: Learner, scheduler: LambdaLR, batches: Batches, on_step: Callable[[], None]
) -> tuple[dict[str, float], dict[str, float]]:
    """Trains for an epoch; returns each task's mean loss and weight."""
    losses, weights, fabric = Averages(), Averages(), learner.fabric
    for batch in batches:
        on_step()
        moved = problem.to_device(share(batch, fabric.global_rank, fabric.world_size), fabric.device)
        step_losses, step_weights = learner.step(moved)
        if step_losses or fabric.world_size > 1:  # other devices may have labels
            scheduler.step()
        losses.add(step_losses)
        weights.add(step_weights)
    means = _over_ranks(losses.means()) if fabric.world_size > 1 else losses.means()
    for name, value in means.items():
        if not math.isfinite(value):
            raise DivergedError(f"the loss of {name!r} became {value}")
    return means, weights.means()


def _over_ranks(means: Mapping[str, float]) -> dict[str, float]:
    """Averages what every device found, over those that found something."""
    everyone: list[dict[str, float]] = [{}] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, dict(means))
    names = dict.fromkeys(name for found in everyone for name in found)
    found = {name: [one[name] for one in everyone if name in one] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}
