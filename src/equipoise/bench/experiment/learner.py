"""What a run trains: a network, the method that trains it, and Fabric, which runs them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from equipoise._method import Method
from equipoise.bench.experiment.batches import batches_of
from equipoise.bench.experiment.rows import made_by
from equipoise.bench.experiment.sharding import gather, spread, spread_moments
from equipoise.bench.experiment.trial import SHARDED, Trial, Values
from equipoise.bench.problems import Problem
from equipoise.bench.problems._base import Batch, MapDataset, Predictions
from equipoise.bench.problems._errors import check_computed, problem_code
from equipoise.gradients.graph.walk import reached_leaves
from equipoise.integrations.fabric import backward
from equipoise.methods import make_method

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch.distributed.device_mesh import DeviceMesh


class DivergedError(Exception):
    """A loss became NaN or infinite."""


def build_method(problem: Problem, trial: Trial, network: nn.Module) -> Method:
    """Returns the method that trains a network, which is on its device."""
    return make_method(
        made_by(trial.method),
        network,
        [task.name for task in problem.tasks],
        lr=trial.lr,
        weight_decay=trial.weight_decay,
        priorities=trial.priorities,
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
        with problem_code("predict", batch=batch):
            return self.problem.predict(self.network, batch)


@dataclass(frozen=True)
class Step:
    """What came of a step, by task; on several devices of this one's part of the batch.

    Attributes:
        losses: mean losses.
        counts: how many labels each is the mean over; 1 where that is not known, and on one device.
        weights: those that the method gave, the same on all devices.
    """

    losses: Mapping[str, Tensor]
    counts: Mapping[str, int | Tensor]
    weights: Mapping[str, Tensor]


class Learner:
    """A network, the method that trains it and Fabric, which runs them; seeded.

    Args:
        problem: what is trained.
        trial: how.

    Attributes:
        network: the network itself.
        method: the method; its optimizer may be given a scheduler.
        fabric: runs them.
        shared_parameters: how many numbers of the network two tasks or more depend on, as far as was seen; 0 before
            the first step, and of a single task or a sharded network always.
    """

    def __init__(self, problem: Problem, trial: Trial) -> None:
        self.fabric = make_fabric(trial)
        self.fabric.launch()
        torch.manual_seed(trial.seed)
        with problem_code("model"):
            self.network = problem.model()
        self._predict = self.fabric.setup_module(_Predictor(problem, self.network))
        self.method = build_method(problem, trial, self.network)
        self._optimizer: Any = self.fabric.setup_optimizers(self.method.optimizer)
        self._problem, self._single, self._size = problem, trial.single, trial.evaluation_batch_size
        self._sharded = trial.strategy == SHARDED
        self.shared_parameters = 0
        self._tasks_of: dict[Tensor, set[str]] = {}

    def step(self, batch: Batch) -> Step:
        """Makes one step of training.

        Raises:
            DivergedError: a loss is NaN or infinite; asked on the CPU only, where asking is free.
        """
        losses, several = self._losses(batch), self.fabric.world_size > 1
        if not losses and not several:
            return Step({}, {}, {})
        self._check_finite(losses, "loss")
        if not self.shared_parameters and not self._sharded:
            self._note_shared(losses)
        counts = self._counts(batch, losses) if several else None
        weights = backward(self.fabric, self.method, losses, counts=counts)
        self._optimizer.step()
        if self.method.needs_after_step:
            with torch.no_grad():
                self.method.after_step(self._losses(batch))
        self.method.zero_grad()
        return Step(losses, counts or dict.fromkeys(losses, 1), weights or {})

    def _note_shared(self, losses: Mapping[str, Tensor]) -> None:
        """Looks for parameters of several tasks in a step's graphs, until some are found: batches may hold few."""
        graphs = {task: loss for task, loss in losses.items() if loss.requires_grad}
        for task, leaves in zip(graphs, reached_leaves(list(graphs.values())), strict=True):
            for leaf in leaves:
                self._tasks_of.setdefault(leaf, set()).add(task)
        self.shared_parameters = sum(leaf.numel() for leaf, tasks in self._tasks_of.items() if len(tasks) > 1)

    def to_device(self, batch: Batch) -> Batch:
        """Returns a batch on this device."""
        with problem_code("to_device"):
            return self._problem.to_device(batch, self.fabric.device)

    def observe(self, batch: Batch) -> None:
        """Shows the method the losses of a validation batch, if it has labels.

        Raises:
            DivergedError: as `step`.
        """
        self.network.eval()
        with torch.no_grad():
            losses = self._losses(batch)
        self.network.train()
        self._check_finite(losses, "validation loss")
        if losses or self.fabric.world_size > 1:
            self.method.observe_validation(losses)

    def _check_finite(self, losses: Mapping[str, Tensor], what: str) -> None:
        for name, loss in losses.items():  # of several devices one alone must not stop
            if loss.device.type == "cpu" and self.fabric.world_size == 1 and not math.isfinite(loss.item()):
                raise DivergedError(f"the {what} of {name!r} became {loss.item()}")

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of the tasks that the batch has labels for, or of the single one."""
        predictions = self._predict(batch)
        tasks = [task for task in self._problem.tasks if self._single in (None, task.name)]
        losses = {}
        for task in tasks:
            with problem_code(f"the loss of task {task.name!r}", predictions, batch):
                loss = task.loss(predictions, batch)
            if loss is not None:
                losses[task.name] = loss
        return losses

    def _counts(self, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, int | Tensor]:
        """How many labels each loss is the mean over; 1 where that is not known."""
        found = {}
        for task in self._problem.tasks:
            if task.name in losses:
                with problem_code(f"the labels of task {task.name!r}", batch=batch):
                    count = task.labels(batch)
                found[task.name] = 1 if count is None else count
        return found

    def sum_over_devices(self, values: Tensor) -> Tensor:
        """Returns a tensor's sum over the devices, on the CPU."""
        if self.fabric.world_size == 1:
            return values
        moved = values.to(self.fabric.device)
        torch.distributed.all_reduce(moved)
        return moved.cpu()

    def evaluate(self, dataset: MapDataset) -> Values:
        """Returns what every task's metrics compute on a split; NaN for a task without a label in it.

        A single-task run is evaluated on its task alone. Of several devices each evaluates all of it.
        """
        tasks = [task for task in self._problem.tasks if self._single in (None, task.name)]
        metrics = {}
        for task in tasks:
            with problem_code(f"the metrics of task {task.name!r}"):
                metrics[task.name] = task.metrics().to(self.fabric.device)
            for metric in metrics[task.name].values():
                metric.sync_on_compute = False
        self.network.eval()
        with torch.no_grad():
            for batch in batches_of(self._problem, dataset, self._size):
                moved = self.to_device(batch)
                predictions = self._predict(moved)
                for task in tasks:
                    with problem_code(f"the metrics of task {task.name!r}", predictions, moved):
                        task.update(metrics[task.name], predictions, moved)
        self.network.train()
        values: Values = {}
        for task in tasks:
            collection = metrics[task.name]
            if any(metric.update_called for metric in collection.values()):
                with problem_code(f"the metrics of task {task.name!r}"):
                    values[task.name] = {name: float(value) for name, value in collection.compute().items()}
                check_computed(task, values[task.name])
            else:
                values[task.name] = {measure.name: math.nan for measure in task.measures}
        return values

    def draw(self, dataset: MapDataset, path: Path) -> None:
        """Draws predictions for the first test batch, if the problem has a picture of them."""
        self.network.eval()
        with torch.no_grad():
            moved = self.to_device(next(batches_of(self._problem, dataset, self._size)))
            predictions = self._predict(moved)
            with problem_code("picture", predictions, moved):
                figure = self._problem.picture(predictions, moved)
        if figure is not None and self.fabric.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=120)

    @property
    def saves(self) -> bool:
        """Whether this device has to take part in saving: the first one, and of a sharded network's all."""
        return self._sharded or self.fabric.is_global_zero

    def gathered(self, state: Any) -> Any:
        """Returns a state whole, on the first device; as it is where nothing is sharded."""
        return gather(state, self.fabric.is_global_zero) if self._sharded else state

    def load_network(self, state: Mapping[str, Tensor]) -> None:
        """Takes over the network's state, whole or as this device has it."""
        own = self.network.state_dict()
        self.network.load_state_dict({name: spread(value, own[name]) for name, value in state.items()})

    def state_dict(self) -> dict[str, Any]:
        """Returns all that is needed to go on bit for bit, the generators of random numbers included."""
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        cuda = self.fabric.device.type == "cuda"
        return {
            "network": self.gathered(self.network.state_dict()),
            "method": self.gathered(self.method.state_dict()),
            "scaler": None if scaler is None else scaler.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.fabric.device) if cuda else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        self.load_network(state["network"])
        method = state["method"]
        if self._sharded:
            parameters = [p for group in self.method.optimizer.param_groups for p in group["params"]]
            method = {**method, "optimizer": spread_moments(method["optimizer"], parameters)}
        self.method.load_state_dict(method)
        if state["scaler"] is not None:
            cast("Any", self.fabric.strategy.precision).scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], self.fabric.device)
