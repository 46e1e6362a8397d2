"""Trains every method side by side, with a checkpoint after each step; kills itself in the middle if told to.

Usage: python -m training_loop.killed CHECKPOINT [KILL_IN_STEP]
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from training_loop.loops import METRICS, Model, inputs, losses_of, make

import equipoise as eq

STEPS = 6


def main(checkpoint: Path, kill_in: int | None) -> None:
    models = {name: Model() for name in eq.list_methods()}
    methods: dict[str, Any] = {name: make(name, model) for name, model in models.items()}
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        start = state["steps"]
        for name in models:
            models[name].load_state_dict(state["models"][name])
            methods[name].load_state_dict(state["methods"][name])
    for step in range(start, STEPS):
        for index, (name, method) in enumerate(methods.items()):
            model, x = models[name], inputs(step, models[name])
            for last, part in enumerate(x.chunk(2)):
                method.backward({t: loss / 2 for t, loss in losses_of(model(part), part).items()}, accumulate=not last)
                if step == kill_in and index == len(methods) // 2 and not last:
                    os.kill(os.getpid(), signal.SIGKILL)
            method.step()
            method.zero_grad()
            method.after_step(losses_of(model(x), x))
            if step % 2:
                method.end_epoch(METRICS[step // 2])
        state = {
            "steps": step + 1,
            "models": {name: model.state_dict() for name, model in models.items()},
            "methods": {name: method.state_dict() for name, method in methods.items()},
        }
        torch.save(state, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
