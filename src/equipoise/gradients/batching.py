"""How many tasks go at once through what they share: one after the other, or several under `torch.vmap`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence, Set
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from equipoise._checks import check_number

WARM_UP = 2
"""Steps of each way before it is timed: the first ones compile, tune and allocate."""

TIMED = 3
"""Steps of each way that are timed."""

NO_GAIN = ("cpu", "meta")
"""Types of devices on which several at once are no quicker."""

FREE_SHARE = 0.5
"""Share of the free memory that a chunk's rows may take; what they are computed from takes about as much again."""


class Unbatchable(Exception):  # noqa: N818 - an answer rather than an error
    """The tasks cannot go through a graph together: an operator without a rule for it, say."""


class Together(NamedTuple):
    """What there is to take through the graph together."""

    tasks: int
    """How many of the step's tasks there are."""

    row_bytes: int
    """Of one task's gradients."""

    against: str | None
    """Why they cannot go together; None: they can."""

    hooked: bool
    """Their leaves have hooks, which would be called with what stands for several tasks."""


class Batching:
    """Decides how many tasks go through what they share at once, and remembers what a model allows.

    A given number is taken. Otherwise it is one on a CPU, which gains nothing by more, and where deterministic
    algorithms are asked for. On an accelerator both ways are timed in the first steps, without waiting for it, and the
    quicker is kept: where the host's launches bound a step several at once win, where the device is busy they lose.

    Args:
        chunk_size: the number, at least 1; None: chosen.

    Attributes:
        chosen: the number that was the quicker; None: not known yet.
        reason: how many went at once in the last step, and why.

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
        self.reason = "no step yet"
        self._refused: str | None = None  # why this model's tasks go one after the other
        self._proven: set[str] = set()  # the kinds of nodes that several tasks have gone through together
        self._trials: list[_Trial] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_trials": []}

    def begin(self, device: torch.device, together: Callable[[], Together]) -> tuple[int, _Trial | None]:
        """Returns how many tasks go at once in this step; and, while both ways are timed, what times it to its `end`.

        Args:
            device: where they are.
            together: finds what there is to take through the graph together; called where it matters.
        """
        size, self.reason = self._without_looking(device)
        if size is not None:
            return size, None
        found = together()
        size, self.reason = self._known(found)
        if size is not None:
            return min(size, max(found.tasks, 1)), None
        turn = len(self._trials)
        if turn == 2 * (WARM_UP + TIMED):  # their times have not come yet
            return 1, None
        size = 1 if turn % 2 == 0 else _fitting(found.tasks, device, found.row_bytes)
        trial = _Trial(size, found.tasks, device)
        self._trials.append(trial)
        return size, trial

    def _without_looking(self, device: torch.device) -> tuple[int | None, str]:
        """Returns one, and why, where more are out of the question."""
        if self.chunk_size == 1:
            return 1, "chunk_size=1"
        if self._refused is not None:
            return 1, f"one after the other: {self._refused}"
        if self.chunk_size is None and device.type in NO_GAIN:
            return 1, "one after the other: on a CPU more gain nothing"
        if self.chunk_size is None and torch.are_deterministic_algorithms_enabled():
            return 1, "one after the other: deterministic algorithms are asked for"
        if self.chunk_size is None and self.chosen == 1:
            return 1, "one after the other: the quicker in the first steps"
        return None, ""

    def _known(self, together: Together) -> tuple[int | None, str]:
        """Returns how many go at once, and why; None: both ways are timed."""
        if together.against is not None:
            return 1, f"one after the other: {together.against}"
        if self.chunk_size is not None:
            return self.chunk_size, f"chunk_size={self.chunk_size}"
        if together.hooked:
            return 1, "one after the other: there are hooks on parameters"
        if self.chosen is not None:
            return self.chosen, f"{self.chosen} at once: the quicker in the first steps"
        return None, "both ways are being timed"

    @property
    def vote(self) -> int:
        """The quicker size by this rank's trials; 0 while their times have not come."""
        if self._refused is not None:
            return 1
        if len(self._trials) < 2 * (WARM_UP + TIMED) or not all(trial.over for trial in self._trials):
            return 0
        counted = self._trials[2 * WARM_UP :]
        alone = [trial.time / trial.count for trial in counted if trial.size == 1]
        batched = [trial.time / trial.count for trial in counted if trial.size > 1]
        if not batched or median(alone) <= median(batched):
            return 1
        return max(trial.size for trial in counted)

    def settle(self, votes: Iterable[int]) -> None:
        """Keeps the first size that a rank votes for, once there is one: the same on all ranks."""
        if self.chunk_size is None and self.chosen is None:
            self.choose(next(filter(None, votes), None))

    def choose(self, size: int | None) -> None:
        """Keeps a size from here on."""
        if size is not None:
            self.chosen = size
            self._trials = []

    def knows(self, kinds: Set[str]) -> bool:
        """Whether several tasks have gone through all these kinds of nodes together."""
        return kinds <= self._proven

    def run(
        self,
        edges: Sequence[GradientEdge],
        leaves: Sequence[Tensor],
        outer: Sequence[Tensor],
        retain_graph: bool,
        kinds: Set[str],
    ) -> dict[Tensor, Tensor]:
        """Takes several tasks back from edges to leaves.

        The first time that they go through a kind of node so, the graph is kept, in case they cannot.

        Args:
            edges: where they start.
            leaves: where they go.
            outer: for each edge the tasks' gradients there, `[n, *shape]`.
            retain_graph: keep the graph.
            kinds: the nodes' names.

        Returns:
            Leaf → the tasks' gradients `[n, *shape]`; a leaf that is not reached is left out.

        Raises:
            Unbatchable: they cannot; the graph is still there.
        """
        found: list[Tensor] = []
        proven = self.knows(kinds)

        def backward(cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
            keep = retain_graph or not proven
            gradients = torch.autograd.grad(edges, leaves, cotangents, retain_graph=keep, allow_unused=True)
            found.extend(leaf for leaf, gradient in zip(leaves, gradients, strict=True) if gradient is not None)
            return tuple(gradient for gradient in gradients if gradient is not None)

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop")  # a formula that goes task by task
                rows = torch.vmap(backward, randomness="same")(list(outer))
        except Exception as error:
            if proven:
                raise
            lines = str(error).strip().splitlines()
            self._refused = lines[0] if lines else type(error).__name__
            self.reason = f"one after the other: {self._refused}"
            raise Unbatchable(self.reason) from error
        self._proven |= kinds
        return dict(zip(found, rows, strict=True))


class _Trial:
    """The time that a step's passes of `count` tasks take on an accelerator, `size` at once."""

    def __init__(self, size: int, count: int, device: torch.device) -> None:
        self.size = size
        self.count = count
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


def _fitting(count: int, device: torch.device, row_bytes: int) -> int:
    """Returns how many tasks' rows fit into the free memory, where the device tells it."""
    module = torch.get_device_module(device)
    if not hasattr(module, "mem_get_info") or row_bytes == 0:
        return count
    free, _ = module.mem_get_info(device)
    return max(1, min(count, int(free * FREE_SHARE / row_bytes)))
