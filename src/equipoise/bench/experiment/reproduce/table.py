"""A paper's table with the measured numbers under the printed ones: for the terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from equipoise.bench.experiment.reproduce.experiments import EXPERIMENTS, Experiment
from equipoise.bench.experiment.reproduce.paper_tables import EVERY, SINGLE, PaperColumn, Printed
from equipoise.bench.experiment.settings import Settings

PAPER, HERE = "paper", "here"

METHOD_NAMES = {"ew": "equal weights", SINGLE: "single-task"}


@dataclass(frozen=True)
class Entry:
    """A number of the table.

    Attributes:
        mean: over seeds.
        deviation: over seeds; None with one, or where the paper has none.
        best: the best mean of its column among the methods, the single-task row aside, of the paper or measured.
    """

    mean: float
    deviation: float | None
    best: bool = False


Entries = dict[str, dict[PaperColumn, Entry]]
"""Method → column → number."""


def printed(experiment: Experiment) -> Entries:
    """Returns the paper's numbers."""
    rows = {
        method: dict(zip(experiment.table.columns, numbers, strict=True))
        for method, numbers in experiment.table.rows.items()
    }
    return _mark_best({method: _entries(row) for method, row in rows.items()})


def measured(
    experiment: Experiment, records: Iterable[Mapping[str, Any]], tasks: Sequence[str], methods: Sequence[str]
) -> Entries:
    """Returns the numbers of a comparison's finished runs, combined within each seed as the paper does.

    Args:
        experiment: whose columns are wanted.
        records: one per run, as `training.train` returns them.
        tasks: the problem's, by name.
        methods: rows after single-task.
    """
    runs = {(record["method"], record["seed"]): record["test"] for record in records if record["status"] == "finished"}
    seeds = sorted({seed for _, seed in runs})
    found: Entries = {}
    for method in (SINGLE, *methods):
        row = {}
        for column in experiment.table.columns:
            values = [_value(column, runs, method, seed, tasks) for seed in seeds]
            known = [value for value in values if value is not None]
            if known and not (method == SINGLE and column.combine == "gain"):
                spread = float(np.std(known, ddof=1)) if len(known) > 1 else None
                row[column] = Entry(float(np.mean(known)), spread)
        found[method] = row
    return _mark_best(found)


def paper_markdown(experiment: Experiment, entries: Entries, remarks: Sequence[str]) -> str:
    """Returns the table and what has to be known to read it as Markdown."""
    head, rows = _grid(experiment, entries, lambda text, best: f"**{text}**" if best else text)
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(['---', '---', *['---:'] * (len(head) - 2)])}|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in paper_notes(experiment, remarks))]) + "\n"


def paper_table(experiment: Experiment, entries: Entries) -> Table:
    """Returns the table for a terminal."""
    head, rows = _grid(experiment, entries, lambda text, best: Text(text, style="bold green" if best else ""))
    table = Table(title=f"{experiment.name}: the paper's results, and here", title_justify="left")
    for index, name in enumerate(head):
        table.add_column(name, justify="left" if index < 2 else "right", no_wrap=index < 2)
    for index, row in enumerate(rows):
        table.add_row(*row, style="dim" if row[1] == PAPER else "", end_section=bool(index % 2))
    return table


def experiments_table() -> Table:
    """Returns the list of experiments, for the terminal."""
    table = Table("experiment", "what it is", "methods", "seeds", "paper's table")
    for experiment in EXPERIMENTS.values():
        table.add_row(
            experiment.name,
            experiment.description,
            ", ".join(experiment.methods),
            str(experiment.seeds),
            experiment.table.source.partition("”, ")[2],
            end_section=True,
        )
    return table


def paper_notes(experiment: Experiment, remarks: Sequence[str]) -> list[str]:
    """Returns the table's source, what is not as in the paper, and what is special about these runs."""
    lines = [*remarks, f"Paper: {experiment.table.source}. Bold: best mean among the methods, in the paper and here."]
    if experiment.table.remark:
        lines.append(experiment.table.remark)
    return lines + list(experiment.deviations)


def reproduction_remarks(settings: Settings, smoke: bool) -> list[str]:
    """Returns how the numbers came about, a sentence each."""
    seeds = f"{settings.seeds} seed{'' if settings.seeds == 1 else 's'}"
    epochs = f"{settings.epochs} epoch{'' if settings.epochs == 1 else 's'}"
    lines = [f"Here: {seeds}, {epochs} at batch size {settings.batch_size}, on {settings.device}."]
    if smoke:
        lines.insert(0, "SMOKE: two steps on a few samples at a small size; the numbers mean nothing.")
    if settings.tune:
        lines.append("Each method's learning rate was chosen on validation.")
    return lines


def _grid(
    experiment: Experiment, entries: Entries, style: Callable[[str, bool], Any]
) -> tuple[list[str], list[list[Any]]]:
    """Head and rows: two a method (or, upright, two a measure), the paper's numbers and the measured ones."""
    table = experiment.table
    known = printed(experiment)
    methods = [method for method in dict.fromkeys([*known, *entries]) if known.get(method) or entries.get(method)]

    def cell(source: Entries, method: str, column: PaperColumn) -> Any:
        entry = source.get(method, {}).get(column)
        if entry is None:
            return "–"
        text = f"{entry.mean:.{column.digits}f}"
        if entry.deviation is not None:
            text += f" ± {entry.deviation:.{column.digits}f}"
        return style(text, entry.best)

    both = ((PAPER, known), (HERE, entries))
    if table.upright:
        head = ["measure", "", *(_name(method) for method in methods)]
        rows = [
            [column.head if where == PAPER else "", where, *(cell(source, method, column) for method in methods)]
            for column in table.columns
            for where, source in both
        ]
    else:
        head = ["method", "", *(column.head for column in table.columns)]
        rows = [
            [_name(method) if where == PAPER else "", where, *(cell(source, method, c) for c in table.columns)]
            for method in methods
            for where, source in both
        ]
    return head, rows


def _name(method: str) -> str:
    return METHOD_NAMES.get(method, method)


def _entries(numbers: Mapping[PaperColumn, Printed | None]) -> dict[PaperColumn, Entry]:
    return {column: Entry(*number) for column, number in numbers.items() if number is not None}


def _value(
    column: PaperColumn,
    runs: Mapping[tuple[str, int], Mapping[str, Mapping[str, float]]],
    method: str,
    seed: int,
    tasks: Sequence[str],
) -> float | None:
    """A method's number in one seed; None if a run it needs is not there."""
    single = {
        task: test[task] for task in tasks if (test := runs.get((f"single:{task}", seed))) is not None and task in test
    }
    own = single if method == SINGLE else runs.get((method, seed))
    terms = [(name, measure) for task, measure in column.terms for name in (tasks if task == EVERY else [task])]
    if own is None or any(name not in own for name, _ in terms):
        return None
    values = [own[name][measure] for name, measure in terms]
    if column.combine == "gain":
        ((name, measure),) = terms
        reference = single.get(name, {}).get(measure, math.nan)
        return 100 * (values[0] - reference) / reference if reference else None
    total = math.fsum(values) * column.scale
    return total if column.combine == "sum" else total / len(values)


def _mark_best(entries: Entries) -> Entries:
    """Marks the best mean of every column among the methods."""
    marked = {method: dict(row) for method, row in entries.items()}
    for column in {column for row in entries.values() for column in row}:
        sign = 1 if column.higher_is_better else -1
        means = {
            method: sign * row[column].mean
            for method, row in entries.items()
            if method != SINGLE and column in row and not math.isnan(row[column].mean)
        }
        for method, mean in means.items():
            if mean == max(means.values()):
                entry = entries[method][column]
                marked[method][column] = Entry(entry.mean, entry.deviation, best=True)
    return marked
