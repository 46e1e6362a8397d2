"""What is trained: a `Problem` has data, a network and `Task`s; a person's own file is held to the same."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler
from torchmetrics import MetricCollection

from equipoise.bench.problems._fitting import input_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = Any
"""What a problem's loader yields; the ready-made tasks expect a mapping with labels under the task's name."""

Predictions = Any
"""What `Problem.predict` returns; the ready-made tasks expect a mapping with the task's name."""


class MapDataset(Protocol):
    """A map-style dataset with a length: what `torch.utils.data.Dataset` is by convention."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


class Loader(Protocol):
    """Batches, one epoch each time it is iterated, and how many: what `torch.utils.data.DataLoader` is."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Measure:
    """How one number that is measured on a task is read and written.

    Attributes:
        name: its key in what the task's metrics compute.
        higher_is_better: the direction.
        unit: written behind the number, as in "%".
        scale: what the number is multiplied by when written (100 for a share in per cent).
        digits: decimals when written.
    """

    name: str
    higher_is_better: bool
    unit: str = ""
    scale: float = 1.0
    digits: int = 3

    def format(self, value: float) -> str:
        """Returns the value as it stands in a table, without the unit."""
        return f"{value * self.scale:.{self.digits}f}"

    @property
    def label(self) -> str:
        """Name, unit and an arrow in the better direction, for a table's head."""
        return f"{self.name}{f' {self.unit}' if self.unit else ''} {'↑' if self.higher_is_better else '↓'}"


class Task(ABC):
    """One of the things that a network learns at once.

    `equipoise.bench.problems.Classification` and `Regression` are ready-made; anything else is a subclass of this.

    Attributes:
        name: unique in its problem.
        measures: what is reported, in this order. The first is the main one: for selection and Δm.
    """

    name: str
    measures: Sequence[Measure]

    @abstractmethod
    def loss(self, predictions: Predictions, batch: Batch) -> Tensor | None:
        """Returns the mean loss over the batch's labelled samples, 0-dim; None if none has a label for it.

        All that is supervised for the task belongs here, intermediate predictions as well as final ones.
        """

    def labels(self, batch: Batch) -> int | Tensor | None:
        """Returns how many labels `loss` is the mean over, 0-dim; None: that is not known, for any batch.

        Several devices share a batch and each has its part's mean: these are averaged by the numbers of labels, which
        gives the mean over the whole batch, and with equal weight where the numbers are not known. That is the default.
        """
        return None

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Returns fresh metrics for one evaluation; what they compute has every measure's name as a key.

        A metric that computes a mapping contributes its keys, as torchmetrics' collections do.
        """

    @abstractmethod
    def update(self, metrics: MetricCollection, predictions: Predictions, batch: Batch) -> None:
        """Feeds a batch's labelled samples to the metrics; does nothing if there are none."""

    def accuracy(self, values: Mapping[str, float]) -> float:
        """Returns one number in [0, 1], higher is better, for the methods that balance by accuracy.

        The default is the main measure. A task whose main measure is an error overrides this and derives the
        number from another of its metrics, which need not be reported.

        Args:
            values: what the metrics computed.
        """
        return values[self.measures[0].name]


@dataclass(frozen=True)
class Splits:
    """A problem's data. A random dataset draws from PyTorch's default generator."""

    train: MapDataset
    validation: MapDataset
    test: MapDataset


@dataclass(frozen=True)
class Training:
    """How a problem is trained unless the command line says otherwise.

    Attributes:
        epochs: passes over the training data.
        batch_size: samples a step.
        evaluation_batch_size: samples at once in evaluation.
        lr: learning rate of Adam (of MAO for `mao`).
        weight_decay: decoupled weight decay.
        schedule: a name in `SCHEDULES`, what the learning rate is multiplied by over training.
    """

    epochs: int
    batch_size: int
    evaluation_batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: str = "constant"


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "poly": lambda progress: (1 - progress) ** 0.9,
    "tenth-after-half": lambda progress: 1.0 if progress < 0.5 else 0.1,
}
"""Learning-rate schedules: share of the steps done, in [0, 1) → factor. Applied before every step."""


class Problem(ABC):
    """Data, a network and tasks.

    Abstract is what every problem has to say; the rest has defaults that fit batches that are mappings with
    the network's input under "input". All of it must be deterministic: the caller seeds PyTorch's default
    generator before `model()` and while data is loaded, and the data itself is the same for every seed.

    Attributes:
        name: what the problem is called in tables and folders.
        description: one line.
        tasks: in the order of tables.
    """

    name: str
    description: str
    tasks: Sequence[Task]

    @abstractmethod
    def data(self, quick: bool = False) -> Splits:
        """Returns the data; less of it if `quick`. No sample or source of a sample may be in two splits."""

    @abstractmethod
    def model(self) -> nn.Module:
        """Returns a fresh network, initialised from PyTorch's default generator."""

    @abstractmethod
    def training(self, quick: bool = False) -> Training:
        """Returns the recommended settings; fewer epochs if `quick`."""

    def predict(self, model: nn.Module, batch: Batch) -> Predictions:
        """Runs the network on a batch. `model.training` tells training from evaluation."""
        return model(input_of(batch))

    def loader(self, dataset: MapDataset, batch_size: int, generator: torch.Generator | None) -> Loader:
        """Returns batches of a dataset: one epoch each time it is iterated.

        Override it for worker processes, a collate function or batches mixed of several datasets.

        Args:
            dataset: one of the splits.
            batch_size: samples a batch.
            generator: decides the order of a training epoch; None means evaluation, in the dataset's order.
        """
        sampler: Sampler[int] = SequentialSampler(dataset)
        if generator is not None:
            sampler = RandomSampler(dataset, generator=generator)
        # A last batch of a single sample would break BatchNorm.
        drop_last = generator is not None and len(dataset) >= batch_size
        if isinstance(dataset, Tensors):  # takes all of a batch's indices at once
            return DataLoader(dataset, sampler=BatchSampler(sampler, batch_size, drop_last), batch_size=None)
        data = cast("Dataset[Any]", dataset)
        return DataLoader(data, batch_size, sampler=sampler, drop_last=drop_last, generator=generator)

    def to_device(self, batch: Batch, device: torch.device) -> Batch:
        """Moves a batch: tensors in any nesting of mappings, lists and tuples."""
        if isinstance(batch, Tensor):
            return batch.to(device, non_blocking=True)
        if isinstance(batch, Mapping):
            return {key: self.to_device(value, device) for key, value in batch.items()}
        if isinstance(batch, (list, tuple)):
            return type(batch)(self.to_device(value, device) for value in batch)
        return batch

    def picture(self, predictions: Predictions, batch: Batch) -> Figure | None:
        """Hook: draws some of a test batch with what was predicted for it. The default draws nothing."""
        return None


class Tensors(Dataset[dict[str, Tensor]]):
    """A dataset of equally long tensors held in memory: `dataset[index or indices]` is a mapping.

    Args:
        **tensors: `[N, …]` each; a float label NaN, or an int label −1, is missing.

    Raises:
        ValueError: there is none, or their lengths differ.
    """

    def __init__(self, **tensors: Tensor) -> None:
        lengths = {name: len(tensor) for name, tensor in tensors.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"Tensors needs at least one tensor, all of the same length; found {lengths}.")
        self.tensors = tensors

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: int | Sequence[int]) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in self.tensors.items()}
