import math

import numpy as np
import pytest
import torch
from merging import assert_merges

from equipoise.bench.metrics import DepthErrors


def test_agrees_with_the_formulas_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(5, 1, 8, 6, generator=generator) * 9 + 0.5
    predictions = labels * (1 + 0.6 * torch.randn(labels.shape, generator=generator))
    labels[0, 0, :3] = 0
    labels[1, 0, 0] = math.nan
    labels[2, 0, 0] = math.inf
    labels[3, 0, 0, 0] = -1
    values = assert_merges(DepthErrors, (predictions, labels), [2, 1, 2])
    pairs = [
        (p, t)
        for p, t in zip(predictions.flatten().tolist(), labels.flatten().tolist(), strict=True)
        if math.isfinite(t) and t > 0
    ]
    assert len(pairs) == 240 - 18 - 6 - 6 - 1
    assert any(p <= 0 for p, _ in pairs)
    assert values["abs"].item() == pytest.approx(np.mean([abs(p - t) for p, t in pairs]), rel=1e-6)
    assert values["rel"].item() == pytest.approx(np.mean([abs(p - t) / t for p, t in pairs]), rel=1e-6)
    for name, factor in {"δ<1.25": 1.25, "δ<1.25²": 1.25**2, "δ<1.25³": 1.25**3}.items():
        share = np.mean([p > 0 and max(p / t, t / p) < factor for p, t in pairs])
        assert values[name].item() == pytest.approx(share, rel=1e-6)


@pytest.mark.parametrize("prediction", [0.0, -1.0, -math.inf, math.nan, math.inf])
def test_a_prediction_that_is_no_depth_is_within_no_factor(prediction: float) -> None:
    metric = DepthErrors()
    metric.update(torch.tensor([prediction]), torch.tensor([1.0]))
    assert metric.compute()["δ<1.25³"] == 0


def test_many_pixels_lose_no_digits() -> None:
    metric = DepthErrors()
    labels = torch.ones(1000)
    for _ in range(2000):
        metric.update(labels + 0.1, labels)
    assert metric.compute()["abs"].item() == pytest.approx(float(torch.tensor(1.1) - 1), rel=1e-9)


def test_refuses_shapes_that_would_broadcast() -> None:
    with pytest.raises(ValueError, match=r"found predictions \(2, 1, 3, 3\) and labels \(2, 3, 3\)"):
        DepthErrors().update(torch.ones(2, 1, 3, 3), torch.ones(2, 3, 3))


def test_is_nan_without_a_valid_pixel() -> None:
    metric = DepthErrors()
    metric.update(torch.ones(3), torch.zeros(3))
    assert all(value.isnan() for value in metric.compute().values())


def test_falls_back_to_float32_on_a_device_without_float64() -> None:
    def move(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.float64:
            raise TypeError("no float64 here")
        return tensor.clone()

    metric = DepthErrors()
    metric.update(torch.tensor([2.0]), torch.tensor([4.0]))
    metric._apply(move)
    metric.update(torch.tensor([4.0]), torch.tensor([4.0]))
    assert metric.absolute.dtype == torch.float32
    assert metric.compute()["abs"] == 1
    metric.reset()
    assert metric.absolute.dtype == torch.float32
