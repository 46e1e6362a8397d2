"""What holds for every metric: batches may be cut anywhere, and ranks merge to what one process computes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

Batches = Sequence[tuple]


def computed(metric: Metric) -> dict[str, Tensor]:
    value = metric.compute()
    return value if isinstance(value, dict) else {"value": value}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-7, equal_nan=True)


def cut(batch: tuple, sizes: Sequence[int]) -> list[tuple]:
    """Cuts a batch of tensors or lists into parts of the given sizes."""
    parts, start = [], 0
    for size in sizes:
        parts.append(tuple(argument[start : start + size] for argument in batch))
        start += size
    assert start == len(batch[0])
    return parts


def assert_merges(make: Callable[[], Metric], batch: tuple, sizes: Sequence[int]) -> dict[str, Tensor]:
    """Compares one update with many, and with ranks of which one saw nothing; returns what was computed."""
    whole = make()
    whole.update(*batch)
    expected = computed(whole)

    parts = cut(batch, sizes)
    split = make()
    for part in parts:
        split.update(*part)
    assert_same(computed(split), expected)

    ranks = [make(), make(), make()]
    for index, part in enumerate(parts):
        ranks[index % 2].update(*part)
    synchronise(ranks)
    for rank in ranks:
        assert_same(computed(rank), expected)

    whole.reset()
    whole.update(*batch)
    assert_same(computed(whole), expected)
    return expected


def synchronise(ranks: Sequence[Metric]) -> None:
    """Does to every rank what torchmetrics does in a process group, with the gathering simulated."""
    from torchmetrics.utilities import dim_zero_cat

    gathered: dict[str, list] = {}
    for name, reduction in ranks[0]._reductions.items():
        states = []
        for rank in ranks:
            state = getattr(rank, name)
            if reduction is dim_zero_cat:
                state = dim_zero_cat(state) if len(state) else torch.tensor([], dtype=rank.dtype)
                assert state.dim() == 1, "a rank without data gathers an empty vector"
                assert state.dtype == rank.dtype
            states.append(state)
        gathered[name] = states
    for rank in ranks:
        for name, reduction in ranks[0]._reductions.items():
            if reduction is dim_zero_cat:
                setattr(rank, name, torch.cat(gathered[name]))
            else:
                setattr(rank, name, reduction(torch.stack(gathered[name])))
        rank._update_count = 1
        rank._to_sync = False
