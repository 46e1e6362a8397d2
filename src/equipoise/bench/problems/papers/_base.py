"""What the papers' problems share: a data folder, held-out data, loading by worker processes, a small size to try."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler, Subset

from equipoise._checks import check_choice
from equipoise.bench.problems._base import Loader, MapDataset, Problem, Splits, Training
from equipoise.bench.problems._registry import ProblemError
from equipoise.bench.problems.data import (
    DamagedDataError,
    MissingDataError,
    Reader,
    Sample,
    Source,
    augmentation,
    collate,
    preparation,
)
from equipoise.bench.problems.data._files import Transform

QUICK = {"train": 2000, "validation": 500, "test": 500}
SMOKE = {"train": 4, "validation": 8, "test": 8}
"""At most so many samples of a split are taken."""

MOST_PROCESSES = 4
"""Processes that read the data, at most, unless more are asked for."""


class PaperProblem(Problem):
    """A problem of a paper. Subclasses say what is read, and give network and tasks.

    Args:
        data: the folder with the data set in its official layout.
        pretrained: start backbones from timm's weights, where the paper does.
        smoke: two steps at a small size on a few samples, to see that everything works; no pretrained weights.
        on_damaged: "error" or "skip", as for the readers.
        loading: processes that read the data. By default up to 4 where there is a GPU, not more than there are cores;
            without one, training itself takes the cores, and reads the data too.

    Attributes:
        source: what the data set is, which files are read, and where to request it.
        size: height and width of the network's input.
        smoke_size: those of a smoke run.
        held_out: share of the training data taken for validation, where the data set has none to spare: whole videos
            or scenes, always the same ones.
        test_split: the reader's split that results are reported on.
    """

    source: ClassVar[Source]
    size: ClassVar[tuple[int, int]]
    smoke_size: ClassVar[tuple[int, int]] = (32, 32)
    held_out: ClassVar[float] = 0.0
    test_split: ClassVar[str] = "test"

    def __init__(
        self,
        data: str | None = None,
        pretrained: bool = True,
        smoke: bool = False,
        on_damaged: str = "error",
        loading: int | None = None,
    ) -> None:
        self.root = None if data is None else Path(str(data))
        self.pretrained = pretrained and not smoke
        self.smoke = smoke
        self.on_damaged = check_choice("on_damaged", on_damaged, ("error", "skip"))
        self.loading = 0 if smoke else _processes() if loading is None else loading

    @classmethod
    @abstractmethod
    def write_samples(cls, folder: Path) -> None:
        """Writes made-up data in the official layout into an empty folder, for smoke runs."""

    @abstractmethod
    def read(self, root: Path, split: str, transform: Transform | None) -> Reader | ConcatDataset[Any]:
        """Returns a split of the data set: "train", `test_split` or, if nothing is held out, "validation"."""

    def train_transform(self, size: tuple[int, int]) -> Any:
        """Returns what is done to a training sample; the default resizes and mirrors at random."""
        return augmentation(size)

    def test_transform(self, size: tuple[int, int]) -> Any:
        """Returns what is done to a sample in evaluation; the default resizes."""
        return preparation(size)

    @abstractmethod
    def network(self) -> nn.Module:
        """Returns the paper's network; pretrained ResNets have torchvision's weights."""

    @abstractmethod
    def protocol(self) -> Training:
        """Returns the paper's settings."""

    def data(self, quick: bool = False) -> Splits:
        """Returns the splits; at most 2,000, 500 and 500 samples if `quick`.

        Raises:
            ProblemError: no folder was named, or a file is missing or damaged; it says which files are expected and
                where to request them.
        """
        if self.root is None:
            raise ProblemError(
                f"{self.name} needs its data: equipoise reproduce … --data DIR, or the problem "
                f"{self.name}?data=DIR.\nExpected in the data folder:\n{self.source.layout}\n"
                f"Where to get it: {self.source.request}"
            )
        size = self.smoke_size if self.smoke else self.size
        augment, prepare = self.train_transform(size), self.test_transform(size)
        try:
            test = self.read(self.root, self.test_split, prepare)
            if self.held_out:
                both = self.read(self.root, "train", None)  # once: with on_damaged="skip" every file is read here
                rest, chosen = halve(both) if self.smoke else hold_out(both, self.held_out)
                train: MapDataset = _Transformed(Subset(both, rest), augment)
                validation: MapDataset = _Transformed(Subset(both, chosen), prepare)
            else:
                train = self.read(self.root, "train", augment)
                validation = self.read(self.root, "validation", prepare)
        except (MissingDataError, DamagedDataError) as error:
            raise ProblemError(str(error)) from error
        splits = {"train": train, "validation": validation, "test": test}
        if self.smoke or quick:
            most = SMOKE if self.smoke else QUICK
            splits = {split: spread(dataset, most[split]) for split, dataset in splits.items()}
        return Splits(**splits)

    def model(self) -> nn.Module:
        """Returns the paper's network.

        Raises:
            ProblemError: pretrained weights are not on this machine and cannot be downloaded.
        """
        try:
            return self.network()
        except OSError as error:
            raise ProblemError(
                f"{self.name}: the pretrained weights cannot be had ({str(error).splitlines()[0]}) Try again where the "
                "network can be reached, and timm keeps them; or start from scratch with the problem's option "
                "pretrained=false."
            ) from error

    def training(self, quick: bool = False) -> Training:
        """Returns the paper's settings; an epoch of batches of two in a smoke run, a tenth of the epochs if `quick`."""
        protocol = self.protocol()
        if self.smoke:
            return replace(protocol, epochs=1, batch_size=2, evaluation_batch_size=4)
        return replace(protocol, epochs=max(1, protocol.epochs // 10)) if quick else protocol

    def loader(self, dataset: MapDataset, batch_size: int, generator: torch.Generator | None) -> Loader:
        """Returns batches, read by worker processes; in evaluation as many at once as the problem says.

        Iterating raises a DamagedDataError that names the file, whichever process found it.
        """
        sampler: Sampler[int] = SequentialSampler(dataset)
        if generator is not None:
            sampler = RandomSampler(dataset, generator=generator)
        return _Batches(
            DataLoader(
                _Handed(dataset),
                batch_size,
                sampler=sampler,
                drop_last=generator is not None and len(dataset) >= batch_size,
                collate_fn=_collate_sound,
                num_workers=self.loading,
                pin_memory=torch.cuda.is_available(),
                generator=generator,
            )
        )


class _Transformed(Dataset[Sample]):
    """A dataset with a transform of its own, where others read the same one with another."""

    def __init__(self, dataset: MapDataset, transform: Transform) -> None:
        self.dataset = dataset
        self.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return self.transform(self.dataset[index])


class _Handed(Dataset["Sample | DamagedDataError"]):
    """A dataset that hands damage over as an item: raised in a process of its own, an error loses its message."""

    def __init__(self, dataset: MapDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample | DamagedDataError:
        try:
            return cast("Sample", self.dataset[index])
        except DamagedDataError as error:
            return error


class _Batches:
    """Batches of a loader of `_Handed` samples; damage among them is raised."""

    def __init__(self, loader: DataLoader[Sample | DamagedDataError]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Sample]:
        return map(_raise_damage, self.loader)


def _collate_sound(samples: Sequence[Sample | DamagedDataError]) -> Sample | DamagedDataError:
    """Returns a batch, or the first damage among the samples."""
    sound: list[Sample] = []
    for sample in samples:
        if isinstance(sample, DamagedDataError):
            return sample
        sound.append(sample)
    return collate(sound)


def _raise_damage(batch: Sample | DamagedDataError) -> Sample:
    if isinstance(batch, DamagedDataError):
        raise batch
    return batch


def _processes() -> int:
    """How many processes read the data unless the problem is told."""
    if not torch.cuda.is_available():
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_PROCESSES, cores)


def hold_out(dataset: MapDataset, share: float) -> tuple[list[int], list[int]]:
    """Divides a training set into what is trained on and what is held out for validation: always the same samples.

    Whole groups (`Reader.groups`) are held out, drawn at random until they have the share, at least one. Of several
    readers in one set, each is divided.

    Raises:
        ProblemError: all samples belong to one group.
    """
    rest: list[int] = []
    chosen: list[int] = []
    for part in dataset.datasets if isinstance(dataset, ConcatDataset) else [dataset]:
        groups = cast("Reader", part).groups
        held = _choose(groups, share)
        start = len(rest) + len(chosen)
        for index, group in enumerate(groups, start):
            (chosen if group in held else rest).append(index)
    return rest, chosen


def _choose(groups: Sequence[Hashable], share: float) -> set[Hashable]:
    names = list(dict.fromkeys(groups))
    if len(names) < 2:
        raise ProblemError("The training data come from a single video or scene: nothing can be held out of them.")
    sizes = dict.fromkeys(names, 0)
    for group in groups:
        sizes[group] += 1
    held: set[Hashable] = set()
    count = 0
    for position in torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()[:-1]:
        if held and count + sizes[names[position]] / 2 > share * len(groups):
            break
        held.add(names[position])
        count += sizes[names[position]]
    return held


def halve(dataset: MapDataset) -> tuple[list[int], list[int]]:
    """Divides a training set into every other sample and the rest, so that labels of every task are in both."""
    return list(range(0, len(dataset), 2)), list(range(1, len(dataset), 2))


def spread(dataset: MapDataset, most: int) -> MapDataset:
    """Returns at most so many samples of a dataset, evenly spread over it."""
    if len(dataset) <= most:
        return dataset
    return Subset(cast("Dataset[Any]", dataset), [index * len(dataset) // most for index in range(most)])
