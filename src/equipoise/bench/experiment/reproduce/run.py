"""From an experiment to a comparison's settings, and made-up data to try it on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from equipoise.bench.experiment.reproduce.experiments import EXPERIMENTS, Experiment
from equipoise.bench.experiment.settings import SettingsError
from equipoise.bench.problems import load_problem, split_options, with_options


def find_experiment(name: str | None) -> Experiment:
    """Returns the experiment of that name, whose problem has the options that stand behind it (`emotic?loading=0`).

    Raises:
        SettingsError: there is none, or none is named.
        ProblemError: the options are not of the form `name=value&name=value`.
    """
    if name is None:
        raise SettingsError(f"Name an experiment: one of {', '.join(EXPERIMENTS)}.")
    plain, options = split_options(name)
    if plain not in EXPERIMENTS:
        raise SettingsError(f"Unknown experiment {plain!r}: take one of {', '.join(EXPERIMENTS)}.")
    experiment = EXPERIMENTS[plain]
    return replace(experiment, options={**experiment.options, **options})


def problem_name(experiment: Experiment, data: Path | None, smoke: bool, on_damaged: str) -> str:
    """Returns the experiment's problem with its data, as `load_problem` takes it in any process.

    Args:
        experiment: whose problem.
        data: the data folder; None leaves it out, and whoever reads the data says what is wanted.
        smoke: two steps at a small size.
        on_damaged: "error" or "skip".
    """
    asked = {
        "data": None if data is None else str(data.absolute()),
        "smoke": smoke or None,
        "on_damaged": None if on_damaged == "error" else on_damaged,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    return with_options(experiment.problem, **{**experiment.options, **given})


def hyperparameters_for(
    experiment: Experiment, methods: Sequence[str], given: Mapping[str, Mapping[str, Any]], tune: bool
) -> dict[str, dict[str, Any]]:
    """Returns the experiment's hyperparameters of these methods, and over them those that are given.

    Args:
        experiment: the experiment.
        methods: those that are compared.
        given: method → name → value.
        tune: leave the experiment's learning rates out: they are to be found.
    """
    found = {
        method: {name: value for name, value in values.items() if not (tune and name == "lr")}
        for method, values in experiment.hyperparameters.items()
        if method in methods
    }
    for method, values in given.items():
        found[method] = found.get(method, {}) | dict(values)
    return {method: values for method, values in found.items() if values}


def write_samples(experiment: Experiment, folder: Path) -> None:
    """Writes made-up data in the official layout into a folder, unless there is something in it.

    Raises:
        SettingsError: there is a file in the folder's place or above it, or it cannot be written.
    """
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        raise SettingsError(f"{there} is a file, a folder is needed: take another one with --data or --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            cast("Any", load_problem(experiment.problem)).write_samples(folder)
    except OSError as error:
        raise SettingsError(
            f"Made-up data cannot be written into {folder} ({error.strerror}): take another one with --data or --out."
        ) from error
