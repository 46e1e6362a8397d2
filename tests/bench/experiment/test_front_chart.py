import itertools
from dataclasses import replace

import numpy as np
import pytest
from comparisons import METHODS, Errors, make_result

from equipoise.bench.experiment.chart import LIGHT
from equipoise.bench.experiment.front import FrontPoint
from equipoise.bench.experiment.front_chart import front_chart, gains_of, pairs_shown, staircase

POINTS = [(0.0, 3.0), (1.0, 2.0), (2.0, 2.0), (0.5, 1.0), (3.0, -1.0), (2.5, 0.0)]


def with_front(result, points=POINTS):
    """The same with fixed weightings of these gains, in per cent, on its tasks in turn."""
    names = [task.name for task in result.problem.tasks]
    front = tuple(FrontPoint({}, {}, dict(zip(names, np.divide(p, 100), strict=False)), 0.0) for p in points)
    return replace(result, front=front)


def test_the_staircase_bounds_what_no_point_exceeds():
    corners = [(0.0, 3.0), (0.0, 2.0), (2.0, 2.0), (2.0, 0.0), (2.5, 0.0), (2.5, -1.0), (3.0, -1.0)]
    assert staircase(POINTS) == corners
    assert staircase([(1.0, 1.0), (0.0, 0.0)]) == [(1.0, 1.0)]
    generator = np.random.default_rng(0)
    drawn = [tuple(point) for point in generator.standard_normal((30, 2))]
    kept = [p for p in drawn if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in drawn)]
    assert [corner for corner in staircase(drawn) if corner in drawn] == sorted(kept)


def test_methods_stand_at_their_gains_and_single_task_training_at_nought():
    result = with_front(make_result())
    chart = front_chart(result)
    [panel] = chart.panels
    with LIGHT.applied():
        [axes] = chart.alone(panel, LIGHT).axes
    single, mao = (result.summary.cells[row] for row in ("single-task", "mao"))
    left, right = (column for column in result.summary.columns if column.main and column.task)
    expected = [100 * (1 - mao[column].mean / single[column].mean) for column in (left, right)]
    points = {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.lines if len(line.get_xdata()) == 1
    }
    assert (0.0, 0.0) in points
    assert any(point == pytest.approx(tuple(expected)) for point in points)
    assert "Beyond the front: mao" in panel.text or "Beyond the front: ema, mao" in panel.text
    assert [name for name, _ in chart.legend] == ["fixed weights", "their front", "single-task", *METHODS]
    delta = result.summary.columns[-1]
    gains = gains_of(result)["mao"]
    assert np.mean([gains["left"], gains["right"]], axis=0) == pytest.approx(mao[delta].values)


def test_without_fixed_weights_there_is_no_front():
    assert front_chart(make_result()) is None
    assert front_chart(with_front(make_result(), [(0.0,)])) is None  # a single-task baseline is missing


def test_pairs_of_many_tasks_are_those_on_which_methods_differ_most():
    tasks = list("abcde")
    gains = {m: {task: np.array([0.0, n * (1 + k)]) for k, task in enumerate(tasks)} for n, m in enumerate(METHODS)}
    assert pairs_shown(tasks[:4], gains) == list(itertools.combinations("abcd", 2))
    shown = pairs_shown(tasks, gains)
    assert len(shown) == 6
    assert shown[0] == ("d", "e")
    assert ("a", "b") not in shown
    chart = front_chart(with_front(make_result(Errors(tasks)), [(1.0,) * 5, (2.0, 1.0, 3.0, 0.0, 1.0)]))
    assert len(chart.panels) == 6
