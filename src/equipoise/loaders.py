"""MixedLoader: batches of several datasets, each with labels of some tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from math import ceil
from typing import Any, Literal, Protocol

import torch

from equipoise._checks import check_choice, check_seed

ORDERS = ("concatenated", "proportional", "round_robin")
ENDS = ("longest", "shortest")


class Loader(Sized, Iterable[Any], Protocol):
    """Batches, one pass each time it is iterated, and how many: what `torch.utils.data.DataLoader` is."""


class MixedLoader:
    """Mixes loaders of different datasets: partially annotated data, as it usually comes.

    Every step is a mapping from loader to batch, so that one loop does for every order:

    - `"concatenated"`: a batch of every loader in each step, so that all tasks are balanced in each. It is the default
      since methods that balance task gradients (all with an aggregator) can do nothing in a step of one task;
    - `"proportional"`: one batch a step, from a loader drawn in proportion to the batches it has left: each batch of
      every loader once an epoch, in random order;
    - `"round_robin"`: one batch a step, of one loader after the other.

    (To mix datasets within one batch, use `torch.utils.data.ConcatDataset` and `masked_mean`.)

    What is drawn depends on the seed and the epoch alone, so it is the same on every rank and after a restart. The
    loaders shuffle as they do by themselves; a sampler with a `set_epoch` method (`DistributedSampler`) is told of
    every new pass.

    Args:
        loaders: name → loader with a length.
        order: how they are mixed.
        until: in the orders other than `"proportional"`, the epoch ends with the `"longest"` loader, the others
            starting anew in between, or with the `"shortest"`.
        seed: of the order that is drawn.

    Raises:
        TypeError: `loaders` is no mapping, or a loader has no length.
        ValueError: there is no loader, one without a batch, an unknown `order` or `until`, or a seed that is
            no integer.

    Example:
        >>> import equipoise as eq
        >>> loader = eq.MixedLoader({"depth": [10, 11, 12], "boxes": [20]}, order="round_robin")
        >>> list(loader)[:3]
        [{'depth': 10}, {'boxes': 20}, {'depth': 11}]
    """

    def __init__(
        self,
        loaders: Mapping[str, Loader],
        order: Literal["concatenated", "proportional", "round_robin"] = "concatenated",
        until: Literal["longest", "shortest"] = "longest",
        seed: int = 0,
    ) -> None:
        if not isinstance(loaders, Mapping):
            raise TypeError(f"loaders must be a mapping from name to loader, found {loaders!r}.")
        self.loaders = dict(loaders)
        self.order = check_choice("order", order, ORDERS)
        self.until = check_choice("until", until, ENDS)
        self.seed = check_seed(seed)
        self.epoch = 0
        for name, loader in self.loaders.items():
            try:
                len(loader)
            except TypeError:
                raise TypeError(
                    f"loaders[{name!r}] must have a length, the number of its batches; found {loader!r}. A DataLoader "
                    "of an IterableDataset has one if the dataset defines __len__."
                ) from None
        lengths = {name: len(loader) for name, loader in self.loaders.items()}
        if not lengths or not all(lengths.values()):
            raise ValueError(f"loaders must be a mapping from name to loader with at least one batch, found {lengths}.")

    def set_epoch(self, epoch: int) -> None:
        """Sets the number of the epoch that starts with the next iteration; by itself it counts on from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        taken = self._taken()
        return max(taken.values()) if self.order == "concatenated" else sum(taken.values())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = self.epoch
        self.epoch += 1
        taken = self._taken()
        batches = {name: self._batches(name, epoch, count) for name, count in taken.items()}
        if self.order == "concatenated":
            for _ in range(len(self)):
                yield {name: next(each) for name, each in batches.items()}
        elif self.order == "round_robin":
            for _ in range(max(taken.values())):
                for name, each in batches.items():
                    yield {name: next(each)}
        else:
            turns = [name for name, count in taken.items() for _ in range(count)]
            generator = torch.Generator("cpu").manual_seed(self.seed + epoch)
            for turn in torch.randperm(len(turns), generator=generator, device="cpu").tolist():
                yield {turns[turn]: next(batches[turns[turn]])}

    def _taken(self) -> dict[str, int]:
        """How many batches of each loader make an epoch."""
        lengths = {name: len(loader) for name, loader in self.loaders.items()}
        if self.order == "proportional":
            return lengths
        count = max(lengths.values()) if self.until == "longest" else min(lengths.values())
        return dict.fromkeys(lengths, count)

    def _batches(self, name: str, epoch: int, count: int) -> Iterator[Any]:
        loader = self.loaders[name]
        passes = ceil(count / len(loader))
        for number in range(passes):
            batches = getattr(loader, "batch_sampler", None)
            for sampler in (getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)):
                set_epoch = getattr(sampler, "set_epoch", None)
                if set_epoch is not None:
                    set_epoch(epoch * passes + number)
            yield from loader
