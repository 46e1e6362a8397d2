"""What the tests of the readers share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def assert_samples() -> Callable[[Any, list[dict[str, Any]]], None]:
    """A reader gives these samples, in this order: labels exactly, pictures as nearly as JPEG keeps them."""
    import torch

    def same(found: Any, expected: Any, where: str) -> None:
        if isinstance(expected, dict):
            assert list(found) == list(expected), where
            for name, value in expected.items():
                same(found[name], value, f"{where}/{name}")
        elif expected is None:
            assert found is None, where
        else:
            assert (found.shape, found.dtype) == (expected.shape, expected.dtype), where
            found = found.as_subclass(torch.Tensor)
            if expected.dtype == torch.uint8:
                difference = (found.float() - expected.float()).abs()
                assert difference.mean() < 3, where
            else:
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-6, equal_nan=True, msg=where)

    def check(reader: Any, truth: list[dict[str, Any]]) -> None:
        assert len(truth) > 0
        assert len(reader) == len(truth)
        for index, sample in enumerate(truth):
            same(reader[index], sample, f"sample {index}")

    return check


@pytest.fixture
def cut_off() -> Callable[[Path], None]:
    """Keeps the first two thirds of a file, as a broken download does."""

    def cut(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])

    return cut
