import itertools
import warnings
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
from comparisons import METHODS, Errors, make_result, tuned
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from equipoise.bench.experiment.chart import DARK, LIGHT, save, short
from equipoise.bench.experiment.pictures import (
    charts,
    draw_all,
    results_chart,
    tradeoff_chart,
    training_chart,
    tuning_chart,
    weights_chart,
)
from equipoise.bench.experiment.report.why import steps_chart
from equipoise.monitor import Recording
from equipoise.monitor.pictures import draw_steps

THEMES = {"light": LIGHT, "dark": DARK}


def drawn(chart, panel=0, theme=LIGHT):
    """A panel's axes."""
    with theme.applied():
        [axes] = chart.alone(chart.panels[panel], theme).axes
    return axes


def test_pictures_are_images():
    pictures = draw_all(tuned(make_result()))
    assert set(pictures) == {"results.png", "tradeoff.png", "training.png", "tuning.png", "weights.png"}
    for content in pictures.values():
        assert min(Image.open(BytesIO(content)).size) > 200


def test_every_method_has_its_line_in_training():
    result = make_result()
    chart = training_chart(result)
    assert [panel.title for panel in chart.panels] == ["left MSE ↓", "right MSE ↓", "Δm on validation % ↑"]
    assert [name for name, _ in chart.legend] == ["single-task", *METHODS]
    axes = drawn(chart)
    assert len(axes.lines) == 1 + len(METHODS)
    curves = [
        [epoch["validation"]["left"]["MSE"] for epoch in record["epochs"]]
        for record in result.records
        if record["method"] == "mao"
    ]
    assert axes.lines[-1].get_ydata() == pytest.approx(np.mean(curves, axis=0))
    assert f"mao {np.mean(curves, axis=0)[-1]:.3g}" in chart.panels[0].text


def test_results_show_every_seed():
    chart = results_chart(make_result())
    axes = drawn(chart, 2)  # Δm
    delta = make_result().summary.columns[-1]
    shown = [line.get_xdata() for line in axes.lines if line.get_marker() == "o"]
    cells = [make_result().summary.cells[method][delta] for method in METHODS]
    assert [list(values) for values in shown] == [pytest.approx(cell.values) for cell in cells]


def test_with_many_tasks_results_and_training_show_the_mean_gain():
    result = make_result(Errors([f"task {number}" for number in range(12)]))
    assert [panel.title for panel in results_chart(result).panels] == ["Δm % ↑"]
    assert [panel.title for panel in training_chart(result).panels] == ["Δm on validation % ↑"]


def test_tradeoff_marks_what_nothing_beats():
    chart = tradeoff_chart(make_result(levels={"ew": 1.2, "ema": 0.7, "mao": 0.9}))
    assert chart.panels[0].text.endswith("Beaten by none in both: ew, ema.")
    axes = drawn(chart)
    assert {text.get_text() for text in axes.texts} == set(METHODS)


def test_tradeoff_calls_nothing_unbeaten_that_did_not_finish_every_seed():
    best = make_result(diverged=[("mao", seed) for seed in (1, 2, 3)])
    chart = tradeoff_chart(best)
    assert chart.panels[0].text.endswith("Beaten by none in both: ew, ema.")
    assert "not every seed" in [name for name, _ in chart.legend]
    marks = {
        (line.get_xdata()[0], line.get_marker(), line.get_markerfacecolor())
        for line in drawn(chart).lines
        if len(line.get_xdata()) == 1
    }
    assert marks == {(1.0, "D", LIGHT.colours[1]), (1.5, "D", LIGHT.colours[1]), (2.0, "o", "none")}
    none = make_result(diverged=[(method, 0) for method in METHODS])
    assert tradeoff_chart(none).panels[0].text.endswith("Beaten by none in both: none has every seed.")
    drawn(tradeoff_chart(none))


def test_legends_have_room_for_their_own_words():
    """Names that this program gives; those of methods and tasks may be as long as they like."""
    for chart in charts(tuned(make_result(diverged=[("mao", 1)]))):
        with LIGHT.applied():
            key = chart.key(LIGHT, 3.3)
            key.canvas.draw()
            for legend in key.legends:
                for text, (name, _) in zip(legend.get_texts(), chart.legend, strict=True):
                    assert text.get_text() == name
                    assert text.get_window_extent().x1 <= key.bbox.x1


@pytest.mark.parametrize(
    ("number", "spread", "whole"), [(2, 0.3, True), (7, 0.02, False), (7, 0.0, True), (14, 0.3, True)]
)
def test_tradeoff_labels_cover_nothing_and_are_not_cut(number, spread, whole):
    """Long names of one's own: within the axes, off each other and the markers, as the picture is in the end."""
    names = ["ew", *(f"my_method.py:InverseSquareRoot{letter}" for letter in "ABCDEFGHIJKLM"[: number - 1])]
    result = make_result(methods=names, levels={name: 1 + 0.01 * n for n, name in enumerate(names)})
    for place, cost in enumerate(result.costs.values()):
        object.__setattr__(cost, "relative_time", 1 + spread * (place % 3) / 3)
    chart = tradeoff_chart(result)
    with LIGHT.applied():
        figure = chart.whole(LIGHT, "head") if whole else chart.alone(chart.panels[0], LIGHT)
        figure.draw_without_rendering()
    [axes] = figure.axes
    labels = {label.get_text(): Text.get_window_extent(label) for label in axes.texts}
    assert labels.keys() == {name.removeprefix("my_method.py:") for name in names}
    dots = [line.get_xydata()[0] for line in axes.lines if line.get_marker() in ("o", "D")]
    markers = [axes.transData.transform(dot) for dot in dots]
    assert len(markers) == number
    for box in labels.values():
        assert axes.bbox.x0 <= box.x0
        assert box.x1 <= axes.bbox.x1
        assert axes.bbox.y0 <= box.y0 < box.y1 <= axes.bbox.y1
        assert not any(box.contains(*marker) for marker in markers)
    assert not any(one.overlaps(two) for one, two in itertools.combinations(labels.values(), 2))


def test_weights_are_shares_and_methods_without_are_left_out():
    chart = weights_chart(make_result(methods=(*METHODS, "no weights")))
    assert [panel.title for panel in chart.panels] == list(METHODS)
    assert drawn(chart).lines[0].get_ydata() == pytest.approx([0.25] * 3)
    assert weights_chart(make_result(methods=("no weights",))) is None


def test_tuning_rings_the_chosen_rate_and_crosses_what_diverged():
    assert tuning_chart(make_result()) is None
    chart = tuning_chart(tuned(make_result()))
    assert [panel.title for panel in chart.panels][:2] == ["Δm on validation % ↑", "single-task, left MSE ↓"]
    axes = drawn(chart)
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "x"] == [1e-2] * len(METHODS)
    assert [line.get_xdata()[0] for line in axes.lines if line.get_markersize() == 11] == [1e-3] * len(METHODS)
    assert axes.lines[0].get_ydata() == pytest.approx([-20, 10])
    assert drawn(chart, 1).lines[0].get_ydata() == pytest.approx([0.2, -0.1])  # an error again, not its negative


def test_nothing_finished_draws_nothing_and_breaks_nothing():
    result = make_result(diverged=[(method, seed) for method in METHODS for seed in range(4)])
    assert charts(result) == []
    assert len(charts(make_result(diverged=[("mao", seed) for seed in range(4)]))) == 4


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_lines_of_one_colour_differ_otherwise(theme):
    styles = [tuple(theme.style(index).values()) for index in range(-1, 40)]
    for first in range(41):
        for second in range(first):
            if styles[first][0] == styles[second][0] and first - second <= 18:
                assert styles[first][1] != styles[second][1] or styles[first][2] != styles[second][2]


def test_the_report_draws_a_task_as_the_monitor_does():
    recording = Recording(["a", "b"], ["one"], 1)
    contributions = {"a": [1.0], "b": [2.0]}
    for step in (0, 1):
        recording.records.append(
            {"step": step, "weights": {"a": 1.0, "b": 1.0}, "gradient": contributions, "contribution": contributions}
        )
    [left, _] = draw_steps(recording).axes
    theirs = drawn(steps_chart({"ew": recording}))
    for one, two in zip(left.lines, theirs.lines, strict=True):
        for what in ("color", "linestyle", "marker"):
            assert getattr(one, f"get_{what}")() == getattr(two, f"get_{what}")()


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_colours_have_contrast(theme):
    """WCAG's contrast: 3 to 1 for lines and marks, 4.5 to 1 for text."""

    def luminance(colour):
        channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return float(np.dot(channels, (0.2126, 0.7152, 0.0722)))

    def contrast(colour):
        darker, lighter = sorted((luminance(colour), luminance(theme.paper)))
        return (lighter + 0.05) / (darker + 0.05)

    assert all(contrast(colour) >= 3 for colour in (*theme.colours, theme.muted))
    assert contrast(theme.ink) >= 4.5


NASTY = ("long" * 40, "$x$", "_x", "<script>alert(1)</script>", "$\\frac{", "", "タスク", "a\nb %")


def test_names_are_drawn_as_they_are():
    result = tuned(make_result(Errors(NASTY, measure="$x$"), methods=("ew", "mao")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for chart in charts(result):
            with LIGHT.applied():
                whole = chart.whole(LIGHT, "$\\frac{ _")
                content = save(whole, "svg")
                ElementTree.fromstring(content)
                assert b"mathdefault" not in content  # numbers at the axes are plain, too
                if chart.name == "weights":
                    [legend] = whole.legends
                    assert [text.get_text() for text in legend.get_texts()] == list(map(short, NASTY))


def test_long_names_are_cut():
    assert short("a\n b") == "a b"
    assert short("x" * 20) == "x" * 20
    assert short("x" * 21) == "x" * 19 + "…"
    assert short("own/my_method.py:InverseRoot@sgd") == "InverseRoot@sgd"
    assert short("replay:my_method.py:InverseRoot") == "replay:InverseRoot"
    assert short("my.py:Inverse") == "my.py:Inverse"


def test_pictures_are_the_same_every_time():
    def once():
        with LIGHT.applied():
            return save(tradeoff_chart(make_result()).whole(LIGHT, "head"), "svg")

    assert once() == once()
