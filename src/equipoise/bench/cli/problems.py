"""`equipoise problems`."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from equipoise.bench.cli._app import app
from equipoise.bench.cli._console import console

MANY_TASKS = 8
"""With more, the list of problems names the first ones."""


@app.command()
def problems() -> None:
    """Lists the problems."""
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
    console.print(table)
    console.print("Your own: `equipoise compare my_problem.py:problem`; see examples/tabular.py.", markup=False)
