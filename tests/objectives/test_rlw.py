import math

import pytest
import torch

from equipoise.objectives import RLW


def softmax(values):
    exponentials = [math.exp(value) for value in values]
    return [value / sum(exponentials) for value in exponentials]


@pytest.mark.parametrize("seed", [0, 1, 2**61])
def test_weights_are_the_softmax_of_normal_numbers_of_the_seed(drive, batches, seed):
    driver = drive(RLW(seed=seed))
    generator = torch.Generator().manual_seed(seed)
    for losses in batches:
        z = torch.randn(len(losses), generator=generator, dtype=torch.float64).tolist()
        weights = driver.weights(losses)
        assert list(weights.values()) == pytest.approx(softmax(z), rel=1e-14)
        assert sum(weights.values()) == pytest.approx(1, rel=1e-14)


def test_without_a_seed_the_default_generator_decides(drive, batches):
    def run(seed):
        torch.manual_seed(seed)
        driver = drive(RLW())
        return [driver.weights(losses) for losses in batches]

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_training_does_not_touch_the_default_generator(drive, batches):
    driver = drive(RLW(seed=0))
    before = torch.get_rng_state()
    driver.weights(batches[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_logits_are_standard_normal(drive):
    driver = drive(RLW(seed=5), ["a", "b"])
    losses = {"a": 1.0, "b": 1.0}
    logits = [math.log(w["a"] / w["b"]) for w in (driver.weights(losses) for _ in range(4000))]
    mean = sum(logits) / 4000
    variance = sum((x - mean) ** 2 for x in logits) / 4000
    assert abs(mean) < 4 * math.sqrt(2 / 4000)  # z_a − z_b ~ N(0, 2): four standard errors
    assert abs(variance - 2) < 4 * 2 * math.sqrt(2 / 4000)
