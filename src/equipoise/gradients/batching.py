"""How many tasks go at once through what they share: one after the other, or several under `torch.vmap`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from equipoise._checks import check_number

WARM_UP = 2
"""Steps of each way before it is timed: the first ones compile, tune and allocate."""

TIMED = 3
"""Steps of each way that are timed."""

FREE_SHARE = 0.5
"""Share of the free memory that a chunk's rows may take; what they are computed from takes about as much again."""


class Unbatchable(Exception):  # noqa: N818 - an answer rather than an error
    """The tasks cannot go through a graph together: an operator without a rule for it, say."""


class Batching:
    """Decides how many tasks go through what they share at once, and remembers what a model allows.

    A given number is taken. Otherwise it is one on a CPU, which gains nothing by more, and where deterministic
    algorithms are asked for. On an accelerator both ways are timed in the first steps, without waiting for it, and the
    quicker is kept: where the host's launches bound a step several at once win, where the device is busy they lose.

    Args:
        chunk_size: the number, at least 1; None: chosen.

    Raises:
        ValueError: it is no whole number of at least 1.
    """

    def __init__(self, chunk_size: int | None = 1) -> None:
        if chunk_size is not None and (
            check_number("chunk_size", chunk_size, at_least=1) != chunk_size or isinstance(chunk_size, bool | float)
        ):
            raise ValueError(f"chunk_size must be a whole number of tasks, at least 1, or None; found {chunk_size!r}.")
        self.chunk_size = chunk_size
        self.chosen: int | None = None
        self.reason = "chunk_size=1" if chunk_size == 1 else "no step yet"
        self._refused = False
        self._proven = False
        self._trials: list[_Trial] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_trials": []}

    def size(self, count: int, device: torch.device, compiled: bool, row_bytes: int) -> int:
        """Returns how many of `count` tasks go at once in this step.

        Args:
            count: the tasks of the step.
            device: where they are.
            compiled: their graphs were made by `torch.compile`, which gives them no rule for several tasks.
            row_bytes: of one task's gradients.
        """
        if self.chunk_size == 1 or self._refused:
            return 1
        if compiled:
            self.reason = "one after the other: torch.compile made the graph"
            return 1
        if self.chunk_size is not None:
            self.reason = f"chunk_size={self.chunk_size}"
            return min(self.chunk_size, count)
        if self.chosen is not None:
            return min(self.chosen, count)
        if device.type == "cpu":
            self.reason = "one after the other: on a CPU more gain nothing"
            return 1
        if torch.are_deterministic_algorithms_enabled():
            self.reason = "one after the other: deterministic algorithms are asked for"
            return 1
        self.reason = "both ways are being timed"
        turn = len(self._trials)
        if turn < 2 * (WARM_UP + TIMED):
            return 1 if turn % 2 == 0 else _fitting(count, device, row_bytes)
        return 1

    def timed(self, size: int, device: torch.device) -> _Trial | None:
        """Returns what times this step's passes from here to its `end`, while both ways are being timed."""
        undecided = self.chunk_size is None and self.chosen is None and not self._refused
        if not undecided or device.type == "cpu" or len(self._trials) >= 2 * (WARM_UP + TIMED):
            return None
        if torch.are_deterministic_algorithms_enabled():
            return None
        trial = _Trial(size, device)
        self._trials.append(trial)
        return trial

    @property
    def ready(self) -> bool:
        """Whether the trials are over and their times have come."""
        enough = len(self._trials) >= 2 * (WARM_UP + TIMED)
        return self.chosen is None and enough and all(trial.over for trial in self._trials)

    def decide(self) -> int:
        """Returns the quicker size by the trials, for `choose`."""
        counted = self._trials[2 * WARM_UP :]
        medians = {size: _median([t.time for t in counted if t.size == size]) for size in {t.size for t in counted}}
        return min(medians, key=lambda size: medians[size])

    def choose(self, size: int) -> None:
        """Keeps a size from here on."""
        self.chosen = size
        way = "one after the other" if size == 1 else f"{size} at once"
        self.reason = f"{way}: the quicker in the first steps"
        self._trials = []

    def run(
        self, edges: Sequence[GradientEdge], leaves: Sequence[Tensor], outer: Sequence[Tensor], retain_graph: bool
    ) -> dict[Tensor, Tensor]:
        """Takes several tasks back from edges to leaves.

        The first time that a model is taken so, the graph is kept, in case it cannot be.

        Args:
            edges: where they start.
            leaves: where they go.
            outer: for each edge the tasks' gradients there, `[n, *shape]`.
            retain_graph: keep the graph.

        Returns:
            Leaf → the tasks' gradients `[n, *shape]`; a leaf that is not reached is left out.

        Raises:
            Unbatchable: they cannot; the graph is still there.
        """
        found: list[Tensor] = []

        def backward(cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
            keep = retain_graph or not self._proven
            gradients = torch.autograd.grad(edges, leaves, cotangents, retain_graph=keep, allow_unused=True)
            found.extend(leaf for leaf, gradient in zip(leaves, gradients, strict=True) if gradient is not None)
            return tuple(gradient for gradient in gradients if gradient is not None)

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop")  # a formula that goes task by task
                rows = torch.vmap(backward, randomness="same")(list(outer))
        except Exception as error:
            if self._proven:
                raise
            self._refused = True
            lines = str(error).strip().splitlines()
            self.reason = f"one after the other: {lines[0] if lines else type(error).__name__}"
            raise Unbatchable(self.reason) from error
        self._proven = True
        return dict(zip(found, rows, strict=True))


class _Trial:
    """The time that a step's passes take on an accelerator."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self._start = torch.Event(device, enable_timing=True)
        self._end = torch.Event(device, enable_timing=True)
        self._start.record()

    def end(self) -> None:
        """The passes have been launched."""
        self._end.record()

    @property
    def over(self) -> bool:
        """Whether the device has gone past the end."""
        done: bool = self._end.query()
        return done

    @property
    def time(self) -> float:
        """Milliseconds."""
        elapsed: float = self._start.elapsed_time(self._end)
        return elapsed


def _median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]


def _fitting(count: int, device: torch.device, row_bytes: int) -> int:
    """Returns how many tasks' rows fit into the free memory, where the device tells it."""
    module = torch.get_device_module(device)
    if not hasattr(module, "mem_get_info") or row_bytes == 0:
        return count
    free, _ = module.mem_get_info(device)
    return max(1, min(count, int(free * FREE_SHARE / row_bytes)))
