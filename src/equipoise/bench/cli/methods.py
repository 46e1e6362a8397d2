"""`equipoise methods`."""

from __future__ import annotations

from rich.table import Table

from equipoise.bench.cli._app import app
from equipoise.bench.cli._console import console


@app.command(name="methods")
def list_methods() -> None:
    """Lists the methods."""
    from equipoise.registry import METHODS

    table = Table("method", "what it does", "backward passes", "hyperparameters", "source")
    for name, spec in METHODS.items():
        table.add_row(name, spec.description, spec.passes, ", ".join(spec.hyperparameters), spec.source)
    console.print(table)
    console.print("Backward passes through the shared part in a step: 1, or one per task (K).")
