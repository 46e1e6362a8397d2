import math

import pytest

from equipoise.objectives import Achievement, GeometricMean

POTENTIALS = {"c": 0.9, "a": 0.4, "b": 0.8}
LOSSES = {"a": 1.0, "b": 2.0, "c": 3.0}
EVALUATIONS = [
    {"a": 0.1, "b": 0.5, "c": 0.9},
    {"a": 0.2, "b": 0.6, "c": 1.0},
    {"b": 0.7},
    {"a": 1.0, "c": 0.3},
    {"a": 0.9, "b": 0.8, "c": 0.9},
]


def normalised(weights, normalization):
    if normalization == "softmax":
        weights = {task: math.exp(weight) for task, weight in weights.items()}
    return {task: weight / sum(weights.values()) for task, weight in weights.items()}


@pytest.mark.parametrize("normalization", ["softmax", "sum"])
@pytest.mark.parametrize(
    ("gamma", "margin", "momentum"), [(2.0, 0.05, 0.1), (1.0, 0.0, 0.5), (0.5, 0.2, 1.0), (3.0, 0.05, 1.0)]
)
def test_weights_follow_the_achievements(drive, moving_averages, gamma, margin, momentum, normalization):
    driver = drive(Achievement(POTENTIALS, gamma, margin, momentum, normalization))
    geometric = drive(GeometricMean(Achievement(POTENTIALS, gamma, margin, momentum, normalization)))
    accuracy = {}
    for accuracies, averages in zip(EVALUATIONS, moving_averages(EVALUATIONS, momentum), strict=True):
        driver.observe(accuracies)
        geometric.observe(accuracies)
        accuracy |= averages
        for losses in (LOSSES, {"a": 0.1, "c": 5.0}):
            gap = {task: 1 - accuracy[task] / (POTENTIALS[task] * (1 + margin)) for task in losses}
            raw = {task: value**gamma if value > 0 else 0.0 for task, value in gap.items()}
            expected = normalised(raw, normalization)
            value, weights, _ = driver.step(losses)
            assert weights == pytest.approx(expected, rel=1e-12)
            assert value == pytest.approx(sum(expected[task] * losses[task] for task in losses), rel=1e-12)
            mean = math.prod(losses[task] ** expected[task] for task in losses)
            value, slopes, _ = geometric.step(losses)
            assert value == pytest.approx(mean, rel=1e-12)
            assert slopes == pytest.approx({t: expected[t] * mean / losses[t] for t in losses}, rel=1e-12)


def test_defaults(drive):
    driver = drive(Achievement({"a": 0.5, "b": 0.8}), ["a", "b"])
    driver.observe({"a": 0.2, "b": 0.6})
    driver.observe({"a": 0.3, "b": 0.8})
    raw = {"a": (1 - 0.21 / 0.525) ** 2, "b": (1 - 0.62 / 0.84) ** 2}
    assert driver.weights({"a": 1.0, "b": 1.0}) == pytest.approx(normalised(raw, "softmax"))


@pytest.mark.parametrize("normalization", ["softmax", "sum"])
def test_weights_are_equal_until_every_task_present_is_measured(drive, normalization):
    driver = drive(Achievement(POTENTIALS, normalization=normalization))
    third = dict.fromkeys("abc", pytest.approx(1 / 3, rel=1e-15))
    assert driver.weights(LOSSES) == third
    driver.observe({"a": 0.1, "b": 0.7})
    assert driver.weights(LOSSES) == third
    weights = driver.weights({"a": 1.0, "b": 1.0})
    assert weights["a"] > weights["b"]


def test_a_task_above_its_potential_has_weight_zero(drive):
    driver = drive(Achievement(POTENTIALS, normalization="sum"))
    driver.observe({"a": 1.0, "b": 0.42, "c": 0.4725})
    assert driver.weights(LOSSES) == pytest.approx({"a": 0, "b": 0.5, "c": 0.5})


def test_all_above_their_potentials_count_as_equal(drive):
    driver = drive(Achievement(POTENTIALS, normalization="sum"))
    driver.observe({"a": 1.0, "b": 1.0, "c": 1.0})
    assert driver.weights(LOSSES) == pytest.approx(dict.fromkeys("abc", 1 / 3))


def test_asks_for_accuracies():
    assert Achievement(POTENTIALS).needs_accuracies


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"potentials": {"a": 0.0}}, r"potentials\['a'\] must be a finite number > 0 and ≤ 1, found 0.0"),
        ({"potentials": {"a": 1.01}}, r"potentials\['a'\] must be a finite number > 0 and ≤ 1, found 1.01"),
        ({"potentials": {"a": float("nan")}}, r"potentials\['a'\] must be a finite number"),
        ({"gamma": 0}, "gamma must be a finite number > 0, found 0"),
        ({"margin": -0.1}, "margin must be a finite number ≥ 0, found -0.1"),
        ({"momentum": 0}, "momentum must be a finite number > 0 and ≤ 1, found 0"),
        ({"normalization": "l2"}, "normalization must be one of 'softmax', 'sum', found 'l2'"),
    ],
)
def test_bad_hyperparameters_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Achievement(**{"potentials": POTENTIALS, **arguments})


@pytest.mark.parametrize("potentials", [None, [0.4, 0.5, 0.6]])
def test_potentials_without_names_are_an_error(potentials):
    with pytest.raises(TypeError, match="potentials must be a mapping from task to number, found"):
        Achievement(potentials)


def test_potentials_that_do_not_fit_the_tasks_are_errors(drive):
    with pytest.raises(ValueError, match="potentials: nothing given for task 'b', 'c'"):
        drive(Achievement({"a": 0.5}))
    with pytest.raises(ValueError, match="potentials: unknown task 'd'"):
        drive(GeometricMean(Achievement({**POTENTIALS, "d": 0.5})))
