"""What a run is: what decides its outcome, and what it leaves."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from equipoise.bench.experiment.folder import storable
from equipoise.bench.experiment.rows import task_of

Values = dict[str, dict[str, float]]
"""Task → measure (and whatever else its metrics compute) → value."""

Record = dict[str, Any]
"""What came of a run, as `train` returns it."""

Records = Mapping[str, Mapping[str, Any]]
"""A run's key → its record."""


@dataclass(frozen=True)
class Run:
    """Which run: its key, and the row that it is of."""

    key: str
    method: str


SHARDED = "fsdp"
"""The strategy that shards the network."""

KEY_DIGITS = 16
"""Hexadecimal digits of a run's key: of a million runs two share one with a probability below 1e-7."""


@dataclass(frozen=True)
class Trial:
    """What one run is: all that decides its outcome, what it was given from other runs included.

    A record counts for the run with the same `key`, and for no other: a run that was given something else, because what
    it was taken from has changed, is another run.

    Attributes:
        method: a row of the comparison; see `equipoise.bench.experiment.rows`.
        seed: decides initial weights, order of the batches and everything random.
        epochs, batch_size, evaluation_batch_size, lr, weight_decay, schedule: see `equipoise.bench.problems.Training`.
        hyperparameters: the method's own, of fixed and replayed weights `weights`; `potentials` among them stand in
            place of those below.
        device, devices, precision, strategy: where and how it runs, as Lightning Fabric takes them; of several devices
            each takes its share of every batch. The strategy `SHARDED` spreads parameters, gradients and optimizer
            states over them by `fully_shard`.
        reference: main measures on validation by task, against which epochs are scored: of single-task runs of the
            same seed, or the best of a run with equal weights. None where there is nothing of the kind: a single-task
            run is scored by its measure itself, another one by its gain over its own first epoch.
        potentials: each task's validation accuracy by the single-task run, for the methods that need it.
        priorities: task → how much it is wanted; none for a single-task run.
        source: a digest of the file that the method is in, if that is a person's own.
        shares: whether the record says how much of the update each task had, which the balance monitor measures.
    """

    method: str
    seed: int
    epochs: int
    batch_size: int
    evaluation_batch_size: int
    lr: float
    weight_decay: float
    schedule: str = "constant"
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    devices: int = 1
    precision: str = "32-true"
    strategy: str = "auto"
    reference: Mapping[str, float] | None = None
    potentials: Mapping[str, float] | None = None
    priorities: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    shares: bool = False

    @property
    def single(self) -> str | None:
        """The one task that a single-task run trains."""
        return task_of(self.method)

    @cached_property
    def key(self) -> str:
        """A digest of everything above."""
        text = json.dumps(_plain(storable(asdict(self))), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]

    @property
    def head(self) -> Record:
        """What a record begins with: which run it is of."""
        configuration = {
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "hyperparameters": dict(self.hyperparameters),
        }
        return {"run": self.key, "method": self.method, "seed": self.seed, **configuration}


def _plain(value: Any) -> Any:
    """Makes 1 and 1.0 the same: which of them it is depends on who wrote it."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def finished(record: Mapping[str, Any]) -> bool:
    """Whether a run went through to its end."""
    return bool(record["status"] == "finished")


def selected(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a finished run's epoch that is best on validation."""
    epoch: Mapping[str, Any] = record["epochs"][record["selected"] - 1]
    return epoch


def value_of(record: Mapping[str, Any]) -> float:
    """Returns a run's score on validation at its selected epoch; −∞ if it did not finish or has none."""
    score = float(selected(record)["score"]) if finished(record) else math.nan
    return -math.inf if math.isnan(score) else score
