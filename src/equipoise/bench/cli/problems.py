"""`equipoise problems`."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from equipoise.bench.cli._app import app
from equipoise.bench.cli._catalogue import check_problem, complete_problem
from equipoise.bench.cli._console import answering, console

if TYPE_CHECKING:
    from equipoise.bench.problems import Problem

MANY_TASKS = 8
"""With more, the list of problems names the first ones."""


@app.command(
    epilog="**Examples**\n\n`equipoise problems`\n\n`equipoise problems health`: its data, tasks, measures and training"
)
def problems(
    name: Annotated[
        str | None,
        typer.Argument(autocompletion=complete_problem, help="A problem, to be told all of it.", show_default=False),
    ] = None,
) -> None:
    """Lists the problems, or tells of one."""
    with answering():
        if name is not None:
            check_problem(name)
        from equipoise.bench.problems import load_problem

        if name is None:
            console.print(_listed())
            console.print("All of one: equipoise problems NAME.", markup=False, highlight=False)
            console.print("Your own: `equipoise init my_problem.py` writes one to begin with.", markup=False)
        else:
            _tell(load_problem(name))


def _listed() -> Table:
    from equipoise.bench.problems import PROBLEMS, ProblemError, load_problem

    table = Table("problem", "what it is", "tasks")
    for name in PROBLEMS:
        try:
            problem = load_problem(name)
        except ProblemError as error:  # an extra that is not installed
            table.add_row(name, escape(str(error)), "")
        else:
            tasks = [task.name for task in problem.tasks]
            shown = tasks if len(tasks) <= MANY_TASKS else [*tasks[:3], f"… ({len(tasks)})"]
            table.add_row(name, problem.description, ", ".join(shown))
    return table


def _tell(problem: Problem) -> None:
    """Says of a problem what its docstring does, and what is measured of every task."""
    console.print(f"[bold]{escape(problem.name)}[/bold]: {escape(problem.description)}", highlight=False)
    console.print(f"\n{(inspect.getdoc(problem) or '').partition('Args:')[0]}", markup=False, highlight=False)
    table = Table("task", "kind", "measures, the main one first")
    for task in problem.tasks:
        table.add_row(escape(task.name), type(task).__name__, ", ".join(measure.label for measure in task.measures))
    console.print(table)
    training = problem.training(False)
    console.print(
        f"{training.epochs} epochs at batch size {training.batch_size}, learning rate {training.lr:g} "
        f"({training.schedule}), weight decay {training.weight_decay:g}.",
        highlight=False,
    )
