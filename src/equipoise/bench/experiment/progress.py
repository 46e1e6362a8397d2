"""Says how a comparison goes on: a bar in a terminal or notebook, a line per run elsewhere, and what is left."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from equipoise.bench.experiment.estimate import Estimate, in_words
from equipoise.bench.experiment.protocol import count
from equipoise.bench.experiment.trial import Record, Run
from equipoise.bench.problems import Problem


class Progress(Protocol):
    """What is told how a comparison goes on."""

    def start(self, runs: int, done: Collection[Record], epochs: int) -> None:
        """`runs` in all, those that are `done` found in the study; each has `epochs`."""

    def state(self, runs: int, under_way: Mapping[Run, int]) -> None:
        """`runs` in all are now expected; those under way have so many epochs behind them."""

    def run(self, record: Record) -> None:
        """A run has ended; the record of one that failed has its `traceback_file`."""

    def costs(self) -> None:
        """Time and memory are now being measured."""


class ConsoleProgress:
    """Tells a console. Use it as a context: the bar ends with it.

    Args:
        console: where.
        problem: whose measures are told.
        methods: those compared.
        workers: how many runs train at the same time here; 0: as many as others take.
    """

    def __init__(self, console: Console, problem: Problem, methods: Sequence[str], workers: int) -> None:
        self._console = console
        self._lines = not (console.is_terminal or console.is_jupyter)  # where there is no bar
        self._tasks = problem.tasks
        self._methods, self._workers = methods, workers
        self._estimate: Estimate | None = None
        self._foretold = False
        self._explained = {""}
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[runs]} runs"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=self._lines,
        )
        self._id: TaskID | None = None
        self._runs = self._epochs = self._done = 0

    def __enter__(self) -> ConsoleProgress:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def start(self, runs: int, done: Collection[Record], epochs: int) -> None:
        """Says how much there is to do."""
        self._runs, self._done, self._epochs = runs, len(done), epochs
        singles = [f"single:{task.name}" for task in self._tasks]
        self._estimate = Estimate([*singles, *self._methods], len(self._tasks), epochs)
        for record in done:
            self._estimate.finished(record)
        if done:
            self._say(f"{len(done)} of {count(runs, 'run')} {'is' if runs == 1 else 'are'} in the folder already.")
        if len(done) < runs:
            workers = {0: "waiting for workers", 1: "1 worker"}.get(self._workers, f"starting {self._workers} workers")
            self._say(f"{count(runs - len(done), 'run')}, {workers}.")
        self._id = self._bar.add_task("training", runs="", left="")
        self.state(runs, {})

    def state(self, runs: int, under_way: Mapping[Run, int]) -> None:
        """Moves the bar on; once that is known, says when the first run will be finished."""
        self._runs = runs
        if self._id is None or self._estimate is None:
            return
        self._estimate.under_way(under_way)
        completed = min(self._done + sum(under_way.values()) / self._epochs, runs)
        left = self._left()
        self._bar.update(
            self._id, total=runs, completed=completed, runs=f"{self._done}/{runs}", left=left and f"{left} left"
        )
        first = self._estimate.first()
        if not self._foretold and first is not None:
            self._foretold = True
            self._say(f"The first results in {in_words(first)}, all in {left}.")

    def run(self, record: Record) -> None:
        """Counts a run and, where there is no bar or if it failed, says what came of it."""
        assert self._estimate is not None
        self._done += 1
        self._estimate.finished(record)
        self._foretold = True
        left = self._left()
        if self._lines or record["status"] != "finished":
            self._say(
                f"[{self._done}/{self._runs}] {describe(record)}{self._measures(record)}{left and f'; {left} left'}"
            )
        explanation = record.get("block", "")
        if explanation not in self._explained:  # many runs fail by one error
            self._explained.add(explanation)
            self._say(f"{explanation}\n  The whole traceback: {record['traceback_file']}")

    def _left(self) -> str:
        """What is left, in words; nothing if nothing is, or that cannot be known."""
        assert self._estimate is not None
        left = None if self._done >= self._runs else self._estimate.left(self._runs, self._workers or 1)
        return "" if left is None else in_words(left)

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def costs(self) -> None:
        """Says that time and memory are being measured."""
        if self._id is not None:
            self._bar.update(self._id, description="measuring time and memory")
        if self._lines:
            self._console.print("Measuring time per step and memory.")

    def _measures(self, record: Record) -> str:
        parts = []
        for task in self._tasks:
            if task.name in record.get("test", {}):
                main = task.measures[0]
                number = main.format(record["test"][task.name][main.name])
                parts.append(f"{task.name} {main.name} {number}{f' {main.unit}' if main.unit else ''}")
        return f": {', '.join(parts)}" if parts else ""


def describe(record: Record) -> str:
    """Returns which run it was and how it ended."""
    outcome = (
        f"{record['seconds']:.1f} s" if record["status"] == "finished" else f"{record['status']}: {record['message']}"
    )
    return f"{record['method']}, seed {record['seed']}, lr {record['lr']:g} ({outcome})"
