import math

import numpy as np
import pytest
import torch
from merging import assert_merges
from sklearn.metrics import mean_absolute_error, mean_squared_error

from equipoise.bench.metrics import Concordance, RegressionErrors


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(70, 2, generator=generator) * 2 - 1
    predictions = 0.5 * labels + 0.3 * torch.randn(70, 2, generator=generator) + 0.1
    labels[:20, 0] = math.nan
    labels[60:] = math.nan
    return predictions, labels


def test_errors_agree_with_scikit_learn(batch) -> None:
    values = assert_merges(RegressionErrors, batch, [20, 15, 25, 10])
    valid = ~batch[1].isnan()
    predictions, labels = batch[0][valid].double(), batch[1][valid].double()
    assert values["MAE"].item() == pytest.approx(mean_absolute_error(labels, predictions), rel=1e-6)
    assert values["MSE"].item() == pytest.approx(mean_squared_error(labels, predictions), rel=1e-6)


def test_concordance_agrees_with_the_formula(batch) -> None:
    values = assert_merges(lambda: Concordance(2), batch, [20, 15, 25, 10])
    each = []
    for x, y in zip(batch[0].T.double().numpy(), batch[1].T.double().numpy(), strict=True):
        x, y = x[~np.isnan(y)], y[~np.isnan(y)]
        correlation = np.corrcoef(x, y)[0, 1]
        each.append(2 * correlation * x.std() * y.std() / (x.var() + y.var() + (x.mean() - y.mean()) ** 2))
    assert abs(each[0] - each[1]) > 1e-3
    assert values["value"].item() == pytest.approx(np.mean(each), rel=1e-9)


def test_concordance_of_a_prediction_with_itself_is_one() -> None:
    labels = torch.linspace(-1, 1, 50)[:, None]
    metric = Concordance()
    metric.update(labels, labels)
    assert metric.compute().item() == pytest.approx(1, abs=1e-12)
    metric.reset()
    metric.update(torch.zeros_like(labels), labels)
    assert metric.compute() == 0
    metric.reset()
    metric.update(torch.ones_like(labels), torch.ones_like(labels))
    assert metric.compute().isnan()


def test_a_prediction_for_a_missing_label_does_not_matter(batch) -> None:
    predictions, labels = batch
    predictions = predictions.masked_fill(labels.isnan(), math.nan)
    for make in (RegressionErrors, lambda: Concordance(2)):
        clean, broken = make(), make()
        clean.update(*batch)
        broken.update(predictions, labels)
        assert str(clean.compute()) == str(broken.compute())


def test_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="same shape"):
        RegressionErrors().update(torch.zeros(4, 1), torch.zeros(4))
    with pytest.raises(ValueError, match=r"\[B, 2\], found \(4, 3\)"):
        Concordance(2).update(torch.zeros(4, 3), torch.zeros(4, 3))
