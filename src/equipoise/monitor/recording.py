"""What a monitor has recorded, in memory or in a file, and the numbers that its pictures show."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from equipoise._checks import check_choice

FORMAT = 1

Record = dict[str, Any]
"""A sample: `step`; `weights` {task: w}; `gradient`, `contribution` {task: [a number a layer]}; `cosines` [K][K];
`layer_cosines` [a list of a number a pair, or None, a layer]."""

QUANTITIES = ("gradient", "contribution")


@dataclass
class Recording:
    """The samples of a training.

    Attributes:
        tasks: the tasks' names, the order of the cosines' rows and columns; with MAO's `groups`, the groups' names.
        layers: the names of the modules that hold parameters of their own, the order of the numbers by layer.
        every: steps from one sample to the next.
        records: the samples. None stands where there is no number: the task had no label in this step, or does not
            reach the layer.
        metrics: what `BalanceMonitor.log_metrics` was given: `step`, the number of steps taken, and `metrics`
            {task: value}.
    """

    tasks: list[str]
    layers: list[str]
    every: int
    records: list[Record] = field(default_factory=list)
    metrics: list[Record] = field(default_factory=list)

    @property
    def header(self) -> dict[str, Any]:
        """A file's first line."""
        return {"format": FORMAT, "tasks": self.tasks, "layers": self.layers, "every": self.every}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every two tasks, in the order of the cosines by layer."""
        return list(itertools.combinations(self.tasks, 2))

    @property
    def steps(self) -> list[int]:
        """The number of every sampled step, from 0."""
        return [record["step"] for record in self.records]

    @property
    def shared_layers(self) -> list[str]:
        """The layers that two or more tasks reach; all that are reached where there is one task."""
        reached = self._reached()
        least = min(2, len(self.tasks))
        return [layer for layer, tasks in zip(self.layers, reached, strict=True) if len(tasks) >= least]

    def by_layer(self, quantity: str) -> dict[str, list[float | None]]:
        """Averages over training, as in MAO's Figure 4.

        Args:
            quantity: "gradient" or "contribution".

        Returns:
            Task → the mean over its samples for each of `shared_layers`; None where it does not reach the layer.

        Raises:
            ValueError: another quantity.
        """
        check_choice("quantity", quantity, QUANTITIES)
        places = self._shared_places()
        return {
            task: [_mean(record[quantity][task][place] for record in self.records) for place in places]
            for task in self.tasks
        }

    def by_step(self, quantity: str) -> dict[str, list[float | None]]:
        """Averages over the network, as in MAO's Figure 5: over `shared_layers`, each counting alike.

        Args:
            quantity: "gradient" or "contribution".

        Returns:
            Task → a number for each of `steps`; None where the task had no label.

        Raises:
            ValueError: another quantity.
        """
        check_choice("quantity", quantity, QUANTITIES)
        places = self._shared_places()
        return {
            task: [_mean(record[quantity][task][place] for place in places) for record in self.records]
            for task in self.tasks
        }

    def weights(self) -> dict[str, list[float | None]]:
        """Returns task → its weight at each of `steps`; None where the task had no label."""
        return {task: [record["weights"][task] for record in self.records] for task in self.tasks}

    def mean_cosines(self) -> list[list[float | None]]:
        """Returns the mean over training of the cosine between every two tasks' gradients, `[K][K]`."""
        count = range(len(self.tasks))
        return [[_mean(record["cosines"][i][j] for record in self.records) for j in count] for i in count]

    def mean_layer_cosines(self) -> dict[tuple[str, str], list[float | None]]:
        """Averages over training where two tasks' gradients agree and where they are in conflict.

        Returns:
            Two tasks → the mean cosine between their gradients for each of `shared_layers`; None where there is none.
        """
        return {
            pair: [
                _mean(found[index] for record in self.records if (found := record["layer_cosines"][place]) is not None)
                for place in self._shared_places()
            ]
            for index, pair in enumerate(self.pairs)
        }

    def shares(self) -> dict[str, float]:
        """Returns each task's share of the contributions: its mean over layers and training, of the sum over tasks."""
        means = {task: _mean(values) or 0.0 for task, values in self.by_layer("contribution").items()}
        total = sum(means.values())
        return {task: mean / total if total else math.nan for task, mean in means.items()}

    def imbalance(self) -> float:
        """Returns the largest task's share of the contributions over the smallest one's.

        1 is perfectly balanced; 10 says that one task moved the shared parameters ten times as far as another. NaN
        without a sample, infinite if a task contributed nothing.
        """
        shares = self.shares().values()
        least = min(shares)
        return max(shares) / least if least else math.inf

    def _reached(self) -> list[set[str]]:
        """Returns for every layer the tasks that have ever reached it."""
        return [
            {task for task in self.tasks if any(record["gradient"][task][place] is not None for record in self.records)}
            for place in range(len(self.layers))
        ]

    def _shared_places(self) -> list[int]:
        shared = set(self.shared_layers)
        return [place for place, layer in enumerate(self.layers) if layer in shared]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def read_monitor(path: str | PathLike[str]) -> Recording:
    """Reads the file that a `BalanceMonitor` has written.

    A last line that was cut off, by a run that was killed, is left out. Where a run was resumed and took steps anew,
    the later samples take the place of the earlier ones.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a monitor's, or is damaged elsewhere than at its end.
    """
    header, *lines = _whole_lines(Path(path).read_bytes()) or [b""]
    found = _parse(header, path, 1)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a file of BalanceMonitor's, format {FORMAT}: its first line is {header[:80]!r}."
        )
    recording = Recording(found["tasks"], found["layers"], found["every"])
    for number, line in enumerate(lines, 2):
        record = _parse(line, path, number)
        own, others = recording.records, recording.metrics
        if "metrics" in record:
            own, others = others, own
        while own and own[-1]["step"] >= record["step"]:
            own.pop()
        last = record["step"] - ("metrics" in record)  # a sample's step is taken after the metrics of that number
        while others and others[-1]["step"] > last:
            others.pop()
        own.append(record)
    return recording


def _whole_lines(text: bytes) -> list[bytes]:
    return text[: text.rfind(b"\n") + 1].splitlines()


def _parse(line: bytes, path: str | PathLike[str], number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise ValueError(f"{path}, line {number}: expected JSON, found {line[:80]!r}.") from None
