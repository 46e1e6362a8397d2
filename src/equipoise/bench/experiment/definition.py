"""A run as it stands in the study's queue, with all that a worker has to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from equipoise.bench.experiment.database import StorageError
from equipoise.bench.experiment.folder import readable, storable
from equipoise.bench.experiment.settings import FORMAT
from equipoise.bench.experiment.trial import Trial


@dataclass(frozen=True)
class Definition:
    """All that a worker has to know of a run.

    Attributes:
        problem: as `load_problem` takes it.
        quick: less data.
        trial: how it is trained.
        picture: whether a picture of predictions is wanted.
        monitor_every: steps between samples of the balance monitor; 0 for none.
        source: what `rows.source_of` says about the problem.
    """

    problem: str
    quick: bool
    trial: Trial
    picture: bool = False
    monitor_every: int = 0
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON holds it."""
        trial = {name: value for name, value in asdict(self.trial).items() if value is not None}
        return {"format": FORMAT, "key": self.trial.key, **asdict(self), "trial": storable(trial)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Definition:
        """Returns what `to_json` gave as a definition again.

        Raises:
            StorageError: it is of another version.
        """
        fields = dict(value)
        if fields.pop("format", None) != FORMAT:
            raise StorageError(
                "The study was made by another version of equipoise: install the same one everywhere, "
                "or begin another study."
            )
        fields.pop("key")
        return cls(**{**fields, "trial": Trial(**readable(fields["trial"]))})
