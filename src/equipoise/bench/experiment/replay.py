"""The weights that a replay holds fixed: those that another row's run used, on average."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from equipoise.bench.experiment.rows import gives_weights
from equipoise.bench.experiment.trial import finished


class NoReplayError(ValueError):
    """A run cannot be replayed; the message says why."""


def weights_to_replay(row: str, record: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, float]:
    """Returns the weights that a row's run used, mean over its epochs.

    For a method without weights they are each task's mean share of the update times the number of tasks.

    Raises:
        NoReplayError: the run did not finish, has no weights, or negative ones.
    """
    if not finished(record):
        raise NoReplayError(f"{row} did not finish: there are no weights to replay")
    if gives_weights(row):
        epochs = [epoch["weights"] for epoch in record["epochs"]]
        found = {task: [weights[task] for weights in epochs if task in weights] for task in tasks}
        weights = {task: math.fsum(values) / len(values) if values else 0.0 for task, values in found.items()}
    elif "shares" in record:
        weights = {task: len(tasks) * record["shares"][task] for task in tasks}
    else:
        raise NoReplayError(f"{row} has no weights, and sharded runs have no monitor: no replay")
    if min(weights.values()) < 0:
        raise NoReplayError(f"{row}'s mean weights are negative for some task: no fixed weights are")
    return weights
