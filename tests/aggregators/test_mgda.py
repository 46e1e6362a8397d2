import itertools

import pytest
import torch
from scipy.optimize import minimize
from torchjd.aggregation import MGDA as PeerMGDA

from equipoise.aggregators import MGDA
from equipoise.testing._jacobians import CASES, SAMPLES, sample


def min_norm_point(jacobian):
    """The shortest of the min-norm points of the affine hulls of all subsets that lie in the convex hull."""
    best = None
    for size in range(1, len(jacobian) + 1):
        for subset in itertools.combinations(range(len(jacobian)), size):
            rows = jacobian[list(subset)]
            differences = (rows[1:] - rows[:1]).T
            solution = torch.linalg.lstsq(differences, -rows[0][:, None], driver="gelsd").solution[:, 0]
            weights = torch.cat((1 - solution.sum()[None], solution))
            if size == 1 or (weights >= -1e-12).all():
                point = weights @ rows
                if best is None or point.norm() < best.norm():
                    best = point
    return best


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("name", SAMPLES)
def test_is_the_shortest_over_all_faces(name, count):
    jacobian = sample(name, count)
    expected = min_norm_point(jacobian)
    scale = float(jacobian.norm(dim=1).max())
    # a hull that contains 0 is known to the root of float64's precision
    torch.testing.assert_close(
        MGDA()(jacobian), expected, rtol=1e-9, atol=3e-8 * scale if expected.norm() < 1e-7 * scale else 1e-12 * scale
    )


@pytest.mark.parametrize(("name", "count"), [*CASES, ("conflicting", 300)])
def test_optimality_conditions(name, count):
    """`⟨u_k, d⟩ ≥ ‖d‖²/‖g_k‖`, with equality where `w_k > 0`, relative to `‖d‖`."""
    jacobian = sample(name, count)
    aggregator = MGDA()
    weights = aggregator.weights(jacobian @ jacobian.T, torch.ones(count, dtype=torch.float64))
    assert (weights >= 0).all()
    torch.testing.assert_close(float(weights.sum()), 1.0)
    combined = weights @ jacobian
    norms = jacobian.norm(dim=1)
    if combined.norm() <= 2e-8 * (weights @ norms):
        return  # 0 is in the hull: the least possible
    slack = (jacobian @ combined - combined @ combined) / norms / combined.norm()
    assert slack.min() >= -1e-8
    assert (weights * norms / (weights @ norms) * slack).abs().max() <= 1e-8


@pytest.mark.parametrize(("name", "count"), CASES)
def test_no_worse_than_torchjd_and_as_near_as_convexity_says(name, count):
    """Frank–Wolfe stops early. A hull point p has `‖p − d‖² ≤ ‖p‖² − ‖d‖²` for the min-norm point d."""
    jacobian = sample(name, count)
    combined, peer = MGDA()(jacobian), PeerMGDA(epsilon=1e-6, max_iters=2000)(jacobian)
    rounding = 1e-12 * float(jacobian.norm(dim=1).max()) ** 2
    gap = float(peer @ peer - combined @ combined)
    assert gap >= -rounding
    assert float((peer - combined).square().sum()) <= gap + rounding


@pytest.mark.parametrize("name", SAMPLES)
def test_equals_torchjd_for_two_tasks(name):
    """For two rows the first Frank–Wolfe step is exact, up to the rounding of its own Gramian's differences."""
    jacobian = sample(name, 2)
    scale = float(jacobian.norm(dim=1).max())
    expected = PeerMGDA()(jacobian)
    torch.testing.assert_close(MGDA()(jacobian), expected, rtol=1e-7, atol=3e-8 * scale)


def test_equals_scipy_where_enumeration_is_too_long():
    jacobian = sample("conflicting", 40)
    gramian = (jacobian @ jacobian.T).numpy()
    solved = minimize(
        lambda w: 0.5 * w @ gramian @ w,
        [1 / 40] * 40,
        jac=lambda w: gramian @ w,
        bounds=[(0, 1)] * 40,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: w * 0 + 1},
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    weights = MGDA().weights(jacobian @ jacobian.T, torch.ones(40, dtype=torch.float64))
    torch.testing.assert_close(weights, torch.from_numpy(solved.x), rtol=1e-5, atol=1e-7)


def test_normalised_gradients_only_find_the_weights():
    jacobian = sample("conflicting", 3) * torch.tensor([[1.0], [30.0], [0.1]], dtype=torch.float64)
    losses = torch.tensor([2.0, 0.5, 7.0], dtype=torch.float64)
    norms = jacobian.norm(dim=1)
    scales = {"none": torch.ones(3), "l2": norms, "loss": losses, "loss+": losses * norms}
    for normalization, scale in scales.items():
        aggregator = MGDA(normalization)
        weights = aggregator.weights(jacobian @ jacobian.T, losses)
        normalised = jacobian / scale[:, None]
        torch.testing.assert_close(weights @ normalised, min_norm_point(normalised), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(aggregator(jacobian, losses), weights @ jacobian)
        assert aggregator.requires_positive == (normalization in ("loss", "loss+"))


def test_tasks_with_no_gradient_share_the_weights():
    weights = MGDA().weights(torch.diag(torch.tensor([0.0, 2.0, 0.0]).double()), torch.ones(3))
    assert weights.tolist() == [0.5, 0.0, 0.5]
