"""The options that several commands have. Nothing heavy is imported here: `--help` is to be there at once."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

Epochs = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto",
        help="Epochs; default: the problem's or the paper's. `auto`: twice as many as long as runs still rise at their "
        "end.",
    ),
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Samples a step; default: the problem's or the paper's.")]
Hyperparameters = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="METHOD.NAME=VALUE", help="A method's hyperparameter (also `lr`); repeatable."),
]
Tune = Annotated[bool, typer.Option("--tune", help="Choose each method's learning rate on validation, baselines' too.")]
Grid = Annotated[
    str | None,
    typer.Option(help="Learning rates to try first, comma-separated.", show_default="each optimizer's own"),
]
Budget = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Configurations to try of every method and baseline: learning rate, weight decay, hyperparameters; "
        "of `fixed` the weights too.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Runs that train at the same time, a process each; 0: none here, `equipoise worker` takes them. "
        "Default: one per core on a CPU, else 1.",
    ),
]
Storage = Annotated[
    str | None,
    typer.Option(help="Database for the runs, as `postgresql+psycopg://…`; default: a file in the run folder."),
]
Study = Annotated[str | None, typer.Option(help="The comparison's name there; default: the folder's.")]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Begin anew; what a comparison has left in the run folder and its study is lost."),
]
Device = Annotated[str, typer.Option(help="Where to train, as PyTorch names it; `auto`: a GPU if there is one.")]
Devices = Annotated[int, typer.Option(min=1, help="Devices for each run; they share every batch (Fabric's `devices`).")]
Precision = Annotated[str, typer.Option(help="Fabric's `precision`, as `bf16-mixed` or `16-mixed`.")]
Strategy = Annotated[str, typer.Option(help="Fabric's `strategy` for several devices.")]
MonitorEvery = Annotated[
    int,
    typer.Option(
        min=0,
        help="Steps between samples of the balance monitor, for the report; 0: none but where `replay:` needs it.",
    ),
]


class Match(str, Enum):
    """What methods have alike."""

    EPOCHS = "epochs"
    TIME = "time"


class OnDamaged(str, Enum):
    """What `reproduce` does about a damaged file."""

    ERROR = "error"
    SKIP = "skip"
