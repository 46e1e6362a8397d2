import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torchjd.aggregation import FairGrad as PeerFairGrad

from equipoise.aggregators import FairGrad, NashMTL
from equipoise.testing._jacobians import CASES, FULL_RANK, sample

ALPHAS = (0.5, 1.0, 2.0, 10.0)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(
    ("name", "count"),
    [(name, count) for name, count in CASES if name not in ("zero rows", "opposite rows", "low rank", "wildly scaled")],
)
def test_solves_the_equation(name, count, alpha):
    jacobian = sample(name, count)
    weights = FairGrad(alpha).weights(jacobian @ jacobian.T, torch.ones(count))
    assert (weights > 0).all()
    torch.testing.assert_close(jacobian @ (weights @ jacobian), weights.pow(-1 / alpha), rtol=1e-7, atol=0)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_is_the_fairest_direction_of_its_length(count, alpha):
    """By a general optimizer, over directions: the weights do not come into it."""
    jacobian = sample("conflicting", count)[:, :8]
    found = FairGrad(alpha)(jacobian).numpy()
    rows, length = jacobian.numpy(), np.linalg.norm(found)

    def unfairness(direction):
        gains = rows @ direction * (length / np.linalg.norm(direction))
        if (gains <= 0).any():
            return 1e9
        return -np.log(gains).sum() if alpha == 1 else -(gains ** (1 - alpha)).sum() / (1 - alpha)

    best = minimize(unfairness, found + 0.05 * length * np.sin(np.arange(8)), method="Nelder-Mead", options=OPTIONS).x
    direction = best / np.linalg.norm(best)
    np.testing.assert_allclose(direction, found / length, atol=2e-4)


OPTIONS = {"maxiter": 20_000, "maxfev": 20_000, "xatol": 1e-9, "fatol": 1e-13, "adaptive": True}


@pytest.mark.parametrize(("name", "count"), [case for case in CASES if case[0] not in ("opposite rows", "low rank")])
def test_alpha_one_is_nash_mtl(name, count):
    jacobian = sample(name, count)
    torch.testing.assert_close(FairGrad(1.0)(jacobian), NashMTL()(jacobian), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("name", "count"), [case for case in FULL_RANK if case[0] == "random" and case[1] < 40])
def test_near_torchjd(name, count, alpha):
    """SciPy's least squares stop at a relative change of 1e-8."""
    jacobian = sample(name, count) / 10
    torch.testing.assert_close(FairGrad(alpha)(jacobian), PeerFairGrad(alpha)(jacobian), rtol=1e-4, atol=1e-5)


def test_tasks_with_no_gradient_take_no_part():
    jacobian = sample("zero rows", 5)
    weights = FairGrad(2.0).weights(jacobian @ jacobian.T, torch.ones(5))
    rest = jacobian[1::2]
    assert (weights[::2] == 0).all()
    torch.testing.assert_close(weights[1::2], FairGrad(2.0).weights(rest @ rest.T, torch.ones(2)))
