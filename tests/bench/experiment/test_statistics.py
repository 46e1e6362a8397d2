import itertools
import math

import numpy as np
import pytest
from scipy import stats

from equipoise.bench.experiment.statistics import (
    DELTA,
    SINGLE,
    bootstrap_interval,
    holm,
    paired_p_value,
    pareto,
    relative_gain,
    stars,
    summarise,
)
from equipoise.bench.problems import Classification, Regression

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
    assert math.isnan(paired_p_value([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]))
    assert math.isnan(paired_p_value([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))  # the same, but for rounding
    assert math.isnan(paired_p_value([1.0, 2.0], [3.0, 5.0]))
    assert math.isnan(paired_p_value([1.0, 2.0, math.nan], [3.0, 5.0, 6.0]))


def test_holm_is_the_closed_test_of_bonferroni():
    """By definition: a hypothesis falls if every set of hypotheses with it does, by Bonferroni's test of the set."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        p_values = (generator.uniform(0, 1, 5) ** 3).tolist()
        expected = [
            max(
                min(1.0, len(chosen) * min(p_values[other] for other in chosen))
                for size in range(1, 6)
                for chosen in itertools.combinations(range(5), size)
                if index in chosen
            )
            for index in range(5)
        ]
        assert holm(p_values) == pytest.approx(expected)


def test_holm_leaves_out_what_was_not_tested():
    assert holm([]) == []
    corrected = holm([0.02, math.nan, 0.01])
    assert math.isnan(corrected[1])
    assert [corrected[0], corrected[2]] == pytest.approx([0.02, 0.02])


def test_bootstrap_interval_is_that_of_all_resamples():
    """With four seeds all 4⁴ resamples can be listed; Hesterberg's level for n=4 is Φ(√(4/3) t)."""
    values = [0.3, 1.1, 0.7, 2.0]
    means = np.array([np.mean(chosen) for chosen in itertools.product(values, repeat=4)])
    tail = stats.norm.cdf(math.sqrt(4 / 3) * stats.t.ppf(0.025, 3))
    low, high = bootstrap_interval(values)
    assert low == pytest.approx(np.quantile(means, tail), abs=0.03)
    assert high == pytest.approx(np.quantile(means, 1 - tail), abs=0.03)
    assert all(math.isnan(end) for end in bootstrap_interval([1.0, 2.0]))
    assert bootstrap_interval([1.0, 1.0, 1.0]) == (1.0, 1.0)


@pytest.mark.parametrize(("seeds", "least"), [(3, 0.70), (5, 0.87), (10, 0.91)])
def test_bootstrap_interval_covers_as_often_as_it_can(seeds, least):
    """500 simulated means: nearly 95 % with ten seeds, and with few what their range allows (75 and 94 %)."""
    generator = np.random.default_rng(1)
    intervals = [bootstrap_interval(generator.standard_normal(seeds)) for _ in range(500)]
    assert least < np.mean([low <= 0 <= high for low, high in intervals]) < 0.98


def test_pareto_by_hand():
    points = {"slow": (3.0, 2.0), "best": (2.0, 5.0), "cheap": (1.0, 1.0), "as cheap": (1.0, 1.0), "worse": (1.0, 0.5)}
    assert pareto(points) == ["cheap", "as cheap", "best"]
    assert pareto({}) == []


def test_ranks_are_means_over_tasks_and_seeds():
    results = RESULTS | {"c": [(0.80, 1.0), (0.95, 1.4), (0.70, 1.0), (0.60, 3.0)]}
    summary = summarise(records(results), TASKS, ["a", "b", "c"])
    # kind, seeds 0–3: a b c = 1 2.5 2.5 · 2 3 1 · 1 2 3 · 1 2 3; size: 3 1.5 1.5 · 3 1 2 · 3 2 1 · 2 1 3
    assert summary.ranks == pytest.approx({"a": 16 / 8, "b": 15 / 8, "c": 17 / 8})


def test_ranks_leave_out_what_did_not_finish_and_tasks_without_labels():
    runs = records()
    runs[4]["status"] = "diverged"  # b, seed 0
    runs[4]["message"] = "no"
    assert summarise(runs, TASKS, ["a", "b"]).ranks == {"a": 1.0}
    runs = records()
    for record in runs:
        if "kind" in record["test"]:
            record["test"]["kind"] = {"accuracy": math.nan, "F1": math.nan}
    assert summarise(runs, TASKS, ["a", "b"]).ranks == {"a": 2.0, "b": 1.0}


def test_only_delta_m_has_an_interval():
    summary = summarise(records(), TASKS, ["a", "b"])
    delta = cell(summary, "a", None, DELTA.name)
    assert delta.interval == bootstrap_interval(delta.values)
    assert math.isnan(cell(summary, "a", *KIND).interval[0])


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
    worse = cell(summary, "b", *KIND)
    assert not worse.best
    assert cell(summary, "b", *SIZE).best  # lower is better
    assert cell(summary, SINGLE, *SIZE).mean == pytest.approx(1.55)
    assert not cell(summary, SINGLE, *KIND).best


def test_delta_m_is_taken_seed_by_seed():
    summary = summarise(records(), TASKS, ["a", "b"])
    singles = [(0.88, 1.5), (0.90, 1.6), (0.91, 1.4), (0.89, 1.7)]
    mean_s, mean_e = np.mean(singles, axis=0)
    expected = [
        100 / 2 * ((accuracy - s) / mean_s - (error - e) / mean_e)
        for (accuracy, error), (s, e) in zip(RESULTS["b"], singles, strict=True)
    ]
    found = cell(summary, "b", None, DELTA.name)
    assert found.values == pytest.approx(expected)
    mean_accuracy, mean_error = np.mean(RESULTS["b"], axis=0)
    assert found.mean == pytest.approx(100 / 2 * ((mean_accuracy - mean_s) / mean_s - (mean_error - mean_e) / mean_e))
    assert not any(column.measure == DELTA for column in summary.cells[SINGLE])


def test_failed_runs_are_told_and_the_method_is_not_compared():
    runs = records()
    for record in runs:
        if record["method"] == "b" and record["seed"] == 1:
            record.update(status="diverged", message="the loss of 'size' became nan in epoch 2")
            del record["test"]
    summary = summarise(runs, TASKS, ["a", "b"])
    assert cell(summary, "b", *KIND).values == pytest.approx((0.80, 0.79, 0.84))
    assert not cell(summary, "b", *SIZE).best
    assert cell(summary, "a", *SIZE).best  # though b's mean is lower
    assert summary.failures == {"b": ("seed 1: the loss of 'size' became nan in epoch 2",)}
    assert len(cell(summary, "b", None, DELTA.name).values) == 3


@pytest.mark.parametrize("finished", [1, 3])
def test_a_lucky_seed_of_a_method_that_diverges_changes_nothing_for_the_others(finished):
    results = RESULTS | {"lucky": [(0.999, 0.001)] * 4}
    runs = records(results)
    for record in runs:
        if record["method"] == "lucky" and record["seed"] >= finished:
            record.update(status="diverged", message="no")
    summary, without = summarise(runs, TASKS, ["a", "b", "lucky"]), summarise(records(), TASKS, ["a", "b"])
    for column in summary.columns:
        assert not summary.cells["lucky"][column].best
        assert not summary.complete(summary.cells["lucky"][column])
        for method in ("a", "b"):
            assert repr(summary.cells[method][column]) == repr(without.cells[method][column])  # NaN beside NaN


def test_a_method_without_a_finished_run_has_no_cells():
    runs = [record for record in records() if record["method"] != "b"]
    runs += [{"method": "b", "seed": seed, "status": "failed", "message": "no"} for seed in range(4)]
    summary = summarise(runs, TASKS, ["a", "b"])
    assert summary.cells["b"] == {}
    assert cell(summary, "a", *KIND).best


def test_a_task_without_labels_in_test_is_nan_not_an_error():
    runs = records()
    for record in runs:
        if "kind" in record["test"]:
            record["test"]["kind"] = {"accuracy": math.nan, "F1": math.nan}
    summary = summarise(runs, TASKS, ["a", "b"])
    assert math.isnan(cell(summary, "a", *KIND).mean)


def with_baselines_that_diverged(*baselines):
    """In the last seed."""
    gone = {"status": "diverged", "message": "a loss became nan"}
    return [record | gone if record["method"] in baselines and record["seed"] == 3 else record for record in records()]


def test_a_task_whose_baseline_did_not_go_through_is_left_out_of_delta_m_in_every_seed():
    summary = summarise(with_baselines_that_diverged("single:kind"), TASKS, ["a", "b"])
    assert (summary.reference, summary.left_out) == (SINGLE, ("kind",))
    mean = np.mean([single for _, single in RESULTS["single:size"]])
    expected = [
        100 * (single - error) / mean
        for (_, error), (_, single) in zip(RESULTS["b"], RESULTS["single:size"], strict=True)
    ]
    assert cell(summary, "b", None, "Δm of 1 of 2 tasks").values == pytest.approx(expected)
    assert len(cell(summary, SINGLE, *KIND).values) == 3


@pytest.mark.parametrize(
    "runs",
    [
        with_baselines_that_diverged("single:kind", "single:size"),
        [record for record in records() if not record["method"].startswith("single:")],
    ],
)
def test_without_baselines_delta_m_is_over_equal_weights(runs):
    renamed = [record | {"method": "ew"} if record["method"] == "a" else record for record in runs]
    summary = summarise(renamed, TASKS, ["ew", "b"])
    assert (summary.reference, summary.left_out) == ("ew", ())
    mean_kind, mean_size = np.mean(RESULTS["a"], axis=0)
    expected = [
        100 / 2 * ((kind - other_kind) / mean_kind + (other_size - size) / mean_size)
        for (kind, size), (other_kind, other_size) in zip(RESULTS["b"], RESULTS["a"], strict=True)
    ]
    assert cell(summary, "b", None, "Δm over ew").values == pytest.approx(expected)
    assert cell(summary, "ew", None, "Δm over ew").values == pytest.approx([0] * 4)
    assert (SINGLE in summary.cells) == any(record["method"].startswith("single:") for record in runs)


@pytest.mark.parametrize("baselines", [False, True])
def test_the_noise_of_what_gains_are_over_favours_nobody(baselines):
    """Forty noisy tasks, and a method that is the reference by another name, with other noise."""
    generator = np.random.default_rng(0)
    tasks = [Regression(f"t{index}") for index in range(40)]
    wrong = 0
    for _ in range(40):
        reference, other = generator.normal(1, 0.1, (2, 20, 40))
        runs = [
            run("other", seed, {f"t{index}": value for index, value in enumerate(other[seed])}) for seed in range(20)
        ]
        if baselines:
            runs += [run(f"single:t{i}", s, {f"t{i}": reference[s, i]}) for s in range(20) for i in range(40)]
        else:
            runs += [run("ew", s, {f"t{i}": reference[s, i] for i in range(40)}) for s in range(20)]
        summary = summarise(runs, tasks, ["other"] if baselines else ["ew", "other"])
        gains = summary.cells["other"][summary.columns[-1]].values
        wrong += paired_p_value(gains, np.zeros(20)) < 0.05
    assert wrong <= 7  # of 40, 2 on average; with each seed's own noise in the denominator it is some 20


def run(method, seed, errors):
    test = {task: {"MSE": error, "MAE": 0.0, "R²": 0.0} for task, error in errors.items()}
    return {"method": method, "seed": seed, "status": "finished", "test": test}
