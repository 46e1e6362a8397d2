import math

import pytest

from equipoise.objectives import DWA


@pytest.mark.parametrize("interval", ["epoch", 1, 3])
@pytest.mark.parametrize("temperature", [2.0, 0.5])
def test_weights_are_k_times_the_softmax_of_the_rates(drive, events, training_rates, interval, temperature):
    driver = drive(DWA(temperature, interval))
    expected = iter(training_rates(events, interval))
    for event in events:
        if event is None:
            driver.end_epoch()
            continue
        rates = next(expected)
        total = sum(math.exp(rate / temperature) for rate in rates.values())
        weights = {task: len(event) * math.exp(rate / temperature) / total for task, rate in rates.items()}
        assert driver.weights(event) == pytest.approx(weights, rel=1e-13)


def test_defaults_are_temperature_two_and_epochs(drive):
    driver = drive(DWA())
    for epoch in [{"a": 4.0, "b": 4.0, "c": 4.0}, {"a": 2.0, "b": 4.0, "c": 8.0}]:
        for factor in (0.5, 1.5):
            assert driver.weights({task: factor * loss for task, loss in epoch.items()}) == pytest.approx(
                {"a": 1, "b": 1, "c": 1}
            )
        driver.end_epoch()
    exponentials = [math.exp(0.25), math.exp(0.5), math.exp(1.0)]
    expected = [3 * value / sum(exponentials) for value in exponentials]
    assert list(driver.weights({"a": 9.0, "b": 9.0, "c": 9.0}).values()) == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0, -2, float("nan")])
def test_temperature_out_of_range_is_an_error(temperature):
    with pytest.raises(ValueError, match=f"temperature must be a finite number > 0, found {temperature}"):
        DWA(temperature)


def test_bad_interval_is_an_error():
    with pytest.raises(ValueError, match="interval must be 'epoch' or a number of steps ≥ 1, found 'batch'"):
        DWA(interval="batch")
