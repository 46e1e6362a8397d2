"""Says how a comparison goes on: a progress bar in a terminal, a line per run elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from equipoise.bench.experiment.trial import Record
from equipoise.bench.problems import Problem


class ConsoleProgress:
    """Tells a console. Use it as a context: the bar ends with it.

    Args:
        console: where.
        problem: whose measures are told.
    """

    def __init__(self, console: Console, problem: Problem) -> None:
        self._console = console
        self._tasks = problem.tasks
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[runs]} runs"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._id: TaskID | None = None
        self._runs = self._done = self._epochs = 0

    def __enter__(self) -> ConsoleProgress:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def start(self, runs: int, done: int, epochs: int) -> None:
        """Shows how much there is to do."""
        self._done, self._epochs = done, epochs
        if done:
            self._console.print(f"{done} of {runs} runs are in the folder already.")
        self._id = self._bar.add_task("training", runs="")
        self.state(runs, 0)

    def state(self, runs: int, epochs: int) -> None:
        """Moves the bar on."""
        self._runs = runs
        if self._id is not None:
            completed = min(self._done + epochs / self._epochs, runs)
            self._bar.update(self._id, total=runs, completed=completed, runs=f"{self._done}/{runs}")

    def run(self, record: Record) -> None:
        """Counts a run and, outside a terminal or if it failed, says what came of it."""
        self._done += 1
        if not self._console.is_terminal or record["status"] != "finished":
            self._console.print(
                f"[{self._done}/{self._runs}] {describe(record)}{self._measures(record)}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def costs(self) -> None:
        """Says that time and memory are being measured."""
        if self._id is not None:
            self._bar.update(self._id, description="measuring time and memory")
        if not self._console.is_terminal:
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
