from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import equipoise as eq

LOADERS = {"depth": list("abcdef"), "boxes": list("xy"), "text": list("n")}


def test_proportional_takes_every_batch_once_in_a_new_order_each_epoch() -> None:
    loader = eq.MixedLoader(LOADERS, order="proportional", seed=3)
    first, second = list(loader), list(loader)
    assert len(loader) == len(first) == 9
    for epoch in (first, second):
        assert [batch["depth"] for batch in epoch if "depth" in batch] == LOADERS["depth"]
        assert Counter(name for batch in epoch for name in batch) == {"depth": 6, "boxes": 2, "text": 1}
    assert first != second


def test_proportional_draws_each_loader_by_its_share() -> None:
    loader = eq.MixedLoader({"many": range(300), "few": range(100)}, order="proportional")
    halves = [name for batch in loader for name in batch][:200]
    assert 130 < halves.count("many") < 170


def test_round_robin_restarts_the_shorter_ones() -> None:
    loader = eq.MixedLoader(LOADERS, order="round_robin")
    batches = list(loader)
    assert len(batches) == len(loader) == 18
    assert batches[:3] == [{"depth": "a"}, {"boxes": "x"}, {"text": "n"}]
    assert [batch["boxes"] for batch in batches if "boxes" in batch] == list("xyxyxy")


def test_concatenated_has_a_batch_of_every_loader() -> None:
    loader = eq.MixedLoader(LOADERS)
    assert len(loader) == 6
    assert list(loader)[2] == {"depth": "c", "boxes": "x", "text": "n"}
    assert len(list(eq.MixedLoader(LOADERS, order="concatenated", until="shortest"))) == 1


def test_an_epoch_can_be_repeated() -> None:
    loader = eq.MixedLoader(LOADERS, order="proportional", seed=1)
    epochs = [list(loader) for _ in range(3)]
    again = eq.MixedLoader(LOADERS, order="proportional", seed=1)
    again.set_epoch(2)
    assert list(again) == epochs[2]


@pytest.mark.parametrize("wrap", [False, True])
def test_distributed_samplers_are_told_of_every_pass(wrap: bool) -> None:
    dataset = TensorDataset(torch.arange(8))
    sampler = DistributedSampler(dataset, num_replicas=2, rank=0, seed=5)
    batches = torch.utils.data.BatchSampler(sampler, 2, drop_last=False)
    data = DataLoader(dataset, batch_sampler=batches) if wrap else DataLoader(dataset, batch_size=2, sampler=sampler)
    loader = eq.MixedLoader({"one": data, "long": range(4)}, order="concatenated")
    passes = [[batch["one"][0].tolist() for batch in loader] for _ in range(2)]
    seen = [one + other for epoch in passes for one, other in (epoch[:2], epoch[2:])]
    expected = []
    for number in range(4):
        sampler.set_epoch(number)
        expected.append(list(sampler))
    assert seen == expected


@pytest.mark.parametrize(
    ("loaders", "options", "message"),
    [
        ({}, {}, "at least one batch"),
        ({"a": []}, {}, "at least one batch, found {'a': 0}"),
        ({"a": [1]}, {"order": "random"}, "order must be one of"),
        ({"a": [1]}, {"until": "end"}, "until must be one of"),
        ({"a": [1]}, {"seed": None}, "seed must be an integer of at most 64 bits, found None"),
    ],
)
def test_errors(loaders: dict, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        eq.MixedLoader(loaders, **options)


@pytest.mark.parametrize(
    ("loaders", "message"),
    [
        ([[1], [2]], r"must be a mapping from name to loader, found \[\[1\], \[2\]\]"),
        ({"a": [1], "b": iter([1])}, r"loaders\['b'\] must have a length"),
    ],
)
def test_what_is_no_loader_is_refused(loaders: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        eq.MixedLoader(loaders)  # type: ignore[arg-type]
