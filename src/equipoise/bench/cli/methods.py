"""`equipoise methods`."""

from __future__ import annotations

from rich.table import Table

from equipoise.bench.cli import _catalogue
from equipoise.bench.cli._app import app
from equipoise.bench.cli._console import answering, console


@app.command(name="methods")
def list_methods() -> None:
    """Lists the methods."""
    with answering():
        table = Table("method", "family", "what it does", "backward passes", "hyperparameters", "source")
        for entry in _catalogue.methods():
            table.add_row(
                entry.name,
                entry.family,
                entry.description,
                entry.passes,
                ", ".join(entry.hyperparameters),
                entry.source,
            )
        for plugin in _catalogue.plugins():
            package = plugin.dist.name if plugin.dist is not None else plugin.module
            table.add_row(plugin.name, "", f"of the package {package}", "", "", "")
        console.print(table)
        console.print("Backward passes through the shared part in a step: 1, or one per task (K).")
