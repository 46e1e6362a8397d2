"""`equipoise methods`."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from equipoise.bench.cli import _catalogue
from equipoise.bench.cli._app import app
from equipoise.bench.cli._console import answering, console

WIDE = 120
"""Narrower terminals get fewer columns."""


@app.command(
    name="methods",
    epilog="**Examples**\n\n`equipoise methods`\n\n`equipoise methods mao`: its formula, hyperparameters and source",
)
def list_methods(
    name: Annotated[
        str | None,
        typer.Argument(
            autocompletion=_catalogue.complete_rows, help="A method, to be told all of it.", show_default=False
        ),
    ] = None,
) -> None:
    """Lists the methods, or tells of one."""
    with answering():
        if name is None:
            console.print(_listed())
            console.print("Backward passes through the shared part in a step: 1, or one per task (K).")
            console.print("All of one: equipoise methods NAME.", highlight=False)
        else:
            _catalogue.check_rows([name])
            _tell(name)


def _listed() -> Table:
    wide = console.width >= WIDE
    table = Table("method", *(["family"] if wide else []), "what it does", "passes")
    for column in ["hyperparameters", "source"] if wide else []:
        table.add_column(column)
    for entry in _catalogue.methods():
        family, rest = ([entry.family], [", ".join(entry.hyperparameters), entry.source]) if wide else ([], [])
        table.add_row(entry.name, *family, entry.description, entry.passes, *rest)
    for plugin in _catalogue.plugins():
        package = plugin.dist.name if plugin.dist is not None else plugin.module
        table.add_row(plugin.name, *([""] if wide else []), f"of the package {package}")
    return table


def _tell(name: str) -> None:
    """Says of a method what its docstring does, and how its hyperparameters are tuned."""
    from equipoise.bench.experiment.rows import spec_of

    spec = spec_of(name)
    if spec is None:
        console.print("The best of fixed weights that are searched: a row of comparisons, for no loop of one's own.")
        return
    takes = spec.takes if inspect.isclass(spec.takes) else spec.takes.__annotations__.get("return")
    console.print(f"[bold]{escape(name)}[/bold]: {escape(spec.description)}. {escape(spec.source)}", highlight=False)
    for part in dict.fromkeys(part for part in (takes, spec.objective, spec.aggregator) if inspect.isclass(part)):
        console.print(f"\n{part.__name__}: {inspect.getdoc(part)}", markup=False, highlight=False)
    console.print(f"\nBackward passes through the shared part in a step: {spec.passes}.", highlight=False)
    for key, value in spec.hyperparameters.items():
        default = "" if value is inspect.Parameter.empty else f" = {value!r}"
        tuned = f", tuned within {spec.search_space[key]}" if key in spec.search_space else ""
        console.print(f"--set {name}.{key}{default}{tuned}", markup=False, highlight=False)
