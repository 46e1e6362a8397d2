"""`equipoise check`."""

from __future__ import annotations

from typing import Annotated

import typer

from equipoise.bench.cli._app import app
from equipoise.bench.cli._catalogue import check_problem as check_name
from equipoise.bench.cli._catalogue import complete_problem
from equipoise.bench.cli._console import answering, console

MARKS = {"fine": "ok", "doubtful": "?", "wrong": "WRONG"}


@app.command(epilog="**Example**\n\n`equipoise check my_problem.py:problem`: what is wrong with it, within seconds")
def check(
    problem: Annotated[
        str, typer.Argument(autocompletion=complete_problem, help="As for `compare`: a name, or `FILE.py:ATTRIBUTE`.")
    ],
) -> None:
    """Says within seconds what is wrong with a problem: data, network, losses, labels, measures; trains nothing."""
    with answering():
        check_name(problem)
        from equipoise.bench.problems import check_problem, load_problem

        findings = check_problem(load_problem(problem))
        for finding in findings:
            console.print(
                f"{MARKS[finding.level]:>5}  {finding.part}: {finding.message}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        levels = [finding.level for finding in findings]
        if "wrong" in levels:
            raise typer.Exit(1)
        doubts = levels.count("doubtful")
        console.print(
            f"It can be compared; look at {doubts} doubtful {'thing' if doubts == 1 else 'things'} first."
            if doubts
            else f"Nothing is wrong. Next: equipoise compare {problem} --quick",
            markup=False,
            highlight=False,
        )
