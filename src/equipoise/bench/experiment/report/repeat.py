"""What is needed to repeat a comparison."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from equipoise.bench.experiment.settings import PRIORITIES, Settings
from equipoise.bench.problems import is_object

PLACE = ("device", "devices", "precision", "strategy", "monitor_every")
"""Settings that say where and how runs are made and watched."""


def command(settings: Settings) -> str:
    """Returns what makes the same comparison in an empty folder: a command, as a shell takes it.

    Of a problem that was given as an object it is a call, as Python takes it, in which that is called `problem`.
    """
    return _call(settings) if is_object(settings.problem) else _command(settings)


def _command(settings: Settings) -> str:
    words = ["equipoise", "compare", settings.problem]
    for name, value in _options(settings).items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", str(value)]
    tables = {**settings.hyperparameters, PRIORITIES: settings.priorities}
    for method, values in tables.items():
        for name, value in values.items():
            words += ["--set", f"{method}.{name}={json.dumps(value, ensure_ascii=False)}"]
    return shlex.join(words)


def _call(settings: Settings) -> str:
    given = _options(settings)
    for name in ("hyperparameters", PRIORITIES):
        if value := getattr(settings, name):
            given[name] = dict(value)
    return f"equipoise.bench.compare(problem, {', '.join(f'{name}={value!r}' for name, value in given.items())})"


def _options(settings: Settings) -> dict[str, Any]:
    """The options that make the settings, beside hyperparameters and priorities."""
    found: dict[str, Any] = {"methods": ",".join(settings.methods)}
    if settings.looks:
        found |= {"seeds": settings.looks[0], "until_decided": True, "max_seeds": settings.looks[-1]}
    else:
        found["seeds"] = settings.seeds
    found["epochs"] = settings.epochs
    if settings.match_time:
        found["match"] = "time"
    if not settings.baselines:
        found["baselines"] = False
    found["batch_size"] = settings.batch_size
    if settings.quick:
        found["quick"] = True
    if settings.budget is not None:
        found["budget"] = settings.budget
    else:
        found["weight_decay"] = settings.weight_decay
        found |= {"tune": True} if settings.tune else {"lr": settings.lr}
    if settings.grid:
        found["grid"] = ",".join(map(str, settings.grid))
    return found | {name: getattr(settings, name) for name in PLACE}


def facts(settings: Settings, versions: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what decided the outcome, and what it ran with, each with its name."""
    found = [
        ("seeds", ", ".join(map(str, range(settings.seeds)))),
        ("epochs", str(settings.epochs)),
        ("batch size", str(settings.batch_size)),
        ("weight decay", str(settings.weight_decay)),
        ("schedule of the learning rate", settings.schedule),
        ("quick", "yes" if settings.quick else "no"),
    ]
    return found + [(str(name), str(value)) for name, value in versions.items()]
