"""When a comparison was stopped too early, over curves whose truth is known."""

import math

import numpy as np
import pytest

from equipoise.bench.experiment.training_length import still_rising, training_length

EPOCHS = 40


def records(curves, runs=3, noise=0.0, generator=None):
    """Method → curve of scores [epochs]; the same in every run but for noise."""
    generator = generator or np.random.default_rng(0)
    found = []
    for method, curve in curves.items():
        for seed in range(runs):
            scores = np.asarray(curve) + noise * generator.standard_normal(len(curve))
            found.append(
                {"method": method, "seed": seed, "status": "finished", "epochs": [{"score": s} for s in scores]}
            )
    return found


EPOCH = np.arange(1, EPOCHS + 1)
PLATEAU = 0.1 - np.exp(-EPOCH / 4)
SLOW = 0.1 - np.exp(-EPOCH / 30)
OVERFIT = PLATEAU - 0.004 * np.maximum(EPOCH - 15, 0)


@pytest.mark.parametrize(
    ("curve", "rising"), [(SLOW, True), (0.01 * EPOCH, True), (PLATEAU, False), (OVERFIT, False), (0 * EPOCH, False)]
)
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_rising_curves_are_told_from_flat_and_falling_ones(curve, rising, noise):
    assert still_rising(records({"ew": curve, "ema": curve}, noise=noise), EPOCHS, "constant") == rising


@pytest.mark.parametrize("noise", [0.005, 0.05, 0.5])
def test_noise_on_a_plateau_is_hardly_ever_taken_for_a_rise(noise):
    """Twelve methods and four baselines: of 200 such comparisons at most four are told to train longer."""
    generator = np.random.default_rng(1)
    curves = {f"m{number}": PLATEAU for number in range(12)}
    curves |= {f"single:{number}": -1 - np.exp(-EPOCH / 4) for number in range(4)}
    told = sum(still_rising(records(curves, 3, noise, generator), EPOCHS, "constant") for _ in range(200))
    assert told <= 4


def test_one_slow_method_that_could_win_is_enough():
    """What a comparison stopped at 15 epochs says of a slow method: −0.297 there, −0.001 after 40."""
    slow = -0.3 + 0.3 * (1 - np.exp(-(EPOCH - 15) / 8))
    quick = 0.1 - np.exp(-EPOCH[:15] / 1.5)
    curves = {"ew": 0.3 * quick, "uw": quick - 0.02, "ema": slow[:15]}
    assert training_length(records(curves, noise=0.002), 15, "constant").rising == ("ema",)
    curves["ema"] = slow[:15] - 20  # so far behind that it could not catch up
    assert not still_rising(records(curves, noise=0.002), 15, "constant")


def test_baselines_count_if_most_of_them_rise():
    falling = np.exp(-EPOCH / 20)  # an error: its score is its negative
    curves = {"ew": PLATEAU, "single:a": -falling, "single:b": -falling, "single:c": -1 - 0 * EPOCH}
    assert training_length(records(curves), EPOCHS, "constant").rising == ("single:a", "single:b")
    assert not still_rising(records(curves | {"single:b": -1 - 0 * EPOCH}), EPOCHS, "constant")


def test_under_a_falling_rate_a_rise_shows_something_and_flatness_nothing():
    noisy = records({"ew": SLOW, "ema": PLATEAU}, noise=0.005)
    assert training_length(noisy, EPOCHS, "cosine").rising == ("ew",)
    flat = training_length(records({"ew": PLATEAU}, noise=0.01), EPOCHS, "cosine")
    assert (flat.rising, flat.known) == ((), False)
    assert training_length(records({"ew": PLATEAU}, noise=0.01), EPOCHS, "constant").known


def test_few_epochs_runs_that_failed_and_scores_that_are_not_numbers():
    short = training_length(records({"ew": SLOW[:4]}), 4, "constant")
    assert (short.rising, short.known) == ((), False)
    runs = records({"ew": PLATEAU, "nan": math.nan * EPOCH})
    runs.append({"method": "mao", "seed": 0, "status": "diverged", "message": "no", "epochs": []})
    assert not still_rising(runs, EPOCHS, "constant")
    assert not still_rising([], EPOCHS, "constant")
