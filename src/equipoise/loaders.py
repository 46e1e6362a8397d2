"""MixedLoader: batches of several datasets, each with labels of some tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import cycle, islice, repeat
from math import ceil
from typing import Any, Literal, cast

import torch

from equipoise._checks import check_choice, check_number, check_seed
from equipoise._passes import Passes

ORDERS = ("concatenated", "proportional", "round_robin", "sampled")
ENDS = ("longest", "shortest")

MOST_PASSES = 1 << 20
"""More passes than an epoch makes of a loader without a length."""


class _Over(Exception):  # noqa: N818 - no error
    """An epoch is over whose number of steps was not known."""


class MixedLoader:
    """Mixes loaders of different datasets: partially annotated data, as it usually comes.

    Every step is a mapping from loader to batch, so that one loop does for every order:

    - `"concatenated"`: a batch of every loader in each step, so that all tasks are balanced in each. It is the default
      since methods that balance task gradients (all with an aggregator) can do nothing in a step of one task;
    - `"proportional"`: one batch a step, from a loader drawn in proportion to the batches it has left: each batch of
      every loader once an epoch, in random order;
    - `"round_robin"`: one batch a step, of one loader after the other;
    - `"sampled"`: one batch a step, from a loader drawn with probability `p_k ∝ w_k^(1/T)`, whatever came before, as
      multilingual language models mix their languages; one that has run out starts anew. T = 1 is in proportion to the
      weights; the larger T, the more often small datasets come.

    (To mix datasets within one batch, use `torch.utils.data.ConcatDataset` and `masked_mean`.)

    What is drawn depends on the seed and the epoch alone, so it is the same on every rank and after a restart. The
    loaders shuffle as they do by themselves; samplers and streams with a `set_epoch` method (`DistributedSampler`) are
    told of every new pass.

    `state_dict()` says where in an epoch the loader stands, and after `load_state_dict(state)` the next iteration goes
    on with the same batches. Loaders that keep a state themselves (`torchdata`'s `StatefulDataLoader`, a MixedLoader)
    are asked for it; of others, the batches that were taken in the present pass are read again and dropped, with the
    random numbers of PyTorch's default generator, or of generators that the loader holds, from the pass's start. Each
    rank saves a state of its own.

    Args:
        loaders: name → batches, one pass each time it is iterated: a `torch.utils.data.DataLoader`, also of an
            `IterableDataset` without a length.
        order: how they are mixed.
        until: in the orders `"concatenated"` and `"round_robin"`, the epoch ends with the `"longest"` loader, the
            others starting anew in between, or with the `"shortest"`. Without a length, a loader has ended when it is
            asked for a batch and has none.
        seed: of the order that is drawn.
        weights: for `"sampled"`: name → `w_k` > 0, say the number of samples. None: the number of batches.
        temperature: for `"sampled"`: T > 0.
        steps: the epoch's number of steps, in place of `until`; needed where a stream never ends, and for `"sampled"`
            where a loader has no length. None: for `"sampled"` the number of batches of all loaders.

    Raises:
        TypeError: `loaders` or `weights` is no mapping, or a loader cannot be iterated more than once, or lacks a
            length where that is needed.
        ValueError: there is no loader, one without a batch, an unknown `order` or `until`, a seed that is no integer,
            a weight or temperature that is not above 0, a loader without a weight, options of another order.

    Example:
        >>> import equipoise as eq
        >>> loader = eq.MixedLoader({"depth": [10, 11, 12], "boxes": [20]}, order="round_robin")
        >>> list(loader)[:3]
        [{'depth': 10}, {'boxes': 20}, {'depth': 11}]
    """

    def __init__(
        self,
        loaders: Mapping[str, Iterable[Any]],
        order: Literal["concatenated", "proportional", "round_robin", "sampled"] = "concatenated",
        until: Literal["longest", "shortest"] = "longest",
        seed: int = 0,
        *,
        weights: Mapping[str, float] | None = None,
        temperature: float = 1.0,
        steps: int | None = None,
    ) -> None:
        if not isinstance(loaders, Mapping):
            raise TypeError(f"loaders must be a mapping from name to loader, found {loaders!r}.")
        self.loaders = dict(loaders)
        self.order = check_choice("order", order, ORDERS)
        self.until = check_choice("until", until, ENDS)
        self.seed = check_seed(seed)
        self.temperature = check_number("temperature", temperature, above=0)
        if steps is not None and (type(steps) is not int or steps < 1):
            raise ValueError(f"steps must be an integer ≥ 1, found {steps!r}.")
        self.steps = steps
        self.epoch = 0
        self._step = 0
        self._passes: dict[str, Passes] = {}
        self._loaded: Mapping[str, Any] | None = None
        for name, loader in self.loaders.items():
            if isinstance(loader, Iterator) or not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
                raise TypeError(
                    f"loaders[{name!r}] must have a length, or be a stream that gives its batches anew each time it is "
                    f"iterated; found {loader!r}."
                )
        lengths = self._lengths()
        if not lengths or 0 in lengths.values():
            raise ValueError(f"loaders must be a mapping from name to loader with at least one batch, found {lengths}.")
        self.weights = self._check_options(weights, lengths)

    def set_epoch(self, epoch: int) -> None:
        """Sets the number of the epoch that starts with the next iteration; by itself it counts on from 0.

        A state that was loaded in the middle of another epoch is dropped; one of this epoch is gone on with.
        """
        if self._loaded is not None and self._loaded["epoch"] != epoch:
            self._loaded = None
        self.epoch = epoch
        self._passes = {}

    def state_dict(self) -> dict[str, Any]:
        """Returns where the loader stands, for `load_state_dict`: behind the batch that was given last."""
        if self._loaded is not None:
            return dict(self._loaded)
        passes = self._passes or self._begin(self.epoch)
        inside = bool(self._passes)
        return {
            "epoch": self.epoch - inside,
            "step": self._step if inside else 0,
            "order": [self.order, self.until, self.seed],
            "loaders": {name: each.state_dict() for name, each in passes.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Has the next iteration go on where `state_dict` was asked for.

        Raises:
            ValueError: the state is none of a MixedLoader's, or of one with other loaders, order, until or seed.
        """
        missing = [key for key in ("epoch", "step", "order", "loaders") if key not in state]
        if missing:
            raise ValueError(f"This is no state_dict of a MixedLoader: it lacks {', '.join(map(repr, missing))}.")
        own = {"loaders": list(self.loaders), "order": [self.order, self.until, self.seed]}
        for what, found in (("loaders", list(state["loaders"])), ("order", list(state["order"]))):
            if found != own[what]:
                raise ValueError(f"This state_dict is of a MixedLoader of other {what}: {found}, expected {own[what]}.")
        self._loaded, self._passes, self.epoch = state, {}, state["epoch"]

    def __len__(self) -> int:
        steps = self._steps()
        if steps is None:
            without = [name for name, length in self._lengths().items() if length is None]
            raise TypeError(f"A MixedLoader has no length where loaders have none ({', '.join(without)}): give steps.")
        return steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch, steps, loaded = self.epoch, self._steps(), self._loaded
        self._passes = passes = self._begin(epoch)
        self._step, self._loaded = 0, None
        self.epoch += 1
        if loaded is not None:
            self._step = loaded["step"]
            for name, each in passes.items():
                each.load_state_dict(loaded["loaders"][name])
        try:
            for names in islice(self._turns(epoch), self._step, steps):
                batches = {name: self._take(passes, name, steps is None) for name in names}
                self._step += 1
                yield batches
        except _Over:
            pass
        finally:
            for each in passes.values():
                each.end()
        self._passes = {}

    def _take(self, passes: Mapping[str, Passes], name: str, may_end: bool) -> Any:
        """Returns the next batch of a loader, which begins anew where it has run out and the epoch is not over."""
        for batch in passes[name]:
            return batch
        ended = [each.begun > (own != name) for own, each in passes.items()]
        if may_end and (all(ended) if self.until == "longest" else any(ended)):
            raise _Over
        passes[name].begin()
        for batch in passes[name]:
            return batch
        raise ValueError(f"loaders[{name!r}] has given no batch.")

    def _check_options(
        self, weights: Mapping[str, float] | None, lengths: Mapping[str, int | None]
    ) -> dict[str, float] | None:
        """Returns the weights if they, and the other options, go with the order and the loaders."""
        if self.order != "sampled" and (weights is not None or self.temperature != 1):
            raise ValueError(f"weights and temperature are for order='sampled', found order={self.order!r}.")
        if self.order == "proportional" and self.steps is not None:
            raise ValueError("steps: order='proportional' takes every batch once an epoch; see order='sampled'.")
        if weights is not None:
            if not isinstance(weights, Mapping):
                raise TypeError(f"weights must be a mapping from loader to number, found {weights!r}.")
            if set(weights) != set(lengths):
                raise ValueError(f"weights must hold one for each of {list(lengths)}, found {list(weights)}.")
            weights = {name: check_number(f"weights[{name!r}]", weights[name], above=0) for name in lengths}
        without = [name for name, length in lengths.items() if length is None]
        drawn = {"proportional": "'proportional'", "sampled": "'sampled' without steps and weights"}.get(self.order)
        if without and drawn is not None and (self.order == "proportional" or self.steps is None or weights is None):
            raise TypeError(
                f"loaders[{without[0]!r}] must have a length, the number of its batches, for order={drawn}; found "
                f"{self.loaders[without[0]]!r}. A DataLoader of an IterableDataset has one if the dataset defines "
                "__len__."
            )
        return weights

    def _lengths(self) -> dict[str, int | None]:
        """How many batches each loader has; None where it does not say."""
        lengths: dict[str, int | None] = {}
        for name, loader in self.loaders.items():
            try:
                lengths[name] = len(cast("Any", loader))
            except TypeError:
                lengths[name] = None
        return lengths

    def _steps(self) -> int | None:
        """How many steps an epoch has; None where only a stream's end will tell."""
        lengths = [length for length in self._lengths().values() if length is not None]
        if self.steps is not None:
            return self.steps
        if len(lengths) < len(self.loaders):
            return None
        if self.order in ("proportional", "sampled"):
            return sum(lengths)
        rounds = max(lengths) if self.until == "longest" else min(lengths)
        return rounds if self.order == "concatenated" else rounds * len(lengths)

    def _begin(self, epoch: int) -> dict[str, Passes]:
        """Makes the passes of an epoch; the numbers that samplers are told do not come again in a later one."""
        steps, passes = self._steps(), {}
        for name, length in self._lengths().items():
            most = MOST_PASSES
            if steps is not None and length is not None:
                taken = ceil(steps / len(self.loaders)) if self.order == "round_robin" else steps
                most = 1 if self.order == "proportional" else ceil(taken / length)
            passes[name] = Passes(self.loaders[name], epoch * most)
        return passes

    def _turns(self, epoch: int) -> Iterator[tuple[str, ...]]:
        """Whose batches each step has."""
        names = tuple(self.loaders)
        if self.order == "concatenated":
            return repeat(names)
        if self.order == "round_robin":
            return cycle((name,) for name in names)
        generator = torch.Generator("cpu").manual_seed(self.seed + epoch)
        if self.order == "proportional":
            lengths = cast("dict[str, int]", self._lengths())
            every = [name for name, length in lengths.items() for _ in range(length)]
            drawn = torch.randperm(len(every), generator=generator, device="cpu")
        else:
            every = list(names)
            weights = list((self.weights or cast("dict[str, int]", self._lengths())).values())
            shares = torch.tensor(weights, dtype=torch.float64, device="cpu").log().div(self.temperature).softmax(0)
            drawn = torch.multinomial(shares, cast("int", self._steps()), replacement=True, generator=generator)
        return ((every[index],) for index in drawn.tolist())
