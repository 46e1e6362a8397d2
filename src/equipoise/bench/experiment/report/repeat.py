"""What is needed to repeat a comparison."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from equipoise.bench.experiment.settings import PRIORITIES, Settings


def command(settings: Settings) -> str:
    """Returns the command that makes the same comparison in an empty folder, as a shell takes it."""
    words = ["equipoise", "compare", settings.problem, "--methods", ",".join(settings.methods)]
    if settings.looks:
        words += ["--seeds", str(settings.looks[0]), "--until-decided", "--max-seeds", str(settings.looks[-1])]
    else:
        words += ["--seeds", str(settings.seeds)]
    words += ["--epochs", str(settings.epochs)]
    if settings.match_time:
        words += ["--match", "time"]
    if not settings.baselines:
        words.append("--no-baselines")
    words += ["--batch-size", str(settings.batch_size)]
    if settings.quick:
        words.append("--quick")
    if settings.budget is not None:
        words += ["--budget", str(settings.budget)]
    else:
        words += ["--weight-decay", str(settings.weight_decay)]
        words += ["--tune"] if settings.tune else ["--lr", str(settings.lr)]
    if settings.grid:
        words += ["--grid", ",".join(map(str, settings.grid))]
    tables = {**settings.hyperparameters, PRIORITIES: settings.priorities}
    for method, values in tables.items():
        for name, value in values.items():
            words += ["--set", f"{method}.{name}={json.dumps(value, ensure_ascii=False)}"]
    for name in ("device", "devices", "precision", "strategy", "monitor_every"):
        words += [f"--{name.replace('_', '-')}", str(getattr(settings, name))]
    return shlex.join(words)


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
