"""From an experiment to a comparison's settings, and made-up data to try it on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from equipoise.experiment.reproduce.experiments import EXPERIMENTS, Experiment
from equipoise.experiment.settings import SettingsError
from equipoise.problems import load_problem, with_options


def find_experiment(name: str | None) -> Experiment:
    """Returns the experiment of that name.

    Raises:
        SettingsError: there is none, or none is named.
    """
    if name is None:
        raise SettingsError(f"Name an experiment: one of {', '.join(EXPERIMENTS)}.")
    if name not in EXPERIMENTS:
        raise SettingsError(f"Unknown experiment {name!r}: take one of {', '.join(EXPERIMENTS)}.")
    return EXPERIMENTS[name]


def problem_name(experiment: Experiment, data: Path | None, smoke: bool, on_damaged: str) -> str:
    """Returns the experiment's problem with its data, as `load_problem` takes it in any process.

    Args:
        experiment: whose problem.
        data: the data folder; None leaves it out, and whoever reads the data says what is wanted.
        smoke: two steps at a small size.
        on_damaged: "error" or "skip".
    """
    return with_options(
        experiment.problem,
        data=None if data is None else str(data.absolute()),
        smoke=smoke or None,
        on_damaged=None if on_damaged == "error" else on_damaged,
        **experiment.options,
    )


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
    """Writes made-up data in the official layout into a folder, unless there is something in it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        cast("Any", load_problem(experiment.problem)).write_samples(folder)
