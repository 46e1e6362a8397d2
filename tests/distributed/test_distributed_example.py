"""The example trains on two ranks, and goes on with another number of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from launch import launch

EXAMPLE = Path(__file__).parents[2] / "examples" / "distributed.py"
pytestmark = pytest.mark.slow


def error(size, *arguments):
    output = launch(size, EXAMPLE, *arguments)
    ranks, epochs, value = re.search(r"(\d) ranks, (\d) epochs: .* ([\d.]+)$", output, re.MULTILINE).groups()
    assert int(ranks) == size
    return int(epochs), float(value)


def test_a_sharded_run_goes_on_unsharded_with_fewer_ranks(tmp_path):
    checkpoint = ("--method", "mao", "--checkpoint", tmp_path)
    epochs, trained = error(2, "--shard", "--epochs", 2, *checkpoint)
    assert epochs == 2
    assert trained < 0.1  # the prices' variance is 0.5
    assert error(1, "--epochs", 2, *checkpoint) == (2, trained)
    epochs, further = error(1, "--epochs", 3, *checkpoint)
    assert epochs == 3
    assert further < trained
