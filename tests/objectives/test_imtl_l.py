import math

import pytest
import torch

from equipoise.objectives import IMTLL


def test_value_coefficients_and_gradients_follow_the_formula(drive, batches):
    driver = drive(IMTLL())
    log_scale = driver.parameters
    assert [parameter.item() for parameter in log_scale] == [0, 0, 0]
    for losses in batches:
        s = dict(zip("abc", (parameter.item() for parameter in log_scale), strict=True))
        value, coefficients, gradients = driver.step(losses)
        assert value == pytest.approx(sum(math.exp(s[t]) * loss - s[t] for t, loss in losses.items()), rel=1e-13)
        assert coefficients == pytest.approx({t: math.exp(s[t]) for t in losses}, rel=1e-13)
        slope = [math.exp(s[t]) * losses[t] - 1 if t in losses else 0.0 for t in "abc"]
        assert gradients["log_scale"] == pytest.approx(slope, rel=1e-6)  # a float32 parameter
        with torch.no_grad():
            for parameter, gradient in zip(log_scale, gradients["log_scale"], strict=True):
                parameter -= 0.02 * gradient


def test_scaled_losses_are_one_at_the_optimum(drive):
    driver = drive(IMTLL())
    with torch.no_grad():
        for parameter, value in zip(driver.parameters, (0.1, 2.0, 50.0), strict=True):
            parameter.fill_(-math.log(value))
    assert driver.step({"a": 0.1, "b": 2.0, "c": 50.0})[2]["log_scale"] == pytest.approx([0, 0, 0], abs=1e-6)
