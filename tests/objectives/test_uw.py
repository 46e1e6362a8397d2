import math

import pytest
import torch

from equipoise.objectives import UW


@pytest.mark.parametrize("classification", [(), ("b",), ["a", "c"]])
def test_value_coefficients_and_gradients_follow_the_formula(drive, batches, classification):
    driver = drive(UW(classification))
    log_variance = driver.parameters
    factor = {task: 1.0 if task in classification else 0.5 for task in "abc"}
    for losses in batches:
        s = dict(zip("abc", (parameter.item() for parameter in log_variance), strict=True))
        value, coefficients, gradients = driver.step(losses)
        expected = sum(factor[t] * math.exp(-s[t]) * loss + 0.5 * s[t] for t, loss in losses.items())
        assert value == pytest.approx(expected, rel=1e-13)
        assert coefficients == pytest.approx({t: factor[t] * math.exp(-s[t]) for t in losses}, rel=1e-13)
        slope = [0.5 - factor[t] * math.exp(-s[t]) * losses[t] if t in losses else 0.0 for t in "abc"]
        assert gradients["log_variance"] == pytest.approx(slope, rel=1e-6)  # a float32 parameter
        with torch.no_grad():
            for parameter, gradient in zip(log_variance, gradients["log_variance"], strict=True):
                parameter -= 0.05 * gradient


def test_log_variances_start_at_zero_one_per_task(drive):
    log_variance = drive(UW()).parameters
    assert all(parameter.requires_grad for parameter in log_variance)
    assert [parameter.item() for parameter in log_variance] == [0, 0, 0]


def test_the_optimum_is_the_log_of_the_loss(drive):
    driver = drive(UW(classification=["b"]))
    log_variance = driver.parameters
    losses = {"a": 0.1, "b": 2.0, "c": 50.0}
    with torch.no_grad():
        for parameter, value in zip(log_variance, (0.1, 4.0, 50.0), strict=True):
            parameter.fill_(math.log(value))
    assert driver.step(losses)[2]["log_variance"] == pytest.approx([0, 0, 0], abs=1e-6)


def test_unknown_classification_tasks_are_an_error(drive):
    with pytest.raises(ValueError, match="classification: unknown task 'd'; the tasks are 'a', 'b', 'c'"):
        drive(UW(classification=["a", "d"]))


def test_a_single_string_is_an_error():
    with pytest.raises(TypeError, match="iterable of names, found the single string 'depth'"):
        UW(classification="depth")
