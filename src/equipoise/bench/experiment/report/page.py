"""The report's page: numbers, sentences and pictures, put into the template."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from equipoise.bench.experiment.chart import DARK, LIGHT, Chart, Theme, save
from equipoise.bench.experiment.folder import file_name
from equipoise.bench.experiment.front_chart import front_chart
from equipoise.bench.experiment.judgement import judge_result
from equipoise.bench.experiment.paired import PairedTests
from equipoise.bench.experiment.pictures import (
    results_chart,
    tradeoff_chart,
    training_chart,
    tuning_chart,
    weights_chart,
)
from equipoise.bench.experiment.protocol import what_it_does
from equipoise.bench.experiment.report.repeat import command, facts
from equipoise.bench.experiment.report.why import balance, conflicts_chart, layers_chart, recordings, steps_chart
from equipoise.bench.experiment.statistics import SINGLE
from equipoise.bench.experiment.tables import (
    MEMORY,
    RANK,
    TIME,
    Entry,
    entries,
    failures,
    head_of,
    notes,
    numbers,
    shown_columns,
    unfinished,
)

if TYPE_CHECKING:
    from equipoise.bench.experiment.comparison import Result

KEY_WIDTH = 3.3
"""Of a legend, in inches: what a phone shows unscaled."""

OPEN = ("results", "tradeoff", "front", "layers")
"""Charts that are shown before anybody asks for them; the one over training too, if the answer rests on it."""

PICTURE = 1000
"""Pictures of predictions are made no wider and no higher than this, in pixels."""


@dataclass(frozen=True)
class Picture:
    """An image as the page has it: for light and dark screens where there are two, with its size in CSS pixels."""

    light: str
    dark: str | None
    width: int
    height: int
    title: str
    text: str


@dataclass(frozen=True)
class Section:
    """A part of the page that is made of a chart."""

    name: str
    title: str
    says: str
    open: bool
    key: Picture | None
    pictures: Sequence[Picture]


def to_html(result: Result) -> str:
    """Returns the report: a page that needs no other file, no network and no JavaScript."""
    summary = result.summary
    shown = shown_columns(result)
    found = judge_result(result)
    recorded, damaged = recordings(result)
    over = "single-task training" if summary.reference == SINGLE else "equal weights"
    shown_first = (*OPEN, "training") if found.rising else OPEN
    style = _part("report.css")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_part("report.html.jinja")).render(
        style=style,
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        problem=result.problem,
        quick=result.settings.quick,
        unfinished=unfinished(result),
        failures=failures(result),
        use=_unbroken(found.use),
        verdict=_unbroken(found.sentences[0]),
        others=[_unbroken(sentence) for sentence in found.sentences[1:]],
        heads=[_unbroken(head_of(column)) for column in shown],
        rows=[
            (method, entries(result, found.tests, method, shown), numbers(result, method)) for method in summary.cells
        ],
        last=[_unbroken(head) for head in (RANK, TIME, MEMORY)],
        notes=notes(result),
        tables=[_task_table(result, found.tests, task.name) for task in result.problem.tasks],
        sections=_sections(
            shown_first,
            (results_chart(result), RESULTS.format(over=over)),
            (tradeoff_chart(result), TRADEOFF.format(over=over)),
            (front_chart(result), FRONT.format(over=over)),
            (training_chart(result), TRAINING),
            (tuning_chart(result), TUNING),
        ),
        why=_sections(
            shown_first,
            (layers_chart(recorded), LAYERS),
            (steps_chart(recorded), STEPS),
            (weights_chart(result), WEIGHTS),
            (conflicts_chart(recorded), CONFLICTS),
        ),
        balance=balance(recorded),
        damaged=damaged,
        predictions=_predictions(result),
        command=command(result.settings),
        facts=facts(result.settings, result.versions),
        methods=_methods(result),
    )


RESULTS = "What every method reaches on test. A column's best mean is a diamond; the dashed line is {over}."
TRADEOFF = (
    "How much a method gains over {over}, and what a step costs. Up is better, left is cheaper. "
    "Diamonds are methods whose means no other beats in both; where intervals overlap, which they are may be chance."
)
FRONT = (
    "Gains over {over} on two tasks: up and right is better, + is what gains are over. Dots are "
    "runs whose weights were fixed, the line what the best of them reach; a method helps where it lies beyond it. Bars "
    "are one standard deviation over seeds; fixed weights were run with one seed."
)
TRAINING = "After every epoch, on validation: the mean over seeds, and a band of one standard deviation around it."
TUNING = (
    "Every method at every learning rate that was tried, with one seed. The ringed one has the best score on "
    "validation and is what the method was compared at."
)
LAYERS = (
    "How far each task moves an element of each shared layer in a step, mean over training (first seed). Lines that "
    "lie together mean balance; a line far above the others is a task that decides where the layer goes."
)
STEPS = "The same over training: mean over the shared layers at each step that was sampled (first seed)."
WEIGHTS = "Each task's share of the weights, mean of each epoch; methods that give no weights are left out."
CONFLICTS = (
    "Cosines between the tasks' gradients on shared parameters, mean over training (first seed): +1 pull the same "
    "way, 0 have nothing to do with each other, below 0 work against each other."
)


def _unbroken(text: str) -> str:
    """With spaces that a line does not end at around comparison signs, and before units and arrows."""
    for sign in ("<", "="):
        text = text.replace(f" {sign} ", f"\u00a0{sign}\u00a0")
    for sign in ("×", "%", "↑", "↓"):
        text = text.replace(f" {sign}", f"\u00a0{sign}")
    return text


def _part(name: str) -> str:
    return files("equipoise.bench.experiment.report").joinpath(name).read_text(encoding="utf-8")


def _task_table(
    result: Result, tests: PairedTests, task: str
) -> tuple[str, list[str], list[tuple[str, list[Entry | None], tuple[()]]]]:
    """A task's name and all its measures, by method."""
    columns = [column for column in result.summary.columns if column.task == task]
    rows = [(method, entries(result, tests, method, columns), ()) for method in result.summary.cells]
    return task, [_unbroken(column.measure.label) for column in columns], rows


def _methods(result: Result) -> list[tuple[str, str, str, str, str]]:
    """Every row's name, what it does, its learning rate, how many configurations were tried, and what else it has."""
    found = []
    for row, chosen in result.configurations.items():
        own = {"weight decay": chosen.weight_decay, "epochs": chosen.epochs, **chosen.hyperparameters}
        given = ", ".join(f"{name} = {_shown(value)}" for name, value in own.items())
        found.append((row, what_it_does(row), f"{chosen.lr:g}", str(result.spent.get(row) or ""), given))
    return found


def _shown(value: object) -> str:
    """A setting's value, numbers short, also within mappings."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _sections(shown_first: Collection[str], *charts: tuple[Chart | None, str]) -> list[Section]:
    return [_section(chart, says, chart.name in shown_first) for chart, says in charts if chart is not None]


def _section(chart: Chart, says: str, is_open: bool) -> Section:
    names = ", ".join(name for name, _ in chart.legend)
    return Section(
        name=chart.name,
        title=chart.title[0].upper() + chart.title[1:],
        says=says,
        open=is_open,
        key=_drawn(lambda theme: chart.key(theme, KEY_WIDTH), "", f"Legend: {names}") if names else None,
        pictures=[_drawn(partial(chart.alone, panel), panel.title, panel.text) for panel in chart.panels],
    )


def _drawn(draw: Callable[[Theme], Figure], title: str, text: str) -> Picture:
    """A figure for light and for dark screens."""
    found = []
    for theme in (LIGHT, DARK):
        with theme.applied():
            figure = draw(theme)
            found.append(_address("image/svg+xml", save(figure, "svg")))
    width, height = figure.get_size_inches()
    return Picture(found[0], found[1], round(96 * width), round(96 * height), _unbroken(title), text)


def _predictions(result: Result) -> list[Picture]:
    """What the problem drew of the runs with the first seed, in the table's order."""
    singles = [f"single:{task.name}" for task in result.problem.tasks]
    found = []
    for method in (*singles, *result.settings.methods):
        path = Path(result.folder or ".") / "predictions" / f"{file_name(method)}.png"
        if path.exists():
            with Image.open(path) as image:
                small = image.convert("RGB")
            small.thumbnail((PICTURE, PICTURE))
            buffer = BytesIO()
            small.save(buffer, "WEBP", quality=80)
            address = _address("image/webp", buffer.getvalue())
            found.append(Picture(address, None, *small.size, method, f"Predictions on test by {method}, seed 0"))
    return found


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
