import pytest
import torch

from equipoise.objectives._training_rate import TrainingRate


@pytest.mark.parametrize("interval", [1, 2, 5, "epoch"])
def test_rates_are_ratios_of_completed_intervals(training_rates, events, interval):
    rate = TrainingRate(interval)
    rate.bind(["a", "b", "c"])
    expected = iter(training_rates(events, interval))
    above_two = 0
    for event in events:
        present = None if event is None else torch.tensor(["abc".index(task) for task in event])
        with rate.step(present) as step:
            if event is None:
                rate.end_epoch()
            else:
                rates = rate(torch.tensor(list(event.values()), dtype=torch.float64))
                reference = next(expected)
                assert rates.tolist() == pytest.approx(list(reference.values()), rel=1e-13)
                above_two += any(value != 1 for value in reference.values())
            step.commit()
    assert above_two > 5  # the rates did move


def test_by_default_of_rema_the_rate_is_of_the_last_two_losses(training_rates):
    losses = [{"a": 4.0}, {"a": 2.0}, {"b": 9.0}, {"a": 1.0}, {"a": 3.0}]
    assert training_rates(losses, 1)[3:] == [{"a": 0.5}, {"a": 0.5}]  # the reference itself: L(t−1)/L(t−2)


@pytest.mark.parametrize("interval", [0, -1, 1.5, True, "step", None])
def test_bad_intervals_are_errors(interval):
    with pytest.raises(ValueError, match="interval must be 'epoch' or a number of steps ≥ 1, found"):
        TrainingRate(interval)
