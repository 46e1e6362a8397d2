"""The examples with a loop of one's own run, and learn what they are to learn."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "examples"


def main_of(name: str) -> Any:
    return runpy.run_path(str(EXAMPLES / name))["main"]


def test_text() -> None:
    accuracies = main_of("text.py")()
    assert accuracies["topic"] > 0.95
    assert accuracies["sentiment"] > 0.9  # without the order of the words, 30% would be negated and wrong


def test_partly_labelled() -> None:
    untrained, trained = (main_of("partly_labelled.py")(epochs) for epochs in (0, 8))
    assert trained["left out"] > 50
    for task in ("price", "heating", "year"):
        assert trained[task] < 0.5 * untrained[task]
