"""Stopping and going on: bit-identical to never having stopped, for every method."""

from __future__ import annotations

import copy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import TASKS, assert_same
from training_loop.killed import STEPS, main
from training_loop.loops import POTENTIALS, Model, inputs, losses_of, make, train

import equipoise as eq

METHODS = [*eq.list_methods(), "single:b"]
TESTS = Path(__file__).parents[1]


def states(*parts: Any) -> list[dict[str, Any]]:
    return [copy.deepcopy(dict(part.state_dict())) for part in parts]


def through_a_file(path: Path, *parts: Any) -> list[dict[str, Any]]:
    torch.save([part.state_dict() for part in parts], path)
    loaded: list[dict[str, Any]] = torch.load(path, weights_only=True)
    return loaded


@pytest.mark.parametrize("stop", [1, 2, 4])
@pytest.mark.parametrize("name", METHODS)
def test_goes_on_as_if_never_stopped(name: str, stop: int, tmp_path: Path) -> None:
    """In the middle of an epoch and between two; also where the next step lacks a task (stops 1 and 4)."""
    model = Model()
    method = make(name, model)
    train(method, model, steps=range(stop))
    saved = through_a_file(tmp_path / "checkpoint.pt", model, method)
    train(method, model, steps=range(stop, 6))

    torch.manual_seed(99)  # a new process stands elsewhere in PyTorch's own random numbers
    other = Model(seed=7)
    resumed = eq.make_method(name, other, TASKS, potentials=POTENTIALS if name.startswith("amtl") else None)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    train(resumed, other, steps=range(stop, 6))
    assert_same(states(other, resumed), states(model, method))


def test_killed_in_the_middle_of_a_step_and_started_again(tmp_path: Path) -> None:
    """A real process, killed between two micro-batches: the step it was in is repeated from the checkpoint."""

    def run(checkpoint: Path, *arguments: str) -> int:
        command = [sys.executable, "-m", "training_loop.killed", str(checkpoint), *arguments]
        return subprocess.run(command, cwd=TESTS, check=False).returncode

    main(tmp_path / "whole.pt", kill_in=None)
    assert run(tmp_path / "killed.pt", str(STEPS // 2)) == -signal.SIGKILL
    assert torch.load(tmp_path / "killed.pt", weights_only=True)["steps"] == STEPS // 2
    assert run(tmp_path / "killed.pt") == 0
    found, expected = (torch.load(tmp_path / name, weights_only=True) for name in ("killed.pt", "whole.pt"))
    assert_same(found, expected)


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_of_something_else_is_refused_and_named(name: str) -> None:
    model = Model()
    method = make(name, model)
    train(method, model, steps=range(1))
    other = "ew" if name != "ew" else "uw"
    before = states(method)
    with pytest.raises(ValueError, match=f"another method: found '{other}', expected '{name}'"):
        method.load_state_dict(make(other, Model()).state_dict())
    tasks = ["a", "b", "d"]
    potentials = dict.fromkeys(tasks, 0.5) if name.startswith("amtl") else None
    with pytest.raises(ValueError, match=r"of another tasks: found \['a', 'b', 'd'\]|of other tasks"):
        method.load_state_dict(eq.make_method(name, Model(), tasks, potentials=potentials).state_dict())
    assert_same(states(method), before)


def test_task_gradients_of_an_unfinished_step_are_not_saved() -> None:
    """As `.grad` is not: a checkpoint in the middle of a step holds the state, and `zero_grad` clears the rest."""
    model = Model()
    method = make("mgda", model)
    x = inputs(0, model)
    method.backward(losses_of(model(x), x))
    method.zero_grad()
    before = states(method)
    method.backward(losses_of(model(x), x), accumulate=True)
    assert_same(states(method), before)
