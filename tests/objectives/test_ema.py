import pytest

from equipoise.objectives import EMA


@pytest.mark.parametrize("beta", [0.1, 0.2, 0.7, 1.0])
def test_weights_are_the_inverse_moving_average(drive, batches, moving_averages, beta):
    driver = drive(EMA(beta))
    for losses, average in zip(batches, moving_averages(batches, beta), strict=True):
        value, weights, _ = driver.step(losses)
        assert weights == pytest.approx({task: 1 / average[task] for task in losses}, rel=1e-13)
        assert value == pytest.approx(sum(losses[task] / average[task] for task in losses), rel=1e-13)


def test_default_beta(drive):
    driver = drive(EMA(), ["a"])
    driver.weights({"a": 1.0})
    assert driver.weights({"a": 2.0}) == pytest.approx({"a": 1 / 1.1})


def test_needs_positive_losses():
    assert EMA().requires_positive


@pytest.mark.parametrize("beta", [0, -0.1, 1.1, float("nan"), float("inf")])
def test_beta_out_of_range_is_an_error(beta):
    with pytest.raises(ValueError, match=f"beta must be a finite number > 0 and ≤ 1, found {beta}"):
        EMA(beta)
