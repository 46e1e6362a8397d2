import math

import pytest

from equipoise.objectives import DTP

LOSSES = {"a": 1.0, "b": 2.0, "c": 3.0}
EVALUATIONS = [
    {"a": 0.2, "b": 0.5, "c": 0.9},
    {"a": 0.4, "b": 0.4, "c": 1.0},
    {"b": 0.7},
    {"a": 0.1, "c": 0.95},
    {"a": 0.9, "b": 0.9, "c": 0.9},
]


@pytest.mark.parametrize(("gamma", "momentum"), [(1.0, 0.1), (0.5, 0.3), (0.0, 1.0), (2.0, 0.1)])
def test_weights_follow_the_smoothed_accuracies(drive, moving_averages, gamma, momentum):
    driver = drive(DTP(gamma, momentum))
    kappa = {}
    for accuracies, averages in zip(EVALUATIONS, moving_averages(EVALUATIONS, momentum), strict=True):
        driver.observe(accuracies)
        kappa |= averages
        for losses in (LOSSES, {"c": 5.0, "a": 0.1}):
            expected = {task: -((1 - kappa[task]) ** gamma) * math.log(kappa[task]) for task in losses}
            assert driver.weights(losses) == pytest.approx(expected, rel=1e-12)


def test_defaults(drive):
    driver = drive(DTP(), ["a"])
    driver.observe({"a": 0.5})
    driver.observe({"a": 0.9})
    kappa = 0.1 * 0.9 + 0.9 * 0.5
    assert driver.weights({"a": 1.0}) == pytest.approx({"a": -(1 - kappa) * math.log(kappa)})


def test_weights_are_equal_until_every_task_present_is_measured(drive):
    driver = drive(DTP())
    assert driver.weights(LOSSES) == {"a": 1, "b": 1, "c": 1}
    driver.observe({"a": 0.5, "c": 0.25})
    assert driver.weights(LOSSES) == {"a": 1, "b": 1, "c": 1}
    assert driver.weights({"a": 1.0, "c": 1.0}) == pytest.approx({"a": 0.5 * math.log(2), "c": 0.75 * math.log(4)})


def test_an_accuracy_of_zero_has_a_finite_weight_and_of_one_none(drive):
    driver = drive(DTP())
    driver.observe({"a": 0.0, "b": 1.0, "c": 1e-30})
    assert driver.weights(LOSSES) == pytest.approx({"a": math.log(1e20), "b": 0, "c": math.log(1e20)})


def test_asks_for_accuracies_and_takes_any_loss():
    assert DTP().needs_accuracies
    assert not DTP().requires_positive


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": -1}, "gamma must be a finite number ≥ 0, found -1"),
        ({"momentum": 0}, "momentum must be a finite number > 0 and ≤ 1, found 0"),
        ({"momentum": 1.5}, "momentum must be a finite number > 0 and ≤ 1, found 1.5"),
    ],
)
def test_bad_hyperparameters_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        DTP(**arguments)
