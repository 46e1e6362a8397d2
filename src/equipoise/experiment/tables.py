"""A comparison's table: for the terminal, as Markdown and as CSV."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from rich.table import Table
from rich.text import Text

from equipoise.experiment.comparison import Result
from equipoise.experiment.costs import REFERENCE
from equipoise.experiment.statistics import MIN_SEEDS, SINGLE, Cell, Column, stars

TIME, MEMORY = "time ×", "memory ×"
WIDE = 8
"""With more tasks than this, the terminal shows Δm and costs; the files have everything."""


def notes(result: Result) -> list[str]:
    """Returns what has to be known to read the table, a sentence each."""
    settings, summary = result.settings, result.summary
    lines = []
    if settings.quick:
        lines.append(
            "QUICK: less data and fewer epochs than the problem recommends; good for a try, not for a verdict."
        )
    lines.append(
        f"{result.problem.name}, {count(summary.seeds, 'seed')}, {count(settings.epochs, 'epoch')} at batch size "
        f"{settings.batch_size}, learning rate {settings.lr:g}{_rates(result)}. "
        "Test split, at the epoch that is best on validation; mean ± standard deviation over seeds."
    )
    lines.append("Δm: mean over tasks of the main (first) measure's gain over single-task training of the same seed.")
    if summary.seeds >= MIN_SEEDS:
        lines.append(
            "Bold: best mean of a column. Stars: differs from the best, paired t-test, * p < 0.05, ** p < 0.01."
        )
    else:
        lines.append(
            f"Bold: best mean of a column. No stars: a paired t-test needs at least {MIN_SEEDS} seeds, "
            f"this is {summary.seeds}."
        )
    base = result.costs.get(REFERENCE)
    if base is not None:
        lines.append(
            f"Time per step and peak memory, relative to equal weights ({base.milliseconds:.1f} ms, "
            f"{base.megabytes:.1f} MB; memory by {result.memory_source})."
        )
    for method, reasons in summary.failures.items():
        lines.append(f"{method} failed in {len(reasons)} of {summary.seeds} runs ({reasons[0]}).")
    return lines


def count(number: int, what: str) -> str:
    """Returns "1 seed", "2 seeds"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _rates(result: Result) -> str:
    """The learning rates that differ from the common one."""
    settings = result.settings
    rates = {method: settings.hyperparameters_of(method).get("lr") for method in ("single", *settings.methods)}
    own = [f"{method} {rate:g}" for method, rate in rates.items() if rate is not None]
    return f" ({', '.join(own)})" if own else ""


def to_frame(result: Result) -> pd.DataFrame:
    """Returns everything, a row per method: mean, standard deviation and p-value of every column, and costs."""
    rows = []
    for method, cells in result.summary.cells.items():
        row: dict[str, object] = {
            "method": method,
            "seeds": max((len(cell.values) for cell in cells.values()), default=0),
        }
        for column in result.summary.columns:
            name = f"{column.task} {column.measure.name}" if column.task else column.measure.name
            cell = cells.get(column)
            row[f"{name} mean"] = cell.mean if cell else math.nan
            row[f"{name} std"] = cell.deviation if cell else math.nan
            row[f"{name} p"] = cell.p_value if cell else math.nan
        cost = result.costs.get(method)
        row["ms per step"] = cost.milliseconds if cost else math.nan
        row[TIME] = cost.relative_time if cost else math.nan
        row["peak MB"] = cost.megabytes if cost else math.nan
        row[MEMORY] = cost.relative_memory if cost else math.nan
        rows.append(row)
    return pd.DataFrame(rows)


def to_markdown(result: Result) -> str:
    """Returns the table as Markdown, notes below it."""
    head = ["method", *(_head(column) for column in result.summary.columns), TIME, MEMORY]
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(['---', *['---:'] * (len(head) - 1)])}|"]
    for method in result.summary.cells:
        cells = [_escape(method), *(_markdown(cell, column) for cell, column in _row(result, method))]
        lines.append(f"| {' | '.join([*cells, *_cost(result, method)])} |")
    return "\n".join([*lines, "", *(f"- {_escape(note)}" for note in notes(result))]) + "\n"


def to_rich(result: Result) -> Table:
    """Returns the table for a terminal: main measures and Δm, or Δm alone if there are many tasks."""
    columns = [column for column in result.summary.columns if column.main]
    if len(columns) > WIDE + 1:
        columns = [column for column in columns if column.task is None]
    title = f"{result.problem.name}{' (quick)' if result.settings.quick else ''}"
    table = Table("method", title=title, title_justify="left", caption_justify="left")
    for column in columns:
        table.add_column(_head(column).replace(" ", "\n", 1) if column.task else _head(column), justify="right")
    table.add_column(TIME, justify="right")
    table.add_column(MEMORY, justify="right")
    for method in result.summary.cells:
        row = [_text(cell, column) for cell, column in _row(result, method) if column in columns]
        table.add_row(method, *row, *_cost(result, method), end_section=method == SINGLE)
    return table


def _head(column: Column) -> str:
    return f"{column.task} {column.measure.label}" if column.task else column.measure.label


def _row(result: Result, method: str) -> list[tuple[Cell | None, Column]]:
    cells = result.summary.cells[method]
    return [(cells.get(column), column) for column in result.summary.columns]


def _cost(result: Result, method: str) -> Sequence[str]:
    cost = result.costs.get(method)
    return ("", "") if cost is None else (f"{cost.relative_time:.2f}", f"{cost.relative_memory:.2f}")


def _number(cell: Cell, column: Column) -> str:
    mean = column.measure.format(cell.mean)
    return mean if math.isnan(cell.deviation) else f"{mean} ± {column.measure.format(cell.deviation)}"


def _markdown(cell: Cell | None, column: Column) -> str:
    if cell is None:
        return ""
    number = _number(cell, column)
    return f"**{number}**" if cell.best else number + stars(cell.p_value).replace("*", "\\*")


def _text(cell: Cell | None, column: Column) -> Text:
    if cell is None:
        return Text("")
    return Text(_number(cell, column) + (stars(cell.p_value)), style="bold green" if cell.best else "")


def _escape(text: str) -> str:
    for character in ("\\", "|", "*"):
        text = text.replace(character, f"\\{character}")
    return text
