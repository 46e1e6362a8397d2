import pytest
import torch
from torchjd.aggregation import CAGrad as PeerCAGrad

from equipoise.aggregators import CAGrad
from equipoise.testing._jacobians import CASES, FULL_RANK, sample

RADII = (1e-3, 0.1, 0.5, 0.9, 2.0)


@pytest.mark.parametrize("c", RADII)
@pytest.mark.parametrize(("name", "count"), [*CASES, ("conflicting", 300)])
def test_is_the_best_in_the_ball(name, count, c):
    """By duality: for w on the simplex, `⟨g_w, g_0⟩ + c‖g_0‖‖g_w‖` bounds `min_k ⟨g_k, d⟩` over the ball from above.

    Certified on units that are scaled to each row (the rows' scales differ by up to 24 decades): stationarity
    `⟨u_k, d⟩ − ν/‖g_k‖ ≥ 0`, with equality where the weight is positive, relative to `‖g_0‖`.
    """
    jacobian = sample(name, count)
    mean = jacobian.mean(0)
    gramian = jacobian @ jacobian.T
    weights = CAGrad(c).weights(gramian, torch.ones(count))
    pulls = weights - 1 / count
    assert (pulls >= -1e-15).all()
    norms = jacobian.norm(dim=1)
    radius = c * mean.norm()
    pull = pulls @ jacobian
    assert pull.norm() <= radius * (1 + 1e-7)
    if (pulls == 0).all():  # 0 is in the hull: nothing to gain in some direction
        return
    assert pull.norm() >= radius * (1 - 1e-7)
    present = norms > 0
    combined = mean + pull
    projections = (jacobian[present] @ combined) / norms[present]
    shares = (pulls * norms)[present]
    bound = (shares @ projections) / (shares / norms[present]).sum()
    slack = (projections - bound / norms[present]) / mean.norm()
    assert slack.min() >= -1e-8
    assert (shares / shares.sum() * slack).abs().max() <= 1e-8


@pytest.mark.parametrize("c", RADII)
@pytest.mark.parametrize(("name", "count"), CASES)
def test_no_worse_than_torchjd(name, count, c):
    jacobian = sample(name, count)
    peer = PeerCAGrad(c=c)(jacobian)
    if not peer.any():  # its convention for rows that cancel; ours is the mean
        return
    mean = jacobian.mean(0)
    if (peer - mean).norm() > c * mean.norm() * (1 + 1e-6):
        return  # its solution is outside the ball
    combined = CAGrad(c)(jacobian)
    scale = mean.norm() * jacobian.norm(dim=1).max()
    assert (jacobian @ combined).min() >= (jacobian @ peer).min() - 1e-8 * scale


@pytest.mark.parametrize("c", RADII)
@pytest.mark.parametrize(("name", "count"), [case for case in FULL_RANK if case[0] != "shared direction"])
def test_equals_torchjd(name, count, c):
    """CLARABEL stops at a relative gap of 1e-8 in the objective, and the norm's curvature turns it into 1e-4 in d."""
    jacobian = sample(name, count)
    expected = PeerCAGrad(c=c)(jacobian)
    torch.testing.assert_close(CAGrad(c)(jacobian), expected, rtol=0, atol=3e-4 * float(jacobian.mean(0).norm()))


@pytest.mark.parametrize(("rescale", "divisor"), [("none", 1.0), ("1+c2", 1.16), ("1+c", 1.4)])
def test_rescale(rescale, divisor):
    jacobian = sample("conflicting", 5)
    torch.testing.assert_close(CAGrad(0.4, rescale=rescale)(jacobian) * divisor, CAGrad(0.4)(jacobian))


@pytest.mark.parametrize(("name", "count"), CASES)
def test_without_a_ball_it_is_the_mean(name, count):
    jacobian = sample(name, count)
    torch.testing.assert_close(CAGrad(c=0.0)(jacobian), jacobian.mean(0))


@pytest.mark.parametrize("c", [1e-6, 1e-9, 1e-12, 1e-20, 1e-200])
@pytest.mark.parametrize(("name", "count"), CASES)
def test_a_ball_as_small_as_rounding_does_no_harm(name, count, c):
    jacobian = sample(name, count)
    mean = jacobian.mean(0)
    rounding = 1e-8 * float(jacobian.norm(dim=1).max())  # the root of float64's: the radius is one of a difference
    assert (CAGrad(c)(jacobian) - mean).norm() <= 2 * c * mean.norm() + rounding


def test_opposite_gradients_give_the_mean():
    jacobian = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(CAGrad()(jacobian), jacobian.mean(0))
    torch.testing.assert_close(CAGrad()(jacobian[:2]), torch.zeros(2).double())


def test_a_task_with_no_gradient_only_counts_in_the_mean():
    jacobian = sample("conflicting", 3)
    padded = torch.cat((jacobian, torch.zeros(1, 100).double()))
    mean = padded.mean(0)
    # the same ball around the same centre, without the row of zeros: c‖g_0‖ and g_0 scale alike
    torch.testing.assert_close(CAGrad()(padded), 0.75 * CAGrad()(jacobian), rtol=1e-9, atol=1e-12)
    assert (CAGrad()(padded) - mean).norm() > 0.1 * mean.norm()
