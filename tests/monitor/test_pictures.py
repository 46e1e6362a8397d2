"""The pictures show the recording's numbers."""

import math
from io import BytesIO

import numpy as np
import pytest
from contract.registry import make
from networks import batch

import equipoise as eq
from equipoise.monitor import Recording
from equipoise.monitor.style import line_style

pytest.importorskip("matplotlib")
from equipoise.monitor.pictures import draw_conflicts, draw_layers, draw_metrics, draw_steps, draw_weights


def record(name):
    model, method = make(name)
    monitor = eq.BalanceMonitor(method, model, every=1)
    for index, tasks in enumerate(["abc", "ac", "abc", "abc"]):
        method.backward(model.losses(batch(index), tasks))
        method.step()
        method.zero_grad()
    return monitor.recording


@pytest.fixture(scope="module")
def recordings():
    return {"ema": record("ema"), "mao": record("mao")}


def drawn(axes):
    """The heights of each line."""
    return [list(line.get_ydata()) for line in axes.lines]


def same(found, expected):
    for line, values in zip(found, expected, strict=True):
        np.testing.assert_array_equal(line, [math.nan if value is None else value for value in values])


def test_layers_and_steps(recordings):
    for draw, means in ((draw_layers, Recording.by_layer), (draw_steps, Recording.by_step)):
        figure = draw(recordings)
        panels = iter(figure.axes)
        for name, recording in recordings.items():
            for quantity in ("gradient", "contribution"):
                axes = next(panels)
                assert axes.get_title() == name
                assert axes.get_yscale() == "log"
                same(drawn(axes), means(recording, quantity).values())
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
        figure.savefig(BytesIO())
    labels = [label.get_text() for label in draw_layers(recordings["ema"]).axes[0].get_xticklabels()]
    assert labels == ["trunk", "branch"]


def test_weights(recordings):
    figure = draw_weights(recordings["ema"])
    same(drawn(figure.axes[0]), recordings["ema"].weights().values())
    assert math.isnan(drawn(figure.axes[0])[1][1])
    figure.savefig(BytesIO())


def test_conflicts(recordings):
    figure = draw_conflicts(recordings)
    for axes, recording in zip(figure.axes, recordings.values(), strict=False):
        cosines = np.array(recording.mean_cosines())
        np.testing.assert_allclose(axes.images[0].get_array(), cosines)
        assert [text.get_text() for text in axes.texts] == [f"{cosine:+.2f}" for cosine in cosines.flat]
    figure.savefig(BytesIO())


KEYS = ("weights", "gradient", "contribution")


def test_names_are_drawn_as_they_are(recordings):
    plain = recordings["ema"]
    names = {"a": "_a", "b": "$x^2$", "c": r"\frac"}
    odd = Recording(
        list(names.values()),
        [f"$_{layer}$" for layer in plain.layers],
        1,
        [
            sample
            | {key: {names[t]: v for t, v in sample[key].items()} for key in ("weights", "gradient", "contribution")}
            for sample in plain.records
        ],
    )
    for draw in (draw_layers, draw_steps, draw_conflicts, draw_weights):
        figure = draw({"$\\bad$": odd})
        figure.savefig(BytesIO())
        if figure.legends:
            assert [text.get_text() for text in figure.legends[0].get_texts()] == ["_a", r"\$x^2\$", r"\frac"]


def test_forty_tasks_have_forty_styles():
    assert len({tuple(line_style(index).values()) for index in range(40)}) == 40


def test_nothing_to_draw_is_said(recordings):
    empty = Recording(["a", "b"], ["one"], 5)
    for draw in (draw_layers, draw_steps, draw_conflicts, draw_weights):
        with pytest.raises(ValueError, match="nothing to draw"):
            draw(empty)
        with pytest.raises(ValueError, match="'none' has nothing to draw"):
            draw({"some": recordings["ema"], "none": empty})


def test_metrics():
    one = Recording(["a", "b", "c"], ["one"], 5)
    one.metrics = [{"step": 10, "metrics": {"a": 0.5, "c": 3.0}}, {"step": 20, "metrics": {"a": 0.75}}]
    two = Recording(["a", "b", "c"], ["one"], 5, metrics=[{"step": 10, "metrics": {"a": 0.25}}])
    figure = draw_metrics({"_ew": one, "$mao": two})
    left, right = figure.axes
    assert [left.get_title(), right.get_title()] == ["a", "c"]
    assert drawn(left) == [[0.5, 0.75], [0.25]]
    assert list(left.lines[0].get_xdata()) == [10, 20]
    assert drawn(right) == [[3.0], []]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["_ew", r"\$mao"]
    figure.savefig(BytesIO())
    with pytest.raises(ValueError, match="No metrics were logged"):
        draw_metrics(Recording(["a"], ["one"], 5))
