"""All methods over the problems that need no download, tuned, with the front of fixed weights: `docs/leaderboard.md`.

    python benchmarks/leaderboard.py                          # all problems, one after the other; goes on where it was
    python benchmarks/leaderboard.py --problems yeast,health --hours 2
    python benchmarks/leaderboard.py --report                 # writes the page from what is there; trains nothing

Each problem is a comparison of its own, `equipoise compare`, in a folder under `--out`; what was stopped is gone on
with. More machines: `--storage postgresql+psycopg://…` here, and `equipoise worker --storage …` on each.
"""

from __future__ import annotations

import argparse
import datetime
import math
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from diagnosis import agreement

from equipoise.bench.experiment.chart import LIGHT
from equipoise.bench.experiment.comparison import Result, load_result
from equipoise.bench.experiment.costs import REFERENCE
from equipoise.bench.experiment.folder import FolderError
from equipoise.bench.experiment.judgement import judge_result
from equipoise.bench.experiment.ranking import Ranking, draw_ranking, rank
from equipoise.bench.experiment.statistics import SINGLE
from equipoise.registry import METHODS

DOCS = Path(__file__).parent.parent / "docs"
PROBLEMS = {
    "yeast": 5,
    "health": 5,
    "digits": 5,
    "digit-attributes": 5,
    "multi-mnist": 5,
    "molecules": 5,
    "rooms": 3,
    "rooms-mtan": 3,
}
"""Problem → seeds."""

BUDGET = 6
"""Runs by which each row's learning rate, weight decay and hyperparameters are chosen, baselines included."""

LEFT_OUT = {"static"}
"""Methods without an answer of their own: what `static` does with weights is the row `fixed`."""

THEIRS = ("torchjd:Mean", "torchjd:Random")
"""TorchJD's aggregators that are not this library's, too; the tests show that the others give the same numbers."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--out", type=Path, default=Path("runs/leaderboard"))
    parser.add_argument("--hours", type=float, default=math.inf, help="stop after so many, and write what is there")
    parser.add_argument("--budget", type=int, default=BUDGET)
    parser.add_argument("--storage", help="a database, for workers on other machines")
    parser.add_argument("--report", action="store_true", help="train nothing")
    options = parser.parse_args()
    problems = [name.strip() for name in options.problems.split(",")]
    if not options.report:
        end = time.monotonic() + 3600 * options.hours
        for problem in problems:
            if not compare(problem, options, end):
                break
    write(options.out)


def compare(problem: str, options: argparse.Namespace, end: float) -> bool:
    """Goes on with a problem's comparison; returns whether it came to its end in time."""
    methods = [*(name for name in METHODS if name not in LEFT_OUT), "fixed", *THEIRS]
    command = [sys.executable, "-m", "equipoise", "compare", problem, "--methods", ",".join(methods)]
    command += ["--seeds", str(PROBLEMS[problem]), "--budget", str(options.budget), "--monitor-every", "0"]
    command += ["--out", str(options.out / problem)]
    if options.storage:
        command += ["--storage", options.storage, "--study", f"leaderboard-{problem}", "--workers", "0"]
    began = time.time()
    process = subprocess.Popen(command)
    try:
        code = process.wait(None if math.isinf(end) else max(1.0, end - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.send_signal(signal.SIGINT)
        code = process.wait()
    spent = options.out / problem / "seconds.txt"
    before = float(spent.read_text()) if spent.exists() else 0.0
    spent.parent.mkdir(parents=True, exist_ok=True)
    spent.write_text(str(before + time.time() - began))
    return code == 0


def write(folder: Path) -> None:
    """Writes the page, its picture and the tables beside it, from the folders."""
    results = {}
    for problem in PROBLEMS:
        with suppress(FolderError):  # it was not begun
            result = load_result(folder / problem)
            if not result.unfinished:
                results[problem] = result
    unfinished = [problem for problem in PROBLEMS if problem not in results]
    tables = DOCS / "leaderboard"
    tables.mkdir(exist_ok=True)
    lines = [
        "# Leaderboard",
        "",
        "All methods of this library, TorchJD's that it lacks, the best of a search over fixed weights, and "
        "single-task training, on problems whose data ship inside packages ([what they are](problems.md)). Every row, "
        f"the baselines included, had {BUDGET} runs by which its learning rate, weight decay and own hyperparameters "
        "were chosen on "
        "validation, with a seed that is not among those compared. LibMTL's MoDo and SDMGrad want two batches a step "
        "and are not here; its other methods are.",
        "",
        f"`make leaderboard` made this ({datetime.date.today():%-d %B %Y}, two CPU cores). How to read a table: "
        "[reading the report](reading-the-report.md).",
        "",
    ]
    if unfinished:
        lines += [f"**Not finished, and so not counted:** {', '.join(unfinished)}.", ""]
    if results:
        ranking = rank({problem: scores(result) for problem, result in results.items()})
        if len(results) > 1:
            lines += overall(ranking, results)
        lines += follows(ranking, results)
        for problem, result in results.items():
            lines += table(problem, result, folder / problem)
            (tables / f"{problem}.csv").write_bytes((folder / problem / "table.csv").read_bytes())
        lines += ["## Does diagnosing foresee it?", "", agreement([folder / problem for problem in results]), ""]
    (DOCS / "leaderboard.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def scores(result: Result) -> dict[str, float]:
    """Each row's mean Δm; NaN where it did not finish every seed."""
    delta, summary = result.summary.columns[-1], result.summary
    return {
        row: summary.cells[row][delta].mean if summary.complete(summary.cells[row].get(delta)) else math.nan
        for row in result.settings.methods
    }


def overall(ranking: Ranking, results: Mapping[str, Result]) -> list[str]:
    """The ranks over problems, as a picture and a table."""
    with LIGHT.applied():
        figure = draw_ranking(ranking, LIGHT)
        figure.savefig(DOCS / "images" / "leaderboard-ranks.png", dpi=150)
    lines = [
        "## Over all problems",
        "",
        "![Mean ranks of the methods; bars join those that are not told apart](images/leaderboard-ranks.png)",
        "",
        f"Friedman's test: p = {ranking.p_value:.2g}; mean ranks further apart than "
        f"{ranking.critical_difference:.1f} differ (Nemenyi, 5 %), over {ranking.problems} problems. With so few that "
        "test sees large differences only.",
        "",
    ]
    lines += [f"| method | mean rank | {' | '.join(results)} | passes |", f"|---|---:|{'---:|' * len(results)}---:|"]
    for row, place in ranking.ranks.items():
        cells = [f"{scores(result)[row]:+.1f}" for result in results.values()]
        passes = METHODS[row].passes if row in METHODS else ("1" if row == "fixed" else "K")
        lines.append(f"| `{row}` | {place:.1f} | {' | '.join(cells)} | {passes} |")
    return [*lines, "", "Δm in %, the mean over seeds: how much better than training every task alone.", ""]


def follows(ranking: Ranking, results: Mapping[str, Result]) -> list[str]:
    """What follows, in plain sentences made from the tests."""
    claims = {
        problem: [test for test in judge_result(result).claims if test.task is None]
        for problem, result in results.items()
    }
    beaten = {
        row: [problem for problem, tests in claims.items() if any(test.worse == row for test in tests)]
        for row in (REFERENCE, "fixed", SINGLE)
    }
    where = {row: ", ".join(problems) or "none" for row, problems in beaten.items()}
    lines = [
        "## What follows",
        "",
        "With every row tuned alike, some method is shown to beat equal weights on "
        f"{where[REFERENCE]}; the best fixed weights on {where['fixed']}; training every task alone on "
        f"{where[SINGLE]}. So many rows make each difference hard to show: who compares few shows more.",
        "",
    ]
    for problem, result in results.items():
        fixed = sorted({test.better for test in claims[problem] if test.worse == "fixed"} - {REFERENCE})
        lost = sum(test.better == "fixed" for test in claims[problem])
        lines.append(
            f"- **{problem}**: {judge_result(result).use} "
            + (
                f"Shown to beat the best fixed weights: {', '.join(fixed)}. "
                if fixed
                else "No method is shown to beat the best fixed weights of the same budget. "
            )
            + (
                f"The best fixed weights are shown to beat {lost} of {len(result.settings.methods) - 1} rows."
                if lost
                else ""
            )
        )
    return [*lines, ""]


def table(problem: str, result: Result, folder: Path) -> list[str]:
    """One problem's table, best first, with what each row was chosen to be."""
    summary, delta = result.summary, result.summary.columns[-1]
    main = [column for column in summary.columns if column.main and column.task]
    shown = main if len(main) <= 4 else []
    values = scores(result)
    seconds = folder / "seconds.txt"
    hours = float(seconds.read_text()) / 3600 if seconds.exists() else math.nan
    spent = f", {hours:.1f} hours" if math.isfinite(hours) else ""
    lines = [f"## {problem}", "", f"{result.problem.description}; {summary.seeds} seeds{spent}.", ""]
    head = [
        "row",
        *(f"{column.task} {column.measure.label}" for column in shown),
        "Δm %",
        "learning rate",
        "time ×",
        "memory ×",
    ]
    lines += [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for row in [SINGLE, *sorted(values, key=lambda name: -values[name] if math.isfinite(values[name]) else math.inf)]:
        cells = [summary.cells[row].get(column) for column in shown]
        numbers = ["" if c is None else column.measure.format(c.mean) for c, column in zip(cells, shown, strict=True)]
        cell, cost = summary.cells[row].get(delta), result.costs.get(row)
        gain = "" if cell is None else f"{cell.mean:+.1f} ± {cell.deviation:.1f}"
        rate = f"{result.rates[row]:.2g}" if row in result.rates else ""
        price = ["", ""] if cost is None else [f"{cost.relative_time:.2f}", f"{cost.relative_memory:.2f}"]
        lines.append(f"| {' | '.join([f'`{row}`', *numbers, gain, rate, *price])} |")
    return [*lines, "", f"Every measure, with p-values: [leaderboard/{problem}.csv](leaderboard/{problem}.csv).", ""]


if __name__ == "__main__":
    main()
