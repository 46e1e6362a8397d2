"""The batches of a run: their order, and each device's share of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from equipoise.bench.problems import Problem
from equipoise.bench.problems._base import Batch, MapDataset
from equipoise.bench.problems._errors import problem_code


class Batches:
    """A split's batches, in random order. They depend on the seed alone, never on the method.

    The order comes from a generator of its own; what a dataset draws while it is read (augmentation) from PyTorch's
    default generator, which is set aside meanwhile, so that the model's dropout and random methods do not shift it.
    """

    def __init__(self, problem: Problem, dataset: MapDataset, batch_size: int, seed: int) -> None:
        self._order = torch.Generator().manual_seed(seed)
        with problem_code("the loader"):
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
                with problem_code("the loader"):
                    iterator = iter(self._loader) if iterator is None else iterator
                    batch = next(iterator)
            except StopIteration:
                return
            finally:
                self._state = torch.get_rng_state()
                torch.set_rng_state(outside)
            yield batch


def batches_of(problem: Problem, dataset: MapDataset, batch_size: int) -> Iterator[Batch]:
    """Yields a split's batches for evaluation."""
    with problem_code("the loader"):
        iterator = iter(problem.loader(dataset, batch_size, None))
    while True:
        try:
            with problem_code("the loader"):
                batch = next(iterator)
        except StopIteration:
            return
        yield batch


def again_and_again(batches: Batches) -> Iterator[Batch]:
    """Yields the batches of one epoch after the other."""
    while True:
        yield from batches


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
