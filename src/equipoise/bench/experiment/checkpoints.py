"""A run's checkpoint: one file, whole or not there, that nothing is unpickled from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from equipoise.bench.experiment.folder import write_whole

if TYPE_CHECKING:
    from equipoise.bench.experiment.trial import Trial


def save_checkpoint(path: Path, trial: Trial, origin: str, state: Mapping[str, Any]) -> None:
    """Writes a run's state beside its place and moves it there."""
    write_whole(path, lambda file: torch.save({"trial": _definition(trial, origin), **state}, file))


def load_checkpoint(path: Path, trial: Trial, origin: str) -> dict[str, Any] | None:
    """Returns a run's state, tensors on the CPU; None if there is none, or one of another run."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state if state["trial"] == _definition(trial, origin) else None


def _definition(trial: Trial, origin: str) -> str:
    return json.dumps([asdict(trial), origin], sort_keys=True)
