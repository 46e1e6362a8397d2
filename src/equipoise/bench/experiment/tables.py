"""A comparison's table and what is said below it: for the terminal, as Markdown, LaTeX and CSV."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd
from rich.table import Table
from rich.text import Text

from equipoise.bench.experiment.costs import REFERENCE
from equipoise.bench.experiment.statistics import ENOUGH_SEEDS, MIN_SEEDS, SINGLE, Cell, Column, stars
from equipoise.bench.experiment.verdict import judge

if TYPE_CHECKING:
    from equipoise.bench.experiment.comparison import Result

RANK, TIME, MEMORY = "rank", "time ×", "memory ×"
WIDE = 8
"""With more tasks than this, the terminal shows Δm and costs; the files have everything."""


def verdict(result: Result) -> tuple[str, ...]:
    """Returns what follows from the comparison and what does not, a sentence each."""
    return judge(result.summary, result.settings.methods, result.costs).sentences


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
        f"{settings.batch_size}, {_rates(result)}. "
        "Test split, at the epoch that is best on validation; mean ± standard deviation over seeds."
    )
    if settings.priorities:
        lines.append(f"Priorities: {', '.join(f'{task} {factor:g}' for task, factor in settings.priorities.items())}.")
    lines.append("Δm: mean over tasks of the main (first) measure's gain over single-task training of the same seed.")
    if summary.seeds >= MIN_SEEDS:
        lines.append(
            "Bold: best mean of a column. Stars: differs from the best, paired t-test, * p < 0.05, ** p < 0.01. The "
            "p-value beside them is corrected by Holm's method for all pairs of methods in the column."
        )
        lines.append(
            f"[low, high]: bootstrap interval of Δm over seeds; {count(summary.seeds, 'seed')} cover the true mean at "
            f"most {1 - 0.5 ** (summary.seeds - 1):.0%} of the time."
            if summary.seeds < ENOUGH_SEEDS
            else "[low, high]: 95 % bootstrap interval of Δm over seeds."
        )
    else:
        lines.append(
            f"Bold: best mean of a column. No stars: a paired t-test needs at least {MIN_SEEDS} seeds, "
            f"this is {summary.seeds}."
        )
    lines.append("Rank: mean over tasks' main measures and seeds, 1 is best.")
    base = result.costs.get(REFERENCE)
    if base is not None:
        lines.append(
            f"Time per step and peak memory, relative to equal weights ({base.milliseconds:.1f} ms, "
            f"{base.megabytes:.1f} MB; memory by {result.memory_source})."
        )
    if not all(summary.complete(cell) for cells in summary.cells.values() for cell in cells.values()):
        lines.append("A result of fewer seeds is neither compared, nor ranked, nor called best.")
    for method, reasons in summary.failures.items():
        lines.append(f"{method} failed in {len(reasons)} of {summary.seeds} runs ({reasons[0]}).")
    return lines


def unfinished(result: Result) -> str:
    """Returns the line that stands above everything of a comparison that is not finished; nothing of one that is."""
    return f"Unfinished: {result.unfinished}. What is below is what there is so far." if result.unfinished else ""


def count(number: int, what: str) -> str:
    """Returns "1 seed", "2 seeds"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _rates(result: Result) -> str:
    """The learning rates: the common one and those that differ, or everyone's if they were tuned."""
    settings = result.settings
    if settings.tune:
        rates = ", ".join(f"{method} {rate:g}" for method, rate in result.rates.items())
        return f"learning rates chosen on validation with seed 0 ({rates})"
    given = {method: settings.hyperparameters_of(method).get("lr") for method in ("single", *settings.methods)}
    own = [f"{method} {rate:g}" for method, rate in given.items() if rate is not None]
    return f"learning rate {settings.lr:g}" + (f" ({', '.join(own)})" if own else "")


def to_frame(result: Result) -> pd.DataFrame:
    """Returns everything, a row per method: mean, standard deviation and p-values of every column, and costs."""
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
            row[f"{name} p holm"] = cell.holm if cell else math.nan
            if column.task is None:
                row[f"{name} low"], row[f"{name} high"] = cell.interval if cell else (math.nan, math.nan)
        row[RANK] = result.summary.ranks.get(method, math.nan)
        cost = result.costs.get(method)
        row["ms per step"] = cost.milliseconds if cost else math.nan
        row[TIME] = cost.relative_time if cost else math.nan
        row["peak MB"] = cost.megabytes if cost else math.nan
        row[MEMORY] = cost.relative_memory if cost else math.nan
        rows.append(row)
    return pd.DataFrame(rows)


def to_markdown(result: Result) -> str:
    """Returns the table as Markdown, the verdict and notes below it."""
    head = ["method", *(head_of(column) for column in result.summary.columns), RANK, TIME, MEMORY]
    lines = [f"| {' | '.join(map(_escape, head))} |", f"|{'|'.join(['---', *['---:'] * (len(head) - 1)])}|"]
    for method in result.summary.cells:
        cells = [_escape(method), *(_markdown(cell, column, result) for cell, column in _row(result, method))]
        lines.append(f"| {' | '.join([*cells, *numbers(result, method)])} |")
    said = [*(_escape(sentence) for sentence in verdict(result)), "", *(f"- {_escape(n)}" for n in notes(result))]
    above = [f"**{_escape(unfinished(result))}**", ""] if result.unfinished else []
    return "\n".join([*above, *lines, "", *said]) + "\n"


def to_latex(result: Result) -> str:
    """Returns the table for LaTeX with booktabs: main measures, Δm and costs; verdict and notes are the caption."""
    columns = [column for column in result.summary.columns if column.main]
    head = ["method", *(head_of(column) for column in columns), RANK, TIME, MEMORY]
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        "\\toprule",
        f"{' & '.join(map(_latex, head))} \\\\",
        "\\midrule",
    ]
    for method in result.summary.cells:
        cells = [_latex_cell(cell, column, result) for cell, column in _row(result, method) if column in columns]
        lines.append(f"{' & '.join([_latex(method), *cells, *map(_latex, numbers(result, method))])} \\\\")
        if method == SINGLE:
            lines.append("\\midrule")
    text = _latex(" ".join(filter(None, [unfinished(result), *verdict(result), *notes(result)])))
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", f"\\caption{{{text}}}", "\\end{table}"]) + "\n"


def to_rich(result: Result) -> Table:
    """Returns the table for a terminal: main measures and Δm, or Δm alone if there are many tasks."""
    columns = [column for column in result.summary.columns if column.main]
    if len(columns) > WIDE + 1:
        columns = [column for column in columns if column.task is None]
    title = f"{result.problem.name}{' (quick)' if result.settings.quick else ''}"
    if result.unfinished:
        title += f"\n{unfinished(result)}"
    table = Table(title=Text(title), title_justify="left", caption_justify="left")
    table.add_column("method")
    for column in columns:
        text = head_of(column)
        table.add_column(Text(text.replace(" ", "\n", 1) if column.task else text, justify="right"), justify="right")
    for name in (RANK, TIME, MEMORY):
        table.add_column(name, justify="right")
    for method in result.summary.cells:
        row = [_text(cell, column, result) for cell, column in _row(result, method) if column in columns]
        table.add_row(Text(method), *row, *numbers(result, method), end_section=method == SINGLE)
    return table


def head_of(column: Column) -> str:
    """Returns a column's head: the task, if it has one, the measure, its unit and an arrow in the better direction."""
    return f"{column.task} {column.measure.label}" if column.task else column.measure.label


def numbers(result: Result, method: str) -> tuple[str, str, str]:
    """Returns a method's rank, time and memory as they stand in tables; empty where there are none."""
    rank, cost = result.summary.ranks.get(method), result.costs.get(method)
    return (
        "" if rank is None else f"{rank:.1f}",
        "" if cost is None else f"{cost.relative_time:.2f}",
        "" if cost is None else f"{cost.relative_memory:.2f}",
    )


def number(cell: Cell, column: Column) -> str:
    """Returns mean ± standard deviation; the mean alone with one seed."""
    mean = column.measure.format(cell.mean)
    return mean if math.isnan(cell.deviation) else f"{mean} ± {column.measure.format(cell.deviation)}"


def interval(cell: Cell, column: Column) -> str:
    """Returns "[low, high]"; nothing where there is no interval."""
    low, high = cell.interval
    return "" if math.isnan(low) else f"[{column.measure.format(low)}, {column.measure.format(high)}]"


def seeds_of(cell: Cell, result: Result) -> str:
    """Returns "1 of 5 seeds" where some are missing; else nothing."""
    return "" if result.summary.complete(cell) else f"{len(cell.values)} of {count(result.summary.seeds, 'seed')}"


def corrected(cell: Cell) -> str:
    """Returns the p-value after Holm's correction; nothing if there is none."""
    return "" if math.isnan(cell.holm) else "<0.001" if cell.holm < 0.001 else f"{cell.holm:.2g}"


def _row(result: Result, method: str) -> list[tuple[Cell | None, Column]]:
    cells = result.summary.cells[method]
    return [(cells.get(column), column) for column in result.summary.columns]


def _beside(cell: Cell, column: Column, result: Result) -> str:
    """What stands beside a number: interval, corrected p-value, how many seeds it is of."""
    p_value = f"({corrected(cell)})" if corrected(cell) else ""
    return " ".join(filter(None, [interval(cell, column), p_value, seeds_of(cell, result)]))


def _markdown(cell: Cell | None, column: Column, result: Result) -> str:
    if cell is None:
        return ""
    shown = f"**{number(cell, column)}**" if cell.best else number(cell, column)
    marks = stars(cell.p_value).replace("*", "\\*")
    return f"{shown}{marks} {_beside(cell, column, result)}".strip()


def _text(cell: Cell | None, column: Column, result: Result) -> Text:
    """A cell of the terminal's table: the number, and below it what stands beside it."""
    if cell is None:
        return Text("")
    text = Text(number(cell, column) + stars(cell.p_value), style="bold green" if cell.best else "")
    beside = _beside(cell, column, result)
    return text.append(f"\n{beside}", style="not bold default") if beside else text


def _latex_cell(cell: Cell | None, column: Column, result: Result) -> str:
    if cell is None:
        return ""
    text, marks = _latex(number(cell, column)), stars(cell.p_value)
    shown = f"\\textbf{{{text}}}" if cell.best else f"{text}$^{{{marks}}}$" if marks else text
    return f"{shown} {_latex(_beside(cell, column, result))}".strip()


def _escape(text: str) -> str:
    for character in ("\\", "|", "*", "_", "`", "<", "["):
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": r"$-$",
    "Δ": r"$\Delta$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "≤": r"$\leq$",
    "²": r"$^2$",
    "…": r"\dots{}",
} | {character: f"\\{character}" for character in "&%$#_{}"}
"""What stands for itself in a text and not in LaTeX."""


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))
