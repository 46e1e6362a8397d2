import pytest

from equipoise.objectives import REMA


@pytest.mark.parametrize("interval", [1, 4, "epoch"])
@pytest.mark.parametrize("beta", [0.1, 0.6])
def test_weights_are_rate_over_average(drive, events, training_rates, moving_averages, interval, beta):
    driver = drive(REMA(beta, interval))
    steps = [event for event in events if event is not None]
    expected = zip(training_rates(events, interval), moving_averages(steps, beta), strict=True)
    for event in events:
        if event is None:
            driver.end_epoch()
            continue
        rates, averages = next(expected)
        assert driver.weights(event) == pytest.approx({t: rates[t] / averages[t] for t in event}, rel=1e-13)


def test_defaults_follow_the_paper(drive):
    driver = drive(REMA(), ["a"])
    for loss in (4.0, 2.0):
        driver.weights({"a": loss})
    average = 0.1 * 8.0 + 0.9 * (0.1 * 2.0 + 0.9 * 4.0)
    assert driver.weights({"a": 8.0}) == pytest.approx({"a": (2.0 / 4.0) / average})


def test_needs_positive_losses():
    assert REMA().requires_positive


def test_bad_hyperparameters_are_errors():
    with pytest.raises(ValueError, match="beta must be a finite number > 0 and ≤ 1, found 2"):
        REMA(beta=2)
    with pytest.raises(ValueError, match="interval must be 'epoch' or a number of steps ≥ 1, found 0"):
        REMA(interval=0)
