"""What a study held at a moment: the queue, and the records of what was done."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Collection, Iterable
from dataclasses import asdict

from optuna.trial import FrozenTrial, TrialState

from equipoise.bench.experiment.folder import readable
from equipoise.bench.experiment.trial import Record
from equipoise.bench.experiment.tuning import Run

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
        under_way: runs that are worked on, or were and wait to be gone on with; how many epochs are behind each.
        queued: runs that wait or are worked on.
    """

    def __init__(self, trials: Iterable[FrozenTrial], decoded: dict[int, Record]) -> None:
        self._decoded = decoded
        self.trials = sorted(trials, key=lambda trial: trial.number)
        self.surplus: list[FrozenTrial] = []
        self.queued: set[Run] = set()
        self.under_way: dict[Run, int] = {}
        done = {run_of(trial) for trial in self.trials if trial.state is TrialState.COMPLETE}
        for trial in self.trials:
            run = run_of(trial)
            if trial.state is TrialState.WAITING and run in done | self.queued:
                self.surplus.append(trial)
            elif trial.state in (TrialState.WAITING, TrialState.RUNNING):
                self.queued.add(run)
                if trial.state is TrialState.RUNNING or trial.intermediate_values:
                    self.under_way[run] = len(trial.intermediate_values)

    @property
    def failures(self) -> frozenset[int]:
        """The numbers of the trials that failed."""
        return frozenset(trial.number for trial in self.trials if trial.state is TrialState.FAIL)

    def records(self, forgiven: Collection[int] = ()) -> dict[Run, Record]:
        """Returns every run's record.

        Args:
            forgiven: numbers of trials whose failure does not count: their runs are to be tried again.
        """
        found: dict[Run, Record] = {}
        deaths: dict[Run, int] = {}
        for trial in self.trials:
            run = run_of(trial)
            if trial.state is TrialState.COMPLETE:
                if run not in found or found[run]["status"] == "failed":
                    found[run] = self._record(trial)
            elif trial.state is TrialState.FAIL and trial.number not in forgiven:
                if "record" in trial.user_attrs and self._record(trial)["status"] == "failed":
                    found.setdefault(run, self._record(trial))
                else:  # with another record it died before that counted
                    deaths[run] = deaths.get(run, 0) + 1
        for run, count in deaths.items():
            if count >= MAX_DEATHS:
                message = f"{count} workers died while they trained it"
                found.setdefault(run, asdict(run) | {"status": "failed", "message": message})
        return found

    def _record(self, trial: FrozenTrial) -> Record:
        if trial.number not in self._decoded:
            self._decoded[trial.number] = readable(trial.user_attrs["record"])
        return self._decoded[trial.number]

    def files(self, run: Run) -> dict[str, bytes]:
        """Returns the files that a run left, by name."""
        for trial in self.trials:
            if trial.state is TrialState.COMPLETE and run_of(trial) == run:
                return {
                    name.removeprefix("file:"): zlib.decompress(base64.b64decode(packed))
                    for name, packed in trial.user_attrs.items()
                    if name.startswith("file:")
                }
        return {}


def run_of(trial: FrozenTrial) -> Run:
    """Returns the run that a trial is of."""
    definition = trial.user_attrs["run"]["trial"]
    return Run(definition["method"], definition["seed"], definition["lr"])
