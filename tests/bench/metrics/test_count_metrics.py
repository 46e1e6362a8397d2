import math

import numpy as np
import pytest
import torch
from merging import assert_merges
from sklearn.metrics import d2_tweedie_score, mean_absolute_error, mean_poisson_deviance

from equipoise.bench.metrics import PoissonErrors, poisson_deviance


def test_errors_agree_with_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(70, generator=generator) * 50 + 0.1
    labels = torch.poisson(means * torch.rand(70, generator=generator), generator=generator) * 1.25
    labels[:5] = 0
    labels[60:] = math.nan
    values = assert_merges(PoissonErrors, (means, labels), [20, 15, 25, 10])
    truth, predictions = (tensor[:60].double().numpy() for tensor in (labels, means))
    assert values["deviance"].item() == pytest.approx(mean_poisson_deviance(truth, predictions), rel=1e-6)
    assert values["D²"].item() == pytest.approx(d2_tweedie_score(truth, predictions, power=1), rel=1e-6)
    assert values["MAE"].item() == pytest.approx(mean_absolute_error(truth, predictions), rel=1e-6)


def test_deviance_is_least_at_the_label_and_its_slope_is_that_of_the_likelihood():
    labels = torch.tensor([0.0, 0.5, 3.0, 400.0], dtype=torch.float64)
    logarithms = torch.tensor([-1.0, 0.3, 1.5, 5.0], dtype=torch.float64, requires_grad=True)
    poisson_deviance(logarithms, labels).sum().backward()
    torch.testing.assert_close(logarithms.grad, 2 * (logarithms.exp() - labels).detach())
    at_label = poisson_deviance(labels[1:].log(), labels[1:])
    np.testing.assert_allclose(at_label, 0, atol=1e-9)


def test_refuses_to_broadcast():
    with pytest.raises(ValueError, match="same shape"):
        PoissonErrors().update(torch.ones(3, 1), torch.ones(3))
