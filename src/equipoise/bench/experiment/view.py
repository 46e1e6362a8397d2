"""What a study held at a moment: the queue, and the records of what was done."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Collection, Iterable

from optuna.trial import FrozenTrial, TrialState

from equipoise.bench.experiment.definition import Definition
from equipoise.bench.experiment.folder import readable
from equipoise.bench.experiment.trial import Record, Run

MAX_DEATHS = 3
"""A run that so many workers died of is not tried again."""


class View:
    """What a study held at a moment.

    Args:
        trials: all of them.
        decoded: records that were read before, by the trial's number.

    Attributes:
        trials: all of them, by number.
        surplus: those in the queue whose run is done or stands before them.
        under_way: runs that are worked on, and how many epochs are behind each.
        queued: keys of runs that wait or are worked on.
    """

    def __init__(self, trials: Iterable[FrozenTrial], decoded: dict[int, Record]) -> None:
        self._decoded = decoded
        self.trials = sorted(trials, key=lambda trial: trial.number)
        self.surplus: list[FrozenTrial] = []
        self.queued: set[str] = set()
        self.under_way: dict[Run, int] = {}
        done = {key_of(trial) for trial in self.trials if trial.state is TrialState.COMPLETE}
        for trial in self.trials:
            key = key_of(trial)
            if trial.state is TrialState.WAITING and key in done | self.queued:
                self.surplus.append(trial)
            elif trial.state in (TrialState.WAITING, TrialState.RUNNING):
                self.queued.add(key)
                if trial.state is TrialState.RUNNING:
                    run = Run(key, trial.user_attrs["run"]["trial"]["method"])
                    self.under_way[run] = len(trial.intermediate_values)

    @property
    def failures(self) -> frozenset[int]:
        """The numbers of the trials that failed."""
        return frozenset(trial.number for trial in self.trials if trial.state is TrialState.FAIL)

    def records(self, forgiven: Collection[int] = ()) -> dict[str, Record]:
        """Returns every run's record, by its key.

        Args:
            forgiven: numbers of trials whose failure does not count: their runs are to be tried again.
        """
        found: dict[str, Record] = {}
        deaths: dict[str, list[FrozenTrial]] = {}
        for trial in self.trials:
            key = key_of(trial)
            if trial.state is TrialState.COMPLETE:
                if key not in found or found[key]["status"] == "failed":
                    found[key] = self._record(trial)
            elif trial.state is TrialState.FAIL and trial.number not in forgiven:
                if "record" in trial.user_attrs and self._record(trial)["status"] == "failed":
                    found.setdefault(key, self._record(trial))
                else:  # with another record it died before that counted
                    deaths.setdefault(key, []).append(trial)
        for key, died in deaths.items():
            if len(died) >= MAX_DEATHS:
                head = Definition.from_json(died[0].user_attrs["run"]).trial.head
                message = f"{len(died)} workers died while they trained it"
                found.setdefault(key, head | {"status": "failed", "message": message})
        return found

    def _record(self, trial: FrozenTrial) -> Record:
        if trial.number not in self._decoded:
            self._decoded[trial.number] = readable(trial.user_attrs["record"])
        return self._decoded[trial.number]

    def files(self, key: str) -> dict[str, bytes]:
        """Returns the files that a run left, by name."""
        for trial in self.trials:
            if trial.state is TrialState.COMPLETE and key_of(trial) == key:
                return {
                    name.removeprefix("file:"): zlib.decompress(base64.b64decode(packed))
                    for name, packed in trial.user_attrs.items()
                    if name.startswith("file:")
                }
        return {}


def key_of(trial: FrozenTrial) -> str:
    """Returns the key of the run that a trial is of."""
    key: str = trial.user_attrs["run"]["key"]
    return key
