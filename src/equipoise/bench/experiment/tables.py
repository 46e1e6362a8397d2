"""A comparison's table and what is said below it: for the terminal, as Markdown, LaTeX and CSV."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
from rich.table import Table
from rich.text import Text

from equipoise.bench.experiment.costs import REFERENCE
from equipoise.bench.experiment.judgement import judge_result
from equipoise.bench.experiment.paired import PairedTest, PairedTests
from equipoise.bench.experiment.protocol import count, protocol_notes, rates_of
from equipoise.bench.experiment.sequential import level
from equipoise.bench.experiment.statistics import ENOUGH_SEEDS, LEVEL, MIN_SEEDS, SINGLE, Cell, Column, stars
from equipoise.bench.experiment.wording import join

if TYPE_CHECKING:
    from equipoise.bench.experiment.comparison import Result

RANK, TIME, MEMORY = "rank", "time ×", "memory ×"
WIDE = 8
"""With more tasks than this, the terminal shows Δm and costs; the files have everything."""


def verdict(result: Result) -> tuple[str, ...]:
    """Returns what to use, what follows from the comparison and what does not, a sentence each."""
    found = judge_result(result)
    return (found.use, *found.sentences)


def notes(result: Result) -> list[str]:
    """Returns what has to be known to read the table, a sentence each."""
    settings, summary = result.settings, result.summary
    lines = failures(result)
    if settings.quick:
        lines.append(
            "QUICK: less data and fewer epochs than the problem recommends; good for a try, not for a verdict."
        )
    lines.append(
        f"{result.problem.name}, {count(summary.seeds, 'seed')}, {count(settings.epochs, 'epoch')} at batch size "
        f"{settings.batch_size}{rates_of(result)}. "
        "Test split, at the epoch that is best on validation; mean ± standard deviation over seeds."
    )
    lines += protocol_notes(result)
    if not anything_finished(result):
        return lines
    if settings.priorities:
        lines.append(f"Priorities: {', '.join(f'{task} {factor:g}' for task, factor in settings.priorities.items())}.")
    lines.append(_delta_note(result))
    if settings.looks:
        lines.append(_look_note(settings.looks, settings.seeds))
    if summary.seeds >= MIN_SEEDS:
        lines.append(
            "Bold: best mean of a column. p: of the paired t-test against equal weights, corrected for everything that "
            "the verdict tests; * p < 0.05, ** p < 0.01."
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
    return lines


def failures(result: Result) -> list[str]:
    """Returns which rows failed and why, a sentence for all that failed alike."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for row, reasons in result.summary.failures.items():
        alike.setdefault(reasons, []).append(row)
    runs = f"{result.summary.seeds} runs"
    return [
        f"{join(rows)} failed in {len(reasons)} of {runs}{' each' if len(rows) > 1 else ''} ({reasons[0]})."
        for reasons, rows in alike.items()
    ]


def anything_finished(result: Result) -> bool:
    """Whether a method has a result: without, there is nothing to say about the table."""
    return any(result.summary.cells[method] for method in result.settings.methods)


def _delta_note(result: Result) -> str:
    """What Δm is of, and over."""
    summary, mean = result.summary, "Δm: mean over tasks of the main (first) measure's gain over"
    if summary.reference != SINGLE:
        why = (
            "there are no single-task runs"
            if not result.settings.baselines
            else "no task's single-task runs went through"
        )
        return f"{mean} equal weights of the same seed, as {why}: it says nothing of single-task training."
    if summary.left_out:
        return (
            f"{mean} single-task training of the same seed, without {join(summary.left_out)}, of which single-task "
            "runs failed."
        )
    return f"{mean} single-task training of the same seed."


def unfinished(result: Result) -> str:
    """Returns the line that stands above everything of a comparison that is not finished; nothing of one that is."""
    return f"Unfinished: {result.unfinished}. What is below is what there is so far." if result.unfinished else ""


def _look_note(looks: Sequence[int], seeds: int) -> str:
    """Which of the planned looks this is, and what it does to p-values."""
    spent = level(seeds, looks)
    return (
        f"This is look {looks.index(seeds) + 1} of {len(looks)}: it may spend {spent:.2g} of the {LEVEL:g} of error: "
        f"its p-values are multiplied by {LEVEL / spent:.3g}."
    )


def to_frame(result: Result) -> pd.DataFrame:
    """Returns everything, a row per method: mean and standard deviation of every column, p-values, costs.

    A p-value is that of the verdict, against equal weights and corrected; `raw p` is the same test's on its own.
    """
    tests = judge_result(result).tests
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
            if column.main:
                test = test_of(tests, method, column)
                row[f"{name} p"] = test.corrected if test else math.nan
                row[f"{name} raw p"] = test.raw if test else math.nan
            if column.task is None:
                row[f"{name} low"], row[f"{name} high"] = cell.interval if cell else (math.nan, math.nan)
        row["configurations tried"] = result.spent.get(method, 0)
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
    found = judge_result(result)
    for method in result.summary.cells:
        cells = [_escape(method), *(_markdown(shown) for shown in entries(result, found.tests, method))]
        lines.append(f"| {' | '.join([*cells, *numbers(result, method)])} |")
    said = [
        *(_escape(sentence) for sentence in (found.use, *found.sentences)),
        "",
        *(f"- {_escape(n)}" for n in notes(result)),
    ]
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
    found = judge_result(result)
    for method in result.summary.cells:
        cells = [_latex_cell(shown) for shown in entries(result, found.tests, method, columns)]
        lines.append(f"{' & '.join([_latex(method), *cells, *map(_latex, numbers(result, method))])} \\\\")
        if method == SINGLE:
            lines.append("\\midrule")
    text = _latex(" ".join(filter(None, [unfinished(result), found.use, *found.sentences, *notes(result)])))
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", f"\\caption{{{text}}}", "\\end{table}"]) + "\n"


def to_rich(result: Result) -> Table:
    """Returns the table for a terminal: main measures and Δm, or Δm alone if there are many tasks."""
    columns = shown_columns(result)
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
    tests = judge_result(result).tests
    for method in result.summary.cells:
        row = [_text(shown) for shown in entries(result, tests, method, columns)]
        table.add_row(Text(method), *row, *numbers(result, method), end_section=method == SINGLE)
    return table


def shown_columns(result: Result) -> list[Column]:
    """Returns what a screen has room for: main measures and Δm, or Δm alone if there are many tasks."""
    columns = [column for column in result.summary.columns if column.main]
    return columns if len(columns) <= WIDE + 1 else [column for column in columns if column.task is None]


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


def test_of(tests: PairedTests, method: str, column: Column) -> PairedTest | None:
    """Returns the verdict's test of a method against equal weights in a column; None if there is none."""
    return tests.find(method, REFERENCE, column.task) if column.main else None


@dataclass(frozen=True)
class Entry:
    """A cell as tables show it.

    Attributes:
        number: mean ± standard deviation.
        stars: for the p-value.
        interval: "[low, high]"; "" where there is none.
        p_value: "p = 0.02", corrected, against equal weights; "" if there is none.
        seeds: "1 of 5 seeds" where some are missing; else "".
        best: the best mean of its column.
    """

    number: str
    stars: str
    interval: str
    p_value: str
    seeds: str
    best: bool

    @property
    def beside(self) -> str:
        """What stands beside the number."""
        return " ".join(filter(None, [self.interval, self.p_value, self.seeds]))


def entries(
    result: Result, tests: PairedTests, method: str, columns: Sequence[Column] | None = None
) -> list[Entry | None]:
    """Returns a method's cells in columns, by default all; None where it has no result."""
    cells = result.summary.cells[method]
    found = []
    for column in result.summary.columns if columns is None else columns:
        cell = cells.get(column)
        found.append(None if cell is None else _entry(result, cell, column, test_of(tests, method, column)))
    return found


def _entry(result: Result, cell: Cell, column: Column, test: PairedTest | None) -> Entry:
    p_value = math.nan if test is None else test.corrected
    missing = f"{len(cell.values)} of {count(result.summary.seeds, 'seed')}"
    return Entry(
        number(cell, column),
        stars(p_value),
        interval(cell, column),
        "" if math.isnan(p_value) else "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}",
        "" if result.summary.complete(cell) else missing,
        cell.best,
    )


def _markdown(entry: Entry | None) -> str:
    if entry is None:
        return ""
    shown = f"**{entry.number}**" if entry.best else entry.number
    marks = entry.stars.replace("*", "\\*")
    return f"{shown}{marks} {entry.beside}".strip()


def _text(entry: Entry | None) -> Text:
    """A cell of the terminal's table: the number, and below it what stands beside it."""
    if entry is None:
        return Text("")
    text = Text(entry.number + entry.stars, style="bold green" if entry.best else "")
    return text.append(f"\n{entry.beside}", style="not bold default") if entry.beside else text


def _latex_cell(entry: Entry | None) -> str:
    if entry is None:
        return ""
    shown = f"\\textbf{{{_latex(entry.number)}}}" if entry.best else _latex(entry.number)
    marks = f"$^{{{entry.stars}}}$" if entry.stars else ""
    return f"{shown}{marks} {_latex(entry.beside)}".strip()


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
