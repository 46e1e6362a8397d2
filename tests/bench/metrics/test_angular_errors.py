import math

import numpy as np
import pytest
import torch
from merging import assert_merges
from scipy.spatial.transform import Rotation

from equipoise.bench.metrics import AngularErrors
from equipoise.bench.metrics.normals import RESOLUTION


def test_agrees_with_numpy_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.nn.functional.normalize(torch.randn(6, 3, 9, 11, generator=generator), dim=1)
    predictions = 2.5 * labels + torch.randn(labels.shape, generator=generator)
    labels[0, :, :4] = 0
    labels[1, 1, 0] = math.nan
    values = assert_merges(AngularErrors, (predictions, labels), [3, 1, 2])
    truth = labels.movedim(1, -1).reshape(-1, 3).double().numpy()
    found = predictions.movedim(1, -1).reshape(-1, 3).double().numpy()
    valid = np.isfinite(truth).all(1) & (truth != 0).any(1)
    assert valid.sum() == 6 * 99 - 44 - 11
    truth, found = truth[valid], found[valid]
    cosine = (truth * found).sum(1) / np.linalg.norm(truth, axis=1) / np.linalg.norm(found, axis=1)
    angles = np.degrees(np.arccos(cosine))
    assert values["mean"].item() == pytest.approx(angles.mean(), rel=1e-6)
    assert values["median"].item() == pytest.approx(np.median(angles), abs=RESOLUTION)
    for limit in (11.25, 22.5, 30):
        assert values[f"<{limit:g}°"].item() == pytest.approx((angles < limit).mean(), rel=1e-6)


@pytest.mark.parametrize("angle", [0.001, 1.0, 45.0, 90.0, 179.0, 180.0])
def test_known_angles(angle: float) -> None:
    normal = np.array([1.0, 2.0, -2.0]) / 3
    axis = np.cross(normal, [0, 0, 1])
    turned = Rotation.from_rotvec(math.radians(angle) * axis / np.linalg.norm(axis)).apply(normal)
    metric = AngularErrors()
    metric.update(torch.tensor(turned[None] * 7).float(), torch.tensor(normal[None]).float())
    values = metric.compute()
    assert values["mean"].item() == pytest.approx(angle, abs=2e-5)
    assert values["median"].item() == pytest.approx(angle, abs=RESOLUTION)


def test_the_median_keeps_its_resolution_whatever_the_size() -> None:
    angles = np.random.default_rng(0).exponential(12, 200_001).clip(0, 179)
    radians = torch.from_numpy(np.radians(angles))
    predictions = torch.stack([radians.sin(), torch.zeros_like(radians), radians.cos()], 1).float()
    labels = torch.tensor([[0.0, 0.0, 1.0]]).expand_as(predictions)
    metric = AngularErrors()
    for part in range(0, len(angles), 50_000):
        metric.update(predictions[part : part + 50_000], labels[part : part + 50_000])
    assert metric.compute()["median"].item() == pytest.approx(np.median(angles), abs=RESOLUTION)


def test_a_zero_prediction_is_a_right_angle_and_a_broken_one_within_none() -> None:
    up = torch.tensor([[0.0, 0.0, 1.0]])
    metric = AngularErrors()
    metric.update(torch.zeros(1, 3), up)
    assert metric.compute()["mean"] == 90
    assert metric.compute()["<30°"] == 0
    metric.update(torch.full((1, 3), math.nan), up)
    assert metric.compute()["mean"].isnan()
    assert metric.compute()["<30°"] == 0


def test_refuses_another_layout() -> None:
    with pytest.raises(ValueError, match=r"\[B, 3, …\], found \(2, 4, 4, 3\)"):
        AngularErrors().update(torch.ones(2, 4, 4, 3), torch.ones(2, 4, 4, 3))


def test_is_nan_without_a_valid_pixel() -> None:
    metric = AngularErrors()
    metric.update(torch.ones(1, 3, 2), torch.zeros(1, 3, 2))
    assert all(value.isnan() for value in metric.compute().values())
