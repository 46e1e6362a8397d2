"""What a run is: what decides its outcome, and what it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Values = dict[str, dict[str, float]]
"""Task → measure (and whatever else its metrics compute) → value."""

Record = dict[str, Any]
"""What came of a run, as `train` returns it."""

SHARDED = "fsdp"
"""The strategy that shards the network."""


@dataclass(frozen=True)
class Trial:
    """What one run is: all that decides its outcome.

    Attributes:
        method: a name in the registry, `single:<task>` included.
        seed: decides initial weights, order of the batches and everything random.
        epochs, batch_size, evaluation_batch_size, lr, weight_decay, schedule: see `equipoise.bench.problems.Training`.
        hyperparameters: the method's own; `potentials` among them stand in place of those below.
        device, devices, precision, strategy: where and how it runs, as Lightning Fabric takes them; of several devices
            each takes its share of every batch. The strategy `SHARDED` spreads parameters, gradients and optimizer
            states over them by `fully_shard`.
        reference: each task's main measure on validation by the single-task run of the same seed, against which
            epochs are scored; None for a single-task run.
        potentials: each task's validation accuracy by that run, for the methods that need it.
        priorities: task → how much it is wanted; none for a single-task run.
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

    @property
    def single(self) -> str | None:
        """The one task that a single-task run trains."""
        return self.method.removeprefix("single:") if self.method.startswith("single:") else None
