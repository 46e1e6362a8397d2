"""Streams, sampling with a temperature, and a state that goes on in the middle of an epoch."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from networks import assert_same
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

import equipoise as eq

ORDERS = ["concatenated", "proportional", "round_robin", "sampled"]


class Stream(IterableDataset):
    """Numbers from a generator that nobody knows the length of."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))


def stream(count: int) -> DataLoader:
    return DataLoader(Stream(count), batch_size=None)


class Stateful:
    """A loader that keeps its own state, as torchdata's StatefulDataLoader; it counts what it reads."""

    def __init__(self, items: str) -> None:
        self.items, self.at, self.go_on, self.total = items, 0, False, 0

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[str]:
        self.at, self.go_on = self.at if self.go_on else 0, False
        return self.rest()

    def rest(self) -> Iterator[str]:
        while self.at < len(self.items):
            self.at += 1
            self.total += 1
            yield self.items[self.at - 1]

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at, self.go_on = state["at"], True


def names(batches: Any) -> list[str]:
    return [name for batch in batches for name in batch]


def test_streams_end_with_the_longest_or_the_shortest() -> None:
    loaders = {"long": stream(4), "known": [10, 11], "short": stream(1)}
    longest = list(eq.MixedLoader(loaders))
    assert [tuple(batch.values()) for batch in longest] == [(0, 10, 0), (1, 11, 0), (2, 10, 0), (3, 11, 0)]
    assert [tuple(batch.values()) for batch in eq.MixedLoader(loaders, until="shortest")] == [(0, 10, 0)]
    rounds = list(eq.MixedLoader(loaders, "round_robin"))
    assert rounds[:12] == [{name: batch[name]} for batch in longest for name in loaders]
    assert len(rounds) == 12
    with pytest.raises(TypeError, match=r"no length where loaders have none \(long, short\): give steps"):
        len(eq.MixedLoader(loaders))


@pytest.mark.parametrize("order", ["concatenated", "round_robin", "sampled"])
def test_steps_make_an_epoch_of_streams_that_never_end(order: str) -> None:
    weights = {"weights": {"a": 1, "b": 3}} if order == "sampled" else {}
    loader = eq.MixedLoader({"a": stream(3), "b": stream(10**9)}, order, steps=8, **weights)
    batches = list(loader)
    assert len(batches) == len(loader) == 8
    taken = [batch["a"] for batch in batches if "a" in batch]
    assert taken == [0, 1, 2, 0, 1, 2, 0, 1][: len(taken)]


def test_streams_are_told_of_every_pass() -> None:
    """By numbers that do not come again."""
    loader = eq.MixedLoader({"a": stream(2), "b": range(5)})
    list(loader), list(loader)
    told = loader.loaders["a"].dataset.epochs
    assert len(told) == 6
    assert len(set(told)) == 6


def test_a_stream_without_a_batch() -> None:
    with pytest.raises(ValueError, match=r"loaders\['b'\] has given no batch"):
        list(eq.MixedLoader({"a": [1], "b": stream(0)}))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_sampled_by_size_and_temperature(temperature: float) -> None:
    sizes = {"many": 1000, "some": 100, "few": 10}
    loader = eq.MixedLoader(
        {name: range(size) for name, size in sizes.items()}, "sampled", temperature=temperature, steps=20_000
    )
    shares = {name: size ** (1 / temperature) for name, size in sizes.items()}
    drawn = Counter(names(loader))
    for name in sizes:
        share = shares[name] / sum(shares.values())
        assert abs(drawn[name] / 20_000 - share) < 4 * (share * (1 - share) / 20_000) ** 0.5
    assert len(eq.MixedLoader({"a": range(7), "b": range(3)}, "sampled")) == 10


def test_sampled_by_weights_anew_in_each_epoch() -> None:
    loaders = {"a": range(50), "b": range(50)}
    loader = eq.MixedLoader(loaders, "sampled", weights={"b": 9, "a": 1}, steps=2000, seed=4)
    first, second = names(loader), names(loader)
    assert first != second
    assert 0.87 < first.count("b") / 2000 < 0.93
    again = eq.MixedLoader(loaders, "sampled", weights={"b": 9, "a": 1}, steps=2000, seed=4)
    again.set_epoch(1)
    assert names(again) == second


def make(order: str) -> eq.MixedLoader:
    data = {name: TensorDataset(torch.arange(count)) for name, count in (("one", 9), ("two", 3))}
    inner = {"x": DataLoader(data["two"], shuffle=True), "y": range(2)}
    loaders = {
        "default": DataLoader(data["one"], batch_size=2, shuffle=True),
        "own": DataLoader(data["two"], shuffle=True, generator=torch.Generator().manual_seed(3)),
        "told": DataLoader(data["two"], sampler=DistributedSampler(data["two"], num_replicas=1, rank=0)),
        "stateful": Stateful("abcd"),
        "nested": eq.MixedLoader(inner, "proportional", seed=5),
    }
    return eq.MixedLoader(loaders, order, seed=2)


def run(loader: eq.MixedLoader, steps: int) -> list[Any]:
    """What a training loop gets that draws random numbers between two batches, as dropout does."""
    seen: list[Any] = []
    while len(seen) < steps:
        for batch in loader:
            seen.append((batch, torch.rand(())))
            if len(seen) == steps:
                break
    return seen


@pytest.mark.parametrize("order", ORDERS)
def test_goes_on_in_the_middle_of_an_epoch(order: str) -> None:
    """At any step: within an epoch, at its last batch, and in the next one."""
    loader = make(order)
    epoch = len(loader)
    for stop in (1, 2, 3, epoch - 1, epoch, epoch + 2):
        torch.manual_seed(0)
        loader = make(order)
        iterator = (item for _ in range(3) for item in loader)
        for _ in range(stop):
            next(iterator), torch.rand(())
        file = io.BytesIO()
        torch.save([loader.state_dict(), torch.get_rng_state()], file)
        expected = [(next(iterator), torch.rand(())) for _ in range(epoch)]

        torch.manual_seed(99)
        file.seek(0)
        state, random = torch.load(file, weights_only=True)
        resumed = make(order)
        resumed.load_state_dict(state)
        assert_same(resumed.state_dict(), state)
        torch.set_rng_state(random)
        assert_same(run(resumed, epoch), expected)
        assert resumed.loaders["stateful"].total <= sum("stateful" in batch for batch, _ in expected)  # nothing twice


def test_goes_on_between_two_epochs() -> None:
    loader = make("concatenated")
    list(loader)
    state, random = loader.state_dict(), torch.get_rng_state()
    expected = list(loader)
    resumed = make("concatenated")
    resumed.load_state_dict(state)
    torch.set_rng_state(random)
    assert_same(list(resumed), expected)


@pytest.mark.parametrize("order", ["concatenated", "round_robin"])
def test_streams_go_on(order: str) -> None:
    loaders = {"long": stream(5), "short": stream(2)}
    whole = list(eq.MixedLoader(loaders, order))
    for stop in range(1, len(whole) + 1):
        loader = eq.MixedLoader(loaders, order)
        iterator = iter(loader)
        assert [next(iterator) for _ in range(stop)] == whole[:stop]
        resumed = eq.MixedLoader(loaders, order)
        resumed.load_state_dict(loader.state_dict())
        assert list(resumed) == whole[stop:]
        assert list(resumed) == whole


def test_with_worker_processes() -> None:
    def new() -> eq.MixedLoader:
        data = DataLoader(TensorDataset(torch.arange(8)), shuffle=True, num_workers=1)
        return eq.MixedLoader({"a": data, "b": range(3)})

    loader = new()
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    state = loader.state_dict()
    expected = list(iterator)
    resumed = new()
    resumed.load_state_dict(state)
    assert_same(list(resumed), expected)


def test_with_torchdata() -> None:
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")

    def new() -> eq.MixedLoader:
        data = torchdata.StatefulDataLoader(TensorDataset(torch.arange(7)), shuffle=True)
        return eq.MixedLoader({"a": data, "b": DataLoader(TensorDataset(torch.arange(17)), shuffle=True)})

    for stop in (3, 7, 9, 17, 20):
        loader = new()
        iterator = (item for _ in range(2) for item in loader)
        for _ in range(stop):
            next(iterator)
        state, random = loader.state_dict(), torch.get_rng_state()
        expected = list(iterator)
        resumed = new()
        resumed.load_state_dict(state)
        torch.set_rng_state(random)
        assert_same(list(resumed) + (list(resumed) if stop <= 17 else []), expected)


def test_set_epoch_keeps_the_state_of_that_epoch() -> None:
    loader = eq.MixedLoader({"a": range(5)})
    iterator = iter(loader)
    next(iterator), next(iterator)
    state = loader.state_dict()
    for epoch, expected in ((0, 3), (1, 5)):
        resumed = eq.MixedLoader({"a": range(5)})
        resumed.load_state_dict(state)
        resumed.set_epoch(epoch)
        assert len(list(resumed)) == expected
    loader.set_epoch(0)  # and without a state, an epoch is begun anew
    assert len(list(loader)) == 5


def test_the_state_of_another_is_refused() -> None:
    loader = eq.MixedLoader({"a": range(5), "b": range(2)}, "proportional")
    for other, words in (
        (eq.MixedLoader({"a": range(5)}, "proportional"), "other loaders: "),
        (eq.MixedLoader({"a": range(5), "b": range(2)}, "proportional", seed=1), "other order: "),
        (eq.MixedLoader({"a": range(5), "b": range(2)}), "other order: "),
    ):
        with pytest.raises(ValueError, match=words):
            loader.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="lacks 'epoch'"):
        loader.load_state_dict({})
    assert len(list(loader)) == 7


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"order": "proportional"}, TypeError, r"loaders\['a'\] must have a length.* for order='proportional'; found"),
        ({"order": "sampled"}, TypeError, "for order='sampled' without steps and weights"),
        ({"order": "sampled", "steps": 3}, TypeError, "without steps and weights"),
        ({"order": "sampled", "steps": 3, "weights": [1]}, TypeError, "weights must be a mapping"),
        ({"order": "sampled", "steps": 3, "weights": {"b": 1}}, ValueError, r"one for each of \['a'\], found \['b'\]"),
        ({"order": "sampled", "steps": 3, "weights": {"a": 0}}, ValueError, r"weights\['a'\] must be .* > 0, found 0"),
        ({"order": "sampled", "steps": 3, "temperature": 0}, ValueError, "temperature must be .* > 0, found 0"),
        ({"steps": 0}, ValueError, "steps must be an integer ≥ 1, found 0"),
        ({"order": "proportional", "steps": 3}, ValueError, "takes every batch once an epoch"),
        ({"weights": {"a": 1}}, ValueError, "weights and temperature are for order='sampled'"),
        ({"temperature": 2.0}, ValueError, "weights and temperature are for order='sampled'"),
    ],
)
def test_errors(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        eq.MixedLoader({"a": stream(3)}, **options)
