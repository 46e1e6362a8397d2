import math

import numpy as np
import pytest
from scipy import stats

from equipoise.experiment.statistics import DELTA, SINGLE, paired_p_value, relative_gain, stars, summarise
from equipoise.problems import Classification, Regression

TASKS = [Classification("kind", 2), Regression("size")]
KIND, SIZE = ("kind", "accuracy"), ("size", "MSE")
# method → per seed (accuracy of kind, MSE of size)
RESULTS = {
    "a": [(0.90, 2.0), (0.92, 2.2), (0.91, 2.1), (0.93, 1.9)],
    "b": [(0.80, 1.0), (0.82, 1.3), (0.79, 1.1), (0.84, 1.2)],
    "single:kind": [(0.88, None), (0.90, None), (0.91, None), (0.89, None)],
    "single:size": [(None, 1.5), (None, 1.6), (None, 1.4), (None, 1.7)],
}


def records(results=RESULTS):
    found = []
    for method, seeds in results.items():
        for seed, (accuracy, error) in enumerate(seeds):
            test = {}
            if accuracy is not None:
                test["kind"] = {"accuracy": accuracy, "F1": accuracy / 2}
            if error is not None:
                test["size"] = {"MSE": error, "MAE": error / 2, "R²": 1 - error / 4}
            found.append({"method": method, "seed": seed, "status": "finished", "test": test})
    return found


def cell(summary, method, task, measure):
    [column] = [c for c in summary.columns if (c.task, c.measure.name) == (task, measure)]
    return summary.cells[method][column]


def test_relative_gain_by_hand():
    assert relative_gain(0.9, 0.8, True) == pytest.approx(0.125)
    assert relative_gain(1.2, 1.0, False) == pytest.approx(-0.2)
    assert relative_gain(-1.0, -2.0, True) == pytest.approx(0.5)
    assert math.isfinite(relative_gain(0.0, 0.0, False))


def test_paired_p_value_is_that_of_the_formula():
    first, second = [0.9, 0.92, 0.91, 0.93], [0.80, 0.82, 0.79, 0.84]
    difference = np.subtract(first, second)
    t = difference.mean() / (difference.std(ddof=1) / math.sqrt(4))
    assert paired_p_value(first, second) == pytest.approx(2 * stats.t.sf(abs(t), 3))


def test_paired_p_value_without_deviation_or_seeds():
    assert paired_p_value([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 1.0
    assert paired_p_value([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]) == 0.0
    assert math.isnan(paired_p_value([1.0, 2.0], [3.0, 5.0]))


def test_stars():
    assert [stars(p) for p in (0.009, 0.01, 0.049, 0.05, math.nan)] == ["**", "*", "*", "", ""]


def test_summary_by_hand():
    summary = summarise(records(), TASKS, ["a", "b"])
    assert list(summary.cells) == [SINGLE, "a", "b"]
    assert summary.seeds == 4
    kind = cell(summary, "a", *KIND)
    assert kind.mean == pytest.approx(0.915)
    assert kind.deviation == pytest.approx(np.std([0.90, 0.92, 0.91, 0.93], ddof=1))
    assert kind.best
    assert math.isnan(kind.p_value)
    worse = cell(summary, "b", *KIND)
    assert not worse.best
    assert worse.p_value == pytest.approx(stats.ttest_rel([0.90, 0.92, 0.91, 0.93], [0.80, 0.82, 0.79, 0.84]).pvalue)
    assert cell(summary, "b", *SIZE).best  # lower is better
    assert cell(summary, SINGLE, *SIZE).mean == pytest.approx(1.55)
    assert not cell(summary, SINGLE, *KIND).best


def test_delta_m_is_taken_seed_by_seed():
    summary = summarise(records(), TASKS, ["a", "b"])
    singles = [(0.88, 1.5), (0.90, 1.6), (0.91, 1.4), (0.89, 1.7)]
    expected = [
        100 / 2 * ((accuracy - s) / s - (error - e) / e)
        for (accuracy, error), (s, e) in zip(RESULTS["b"], singles, strict=True)
    ]
    assert cell(summary, "b", None, DELTA.name).values == pytest.approx(expected)
    assert not any(column.measure == DELTA for column in summary.cells[SINGLE])


def test_failed_runs_are_told_and_the_rest_is_paired():
    runs = records()
    for record in runs:
        if record["method"] == "b" and record["seed"] == 1:
            record.update(status="diverged", message="the loss of 'size' became nan in epoch 2")
            del record["test"]
    summary = summarise(runs, TASKS, ["a", "b"])
    assert cell(summary, "b", *KIND).values == pytest.approx((0.80, 0.79, 0.84))
    assert cell(summary, "b", *KIND).p_value == pytest.approx(
        stats.ttest_rel([0.90, 0.91, 0.93], [0.80, 0.79, 0.84]).pvalue
    )
    assert summary.failures == {"b": ("seed 1: the loss of 'size' became nan in epoch 2",)}
    assert len(cell(summary, "b", None, DELTA.name).values) == 3


def test_a_method_without_a_finished_run_has_no_cells():
    runs = [record for record in records() if record["method"] != "b"]
    runs += [{"method": "b", "seed": seed, "status": "failed", "message": "no"} for seed in range(4)]
    summary = summarise(runs, TASKS, ["a", "b"])
    assert summary.cells["b"] == {}
    assert cell(summary, "a", *KIND).best


def test_two_seeds_give_no_p_values():
    runs = [record for record in records() if record["seed"] < 2]
    summary = summarise(runs, TASKS, ["a", "b"])
    assert all(math.isnan(c.p_value) for cells in summary.cells.values() for c in cells.values())


def test_a_task_without_labels_in_test_is_nan_not_an_error():
    runs = records()
    for record in runs:
        if "kind" in record["test"]:
            record["test"]["kind"] = {"accuracy": math.nan, "F1": math.nan}
    summary = summarise(runs, TASKS, ["a", "b"])
    assert math.isnan(cell(summary, "a", *KIND).mean)
