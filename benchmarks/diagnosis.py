"""Whether what a diagnosis recommends is beaten by another method, over finished comparisons.

    python benchmarks/diagnosis.py runs/digits runs/rooms > diagnosis.md

Every problem is diagnosed anew, at its comparison's learning rate for equal weights and batch size, without a look at
its results. A method is beaten where the report's verdict claims that another one is better: in Δm any other, on
a task equal weights. Prints a Markdown table, and how many of the recommended methods, and of all, are not beaten: a
recommendation is worth something where the first share is above the second.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from equipoise.bench.experiment.comparison import Result, load_result
from equipoise.bench.experiment.diagnosis import diagnose_problem
from equipoise.bench.experiment.judgement import judge_result
from equipoise.bench.experiment.statistics import SINGLE
from equipoise.monitor import Diagnosis

REFERENCE = "ew"


@dataclass(frozen=True)
class Row:
    """A problem's line of the table.

    Attributes:
        problem: its name.
        seeds: of the comparison.
        found: the regimes that are surely there.
        recommended: the methods that fit, with those that were not compared.
        compared: every method with a result of all seeds → the columns in which it is beaten, "Δm" or a task.
        best: the method with the best mean Δm.
    """

    problem: str
    seeds: int
    found: tuple[str, ...]
    recommended: tuple[str, ...]
    compared: dict[str, tuple[str, ...]]
    best: str

    @property
    def judged(self) -> list[str]:
        """The recommended methods that were compared."""
        return [method for method in self.recommended if method in self.compared]


def check(result: Result, diagnosis: Diagnosis) -> Row:
    """Looks up what became of the methods that a diagnosis recommends."""
    summary = result.summary
    delta = summary.columns[-1]
    complete = [method for method in result.settings.methods if summary.complete(summary.cells[method].get(delta))]

    claims = judge_result(result).claims
    main = [column for column in summary.columns if column.main]

    def beaten(method: str) -> tuple[str, ...]:
        tasks = {claim.task for claim in claims if claim.worse == method and claim.better != SINGLE}
        return tuple(column.task or delta.measure.name for column in main if column.task in tasks)

    return Row(
        problem=result.problem.name,
        seeds=summary.seeds,
        found=diagnosis.found,
        recommended=tuple(one.method for one in diagnosis.recommended),
        compared={method: beaten(method) for method in complete},
        best=next((method for method in complete if summary.cells[method][delta].best), "none"),
    )


def to_markdown(rows: list[Row]) -> str:
    """Returns the table and the sentence below it."""
    lines = [
        "| problem | seeds | surely found | recommended | not compared | beaten in Δm | beaten on a task | best Δm |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        on_tasks = {method: [name for name in row.compared[method] if name != "Δm"] for method in row.judged}
        cells = [
            row.problem,
            str(row.seeds),
            ", ".join(row.found) or "nothing",
            ", ".join(row.recommended),
            ", ".join(method for method in row.recommended if method not in row.compared) or "–",
            ", ".join(method for method in row.judged if "Δm" in row.compared[method]) or "none",
            "; ".join(f"{method}: {', '.join(names)}" for method, names in on_tasks.items() if names) or "none",
            row.best,
        ]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    recommended = [row.compared[method] for row in rows for method in row.judged]
    every = [columns for row in rows for columns in row.compared.values()]
    shares = [f"{sum('Δm' not in columns for columns in some)} of {len(some)}" for some in (recommended, every)]
    lines += ["", f"Not beaten in Δm: {shares[0]} recommended methods, and {shares[1]} of all that were compared."]
    return "\n".join(lines)


def main() -> None:
    """Diagnoses and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished comparisons")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    print(agreement(arguments.runs, arguments.steps))


def agreement(runs: Sequence[Path], steps: int = 200) -> str:
    """Diagnoses the problems of finished comparisons; returns the table as Markdown."""
    rows = []
    for run in runs:
        result = load_result(run)
        settings = result.settings
        diagnosis = diagnose_problem(
            result.problem,
            steps=steps,
            lr=result.rates.get(REFERENCE, settings.lr),
            weight_decay=settings.weight_decay,
            batch_size=settings.batch_size,
            device=settings.device,
            costs=False,
        )
        rows.append(check(result, diagnosis))
    return to_markdown(rows)


if __name__ == "__main__":
    main()
