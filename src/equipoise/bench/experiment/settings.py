"""What a comparison is asked to do, and where that differs from what a run folder already holds."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from equipoise.bench.errors import BenchError
from equipoise.bench.experiment.rows import BASELINE, parts_of, replayed_by
from equipoise.bench.problems import is_object
from equipoise.registry import DEFAULT_OPTIMIZER

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OWN = ("lr", "weight_decay")
"""What may stand among a method's hyperparameters though it is not the method's: they replace the common value."""


PRIORITIES = "priorities"
"""The table of tasks among the tables of methods."""

LISTS = ("methods", "grid", "looks")
"""Fields that JSON holds as lists."""

FORMAT = 2
"""Version of what a comparison's settings, and the definitions and records of its runs, look like."""

OTHER_VERSION = (
    "The comparison there is of another version of equipoise: "
    "take another folder with --out, and with --storage another --study."
)


class SettingsError(BenchError):
    """The settings are wrong or do not fit the run folder; the message says how and what to do."""


@dataclass(frozen=True)
class Settings:
    """All that decides a comparison's outcome.

    Attributes:
        problem: as `load_problem` takes it.
        methods: the rows of the table, see `equipoise.bench.experiment.rows`; single-task baselines are always trained.
        seeds: how many, counted from 0.
        quick: less data and fewer epochs.
        epochs, batch_size, evaluation_batch_size, lr, weight_decay, schedule: see `equipoise.bench.problems.Training`.
        hyperparameters: method → name → value; `lr` and `weight_decay` may be among them. The method `single` stands
            for all single-task baselines.
        device, devices, precision, strategy: where and how each run is trained; see `experiment.trial.Trial`.
        tune: choose every method's learning rate on validation; those given in `hyperparameters` stay.
        grid: the rates that are tried at first; none: those of each row's optimizer.
        monitor_every: steps between samples of the balance monitor in each method's run with seed 0; 0 for none.
        source: what `rows.source_of` says about the problem.
        sources: method → what it says about that, of methods that are in files.
        priorities: task → how much it is wanted, in every method; see `equipoise.Balancer`.
        budget: how many configurations are tried of every row, baselines included; None: no such search.
        baselines: whether there are single-task baselines; without, gains are over equal weights of the same seed.
        looks: numbers of seeds after which it is asked whether the verdict decides, ascending, the last being `seeds`;
            none: all seeds are run, and then it is.
        extend_epochs: double the epochs as long as runs are still rising at their end.
        match_time: give every method as many epochs as take the time of the dearest one's; baselines keep theirs.
    """

    problem: str
    methods: tuple[str, ...]
    seeds: int
    quick: bool
    epochs: int
    batch_size: int
    evaluation_batch_size: int
    lr: float
    weight_decay: float
    schedule: str
    hyperparameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    device: str = "cpu"
    tune: bool = False
    grid: tuple[float, ...] = ()
    monitor_every: int = 0
    devices: int = 1
    precision: str = "32-true"
    strategy: str = "auto"
    source: str = ""
    priorities: Mapping[str, float] = field(default_factory=dict)
    budget: int | None = None
    baselines: bool = True
    looks: tuple[int, ...] = ()
    extend_epochs: bool = False
    match_time: bool = False
    sources: Mapping[str, str] = field(default_factory=dict)

    def hyperparameters_of(self, row: str) -> dict[str, Any]:
        """Returns what is given for a row, `lr` and `weight_decay` included.

        With another optimizer than AdamW a row has what is given for its method, but for these two. A replay has
        nothing of it: it takes its weights, and the rest, from another row.
        """
        method, optimizer = parts_of(row)
        given = dict(self.hyperparameters.get("single" if method.startswith(BASELINE) else method, {}))
        if replayed_by(row) is not None:
            given = {}
        if optimizer != DEFAULT_OPTIMIZER:
            given = {name: value for name, value in given.items() if name not in OWN}
        return {**given, **(self.hyperparameters.get(row, {}))}

    def to_json(self) -> dict[str, Any]:
        """Returns the settings as JSON holds them."""
        lists = {name: list(getattr(self, name)) for name in LISTS}
        return {"format": FORMAT, **asdict(self), **lists}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Settings:
        """Returns what `to_json` gave as settings again.

        Raises:
            SettingsError: it is something else.
        """
        fields = dict(value)
        if fields.pop("format", None) != FORMAT:
            raise SettingsError(OTHER_VERSION)
        try:
            return cls(**{**fields, **{name: tuple(fields[name]) for name in LISTS}})
        except (TypeError, KeyError) as error:
            raise SettingsError(OTHER_VERSION) from error

    def extend(self, earlier: Settings, place: str, another: str) -> Settings:
        """Returns these settings with the methods and seeds that a comparison already has.

        Args:
            earlier: that comparison's.
            place: where it is.
            another: what to take if these are others.

        Raises:
            SettingsError: something that decides the outcome of the runs there is different.
        """
        if is_object(self.problem) and self.problem != earlier.problem:
            raise SettingsError(
                f"{place} holds another problem's results ({earlier.problem}). A problem that is given as an object "
                f"({self.problem}) is gone on with by this process alone: name it, as FILE.py:NAME, take {another}, or "
                "--overwrite, which begins anew without the runs that are there."
            )
        here, there = self.to_json(), earlier.to_json()
        differences = [
            f"{name} is {there[name]!r} there and {here[name]!r} here"
            for name in here
            if name not in ("methods", "seeds", "hyperparameters", "monitor_every", "source", "sources")
            and here[name] != there[name]
        ]
        if self.source != earlier.source and self.problem == earlier.problem:
            differences.append(f"the file of {self.problem} was another one there")
        methods = (*earlier.methods, *(method for method in self.methods if method not in earlier.methods))
        both = replace(
            self,
            methods=methods,
            seeds=max(self.seeds, earlier.seeds),
            hyperparameters={**earlier.hyperparameters, **self.hyperparameters},
            sources={**earlier.sources, **self.sources},
        )
        for row in ("single", *methods):  # what is given for one row may be given for others too
            old, new = earlier.hyperparameters_of(row), self.hyperparameters_of(row)
            if row not in ("single", *self.methods):
                new = both.hyperparameters_of(row)
            if row not in ("single", *earlier.methods):
                old = both.hyperparameters_of(row)
            if old != new or both.hyperparameters_of(row) != new:
                differences.append(f"{row}'s hyperparameters are {old} there and {new} here")
        if differences:
            raise SettingsError(
                f"{place} holds a comparison with other settings: {'; '.join(differences)}. "
                f"Take {another}, the same settings, or --overwrite, which begins anew without the runs that are there."
            )
        return both


def parse_hyperparameters(assignments: Iterable[str], file: Path | None) -> dict[str, dict[str, Any]]:
    """Reads hyperparameters: a TOML file with a table per method, then assignments that replace what it says.

    A table `priorities` is of tasks; it is returned under that name.

    Args:
        assignments: `METHOD.NAME=VALUE` each, the value as TOML has it (a bare word is a string).
        file: the TOML file, if there is one.

    Raises:
        SettingsError: the file cannot be read, or an assignment is not of that form.
    """
    found: dict[str, dict[str, Any]] = {}
    if file is not None:
        try:
            content = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"--config {file} cannot be read: {error}") from error
        for method, table in content.items():
            if not isinstance(table, dict):
                raise SettingsError(f"--config {file}: {method!r} is not a table; write [ema] and below it beta = 0.2.")
            found[method] = dict(table)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        split = str.partition if name.strip().startswith(f"{PRIORITIES}.") else str.rpartition  # a task may have dots
        method, dot, hyperparameter = split(name.strip(), ".")
        if not (equals and dot and method and hyperparameter and text.strip()):
            raise SettingsError(f"--set takes METHOD.NAME=VALUE, as in ema.beta=0.2; found {assignment!r}.")
        found.setdefault(method, {})[hyperparameter] = _value(text.strip())
    return found


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
