"""What came of a comparison, for Python and for notebooks."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined
from rich.console import Console

from equipoise.bench.defaults import REPORT
from equipoise.bench.experiment.comparison import Result, load_result
from equipoise.bench.experiment.folder import FolderError, write_whole
from equipoise.bench.experiment.judgement import judge_result
from equipoise.bench.experiment.pictures import draw, draw_all
from equipoise.bench.experiment.protocol import count
from equipoise.bench.experiment.report import to_html
from equipoise.bench.experiment.tables import (
    MEMORY,
    RANK,
    TIME,
    entries,
    head_of,
    notes,
    numbers,
    shown_columns,
    to_frame,
    to_rich,
    unfinished,
    verdict,
)
from equipoise.bench.experiment.wording import in_python

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

IN_NOTEBOOKS = ("results", "tradeoff")
"""Pictures that a notebook shows below the table."""

WIDTH = 160
"""Of the table in a terminal that does not say how wide it is, in characters."""


@dataclass(frozen=True)
class Outcome:
    """What came of a comparison: `equipoise.bench.compare` returns it, and `Outcome.load` reads it from a run folder.

    A notebook shows the answer, the table and two pictures; `print` the table and all sentences.

    Attributes:
        result: everything: settings, records, numbers, costs; see `equipoise.bench.experiment.comparison.Result`.

    Example:
        >>> from equipoise.bench import Outcome
        >>> outcome = Outcome.load("runs/digits-quick")                      # doctest: +SKIP
        >>> outcome.verdict[0]                                               # doctest: +SKIP
        'Use: ew. …'
        >>> outcome.table[["method", "Δm mean", "Δm std"]]                   # doctest: +SKIP
    """

    result: Result

    @classmethod
    def load(cls, folder: str | Path) -> Outcome:
        """Returns the outcome of a comparison from its run folder, finished or not; nothing is trained.

        Raises:
            FolderError: there is no comparison in it, or no run of it is finished.
            ProblemError: its problem cannot be had.
        """
        return cls(load_result(Path(folder)))

    @property
    def table(self) -> pd.DataFrame:
        """A row per method: mean and standard deviation of every measure, Δm, p-values, rank, time and memory."""
        return to_frame(self.result)

    @property
    def verdict(self) -> tuple[str, ...]:
        """What to use ("Use: …"), what follows from the comparison and what does not, a sentence each.

        Options are named as `equipoise.bench.compare` has them.
        """
        return tuple(map(in_python, verdict(self.result)))

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be known to read the table, a sentence each."""
        return tuple(notes(self.result))

    def pictures(self) -> dict[str, Figure]:
        """Returns name → figure: results, trade-off of gain and time, training, weights, what else there is."""
        return draw(self.result)

    def report(self, path: str | Path | None = None) -> Path:
        """Writes the report, a page that needs no other file, and returns where it is.

        Args:
            path: the file; None: `report.html` in the run folder.

        Raises:
            FolderError: it cannot be written.
        """
        place = Path(self.result.folder or ".") / REPORT if path is None else Path(path)
        content = to_html(self.result).encode()
        try:
            write_whole(place, lambda file: file.write(content))
        except OSError as error:
            raise FolderError(f"{place} cannot be written: {error.strerror}.") from error
        return place

    def __repr__(self) -> str:
        settings = self.result.settings
        return f"Outcome({self.result.problem.name}: {', '.join(settings.methods)}; {count(settings.seeds, 'seed')})"

    def __str__(self) -> str:
        text = StringIO()
        console = Console(file=text, width=WIDTH)
        console.print(to_rich(self.result))
        return "\n".join([text.getvalue(), *self.notes, "", *self.verdict])

    def _repr_html_(self) -> str:
        """The answer, the table and two pictures, for a notebook."""
        result = self.result
        columns = shown_columns(result)
        tests = judge_result(result).tests
        images = {
            name.removesuffix(".png"): base64.b64encode(content).decode()
            for name, content in draw_all(result, IN_NOTEBOOKS).items()
        }
        template = files("equipoise.bench.experiment.report").joinpath("notebook.html.jinja")
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(template.read_text(encoding="utf-8")).render(
            verdict=self.verdict,
            unfinished=unfinished(result),
            quick=result.settings.quick,
            heads=[*map(head_of, columns), RANK, TIME, MEMORY],
            rows=[
                (method, entries(result, tests, method, columns), numbers(result, method))
                for method in result.summary.cells
            ],
            images=images,
            notes=self.notes,
            problem=result.problem.name,
        )
