"""`equipoise check`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from equipoise.bench.cli._app import app
from equipoise.bench.cli._catalogue import check_problem as check_name
from equipoise.bench.cli._catalogue import complete_problem
from equipoise.bench.cli._console import answering, console
from equipoise.bench.errors import BenchError

if TYPE_CHECKING:
    from equipoise.bench.problems import Problem

MARKS = {"fine": "ok", "doubtful": "?", "wrong": "WRONG"}


@app.command(
    epilog="**Examples**\n\n"
    "`equipoise check my_problem.py:problem`: what is wrong with it, within seconds\n\n"
    "`equipoise check my_problem.py:problem --full`: in all of its data\n\n"
    "`equipoise check my_method.py:Inverse`: whether a method of your own keeps the contract"
)
def check(
    problem: Annotated[
        str,
        typer.Argument(
            autocompletion=complete_problem,
            help="As for `compare`: a name, or `FILE.py:ATTRIBUTE`; or a method of your own, `FILE.py:NAME`.",
        ),
    ],
    full: Annotated[
        bool, typer.Option("--full", help="Look at all data, not the quick ones alone: as long as reading them takes.")
    ] = False,
) -> None:
    """Says within seconds what is wrong with a problem: data, network, losses, labels, measures; trains nothing.

    A method of your own is held to the contract that every method keeps, by `equipoise.testing.check_method`'s checks.
    """
    with answering():
        check_name(problem)
        from equipoise.bench.problems._registry import find, problem_of, split_options
        from equipoise.registry import is_method

        found = find(split_options(problem)[0])
        if is_method(found):
            if full:
                raise BenchError(f"--full is for problems; {problem} is a method: leave it out.")
            _check_method(problem)
        else:
            _check_problem(problem, problem_of(problem, found), full)


def _check_problem(name: str, problem: Problem, full: bool) -> None:
    from equipoise.bench.problems import check_problem

    findings = check_problem(problem, quick=not full)
    for finding in findings:
        _say(MARKS[finding.level], f"{finding.part}: {finding.message}")
    levels = [finding.level for finding in findings]
    if "wrong" in levels:
        raise typer.Exit(1)
    doubts = levels.count("doubtful")
    verdict = (
        f"It can be compared; look at {doubts} doubtful {'thing' if doubts == 1 else 'things'} first."
        if doubts
        else "Nothing is wrong."
    )
    seen = "All data were looked at." if full else "The quick data were looked at; --full looks at all."
    following = "" if doubts else f" Next: equipoise compare {name} --quick"
    console.print(f"{verdict} {seen}{following}", markup=False, highlight=False, soft_wrap=True)


def _check_method(name: str) -> None:
    from equipoise.testing import method_checks

    checks = method_checks(name)
    failed = 0
    for check in checks:
        failure = check.failure()
        failed += failure is not None
        _say(MARKS["fine"], check.name) if failure is None else _say(MARKS["wrong"], f"{check}: {failure.sentence}")
    if failed:
        console.print(f"{failed} of {len(checks)} checks failed.", highlight=False)
        raise typer.Exit(1)
    console.print(
        f"All {len(checks)} checks are passed. Next: equipoise compare PROBLEM --methods ew,{name}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _say(mark: str, text: str) -> None:
    console.print(f"{mark:>5}  {text}", markup=False, highlight=False, soft_wrap=True)
