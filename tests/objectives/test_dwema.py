import math

import pytest

from equipoise.objectives import DWEMA


@pytest.mark.parametrize("interval", [1, 4, "epoch"])
@pytest.mark.parametrize(("beta", "temperature"), [(0.1, 2.0), (0.6, 0.7)])
def test_weights_are_dwa_over_average(drive, events, training_rates, moving_averages, interval, beta, temperature):
    driver = drive(DWEMA(beta, temperature, interval))
    steps = [event for event in events if event is not None]
    expected = zip(training_rates(events, interval), moving_averages(steps, beta), strict=True)
    for event in events:
        if event is None:
            driver.end_epoch()
            continue
        rates, averages = next(expected)
        total = sum(math.exp(rate / temperature) for rate in rates.values())
        weights = {t: len(event) * math.exp(rates[t] / temperature) / total / averages[t] for t in event}
        assert driver.weights(event) == pytest.approx(weights, rel=1e-13)


def test_defaults_follow_the_paper(drive):
    driver = drive(DWEMA(), ["a", "b"])
    for losses in ({"a": 4.0, "b": 1.0}, {"a": 2.0, "b": 3.0}):
        driver.weights(losses)
    shares = [math.exp(0.5 / 2), math.exp(3.0 / 2)]
    average_a, average_b = 0.1 * 1 + 0.9 * (0.1 * 2 + 0.9 * 4), 0.1 * 1 + 0.9 * (0.1 * 3 + 0.9 * 1)
    assert driver.weights({"a": 1.0, "b": 1.0}) == pytest.approx(
        {"a": 2 * shares[0] / sum(shares) / average_a, "b": 2 * shares[1] / sum(shares) / average_b}
    )


def test_needs_positive_losses():
    assert DWEMA().requires_positive


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 0}, "beta must be a finite number > 0 and ≤ 1, found 0"),
        ({"temperature": 0}, "temperature must be a finite number > 0, found 0"),
        ({"interval": -3}, "interval must be 'epoch' or a number of steps ≥ 1, found -3"),
    ],
)
def test_bad_hyperparameters_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        DWEMA(**arguments)
