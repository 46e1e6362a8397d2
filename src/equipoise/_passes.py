"""One loader's batches, pass after pass, so that they can be gone on with in the middle of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch.utils.data import IterableDataset


class Passes:
    """Iterates a loader again and again in one epoch, and tells where it stands.

    Args:
        loader: gives batches, one pass each time it is iterated.
        first: the number of the first pass, which samplers shuffle by.

    Attributes:
        begun: how many passes have begun.
        read: how many batches of the last one were read.
    """

    def __init__(self, loader: Any, first: int) -> None:
        self.begun = 0
        self.read = 0
        self._loader = loader
        self._first = first
        self._batches: Iterator[Any] = iter(())
        self._before: list[torch.Tensor] = []

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """Returns the next batch of the pass.

        Raises:
            StopIteration: it has no more, or none has begun.
        """
        batch = next(self._batches)
        self.read += 1
        return batch

    def begin(self) -> None:
        """Begins a pass, which is told to whatever has a `set_epoch`: samplers, streams, loaders of loaders."""
        for part in _parts(self._loader):
            set_epoch = getattr(part, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(self._first + self.begun)
        self._before = [generator.get_state() for generator in (torch.default_generator, *_generators(self._loader))]
        self._batches = iter(self._loader)
        self.begun += 1
        self.read = 0

    def end(self) -> None:
        """Lets go of the pass, and so of a loader's worker processes."""
        self._batches = iter(())

    def state_dict(self) -> dict[str, Any]:
        """Returns where the passes stand: the loader's own state where it has one, and the random generators'."""
        own = self._loader.state_dict() if self.begun and _keeps_state(self._loader) else None
        now = [generator.get_state() for generator in _generators(self._loader)]
        return {"begun": self.begun, "read": self.read, "loader": own, "before": self._before, "now": now}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to where `state_dict` was asked for: by the loader's own state, or by reading up to there.

        PyTorch's default generator, from which loaders draw where they have none of their own, is left as it is.
        """
        generators = _generators(self._loader)
        if state["begun"]:
            default = torch.default_generator.get_state()
            if state["loader"] is not None:
                self._loader.load_state_dict(state["loader"])
            for generator, before in zip((torch.default_generator, *generators), state["before"], strict=True):
                generator.set_state(before)
            self.begun = state["begun"] - 1
            self.begin()
            if state["loader"] is None:
                for _ in islice(self._batches, state["read"]):
                    pass
            self.read = state["read"]
            torch.default_generator.set_state(default)
        for generator, now in zip(generators, state["now"], strict=True):
            generator.set_state(now)


def _parts(loader: Any) -> list[Any]:
    """What of a loader may shuffle."""
    batches, dataset = getattr(loader, "batch_sampler", None), getattr(loader, "dataset", None)
    samplers = [getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)]
    return [loader, *samplers, dataset if isinstance(dataset, IterableDataset) else None]


def _generators(loader: Any) -> list[torch.Generator]:
    """The random generators that a loader has of its own; it draws from PyTorch's default one, too."""
    own = [getattr(part, "generator", None) for part in _parts(loader)]
    return list(dict.fromkeys(generator for generator in own if isinstance(generator, torch.Generator)))


def _keeps_state(loader: Any) -> bool:
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
