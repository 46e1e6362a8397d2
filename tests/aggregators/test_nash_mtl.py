import pytest
import torch
from torchjd.aggregation import NashMTL as PeerNashMTL

from equipoise.aggregators import NashMTL
from equipoise.testing._jacobians import CASES, FULL_RANK, SAMPLES, sample


def defect(gramian, alpha):
    return (alpha * (gramian @ alpha) - 1).abs().max()


@pytest.mark.parametrize(
    ("name", "count"),
    [(name, count) for name, count in CASES if name not in ("zero rows", "opposite rows", "low rank")],
)
def test_solves_the_equation(name, count):
    jacobian = sample(name, count)
    gramian = jacobian @ jacobian.T
    alpha = NashMTL().weights(gramian, torch.ones(count))
    assert (alpha > 0).all()
    assert defect(gramian, alpha) <= 1e-9
    torch.testing.assert_close(float((alpha @ jacobian).norm()), count**0.5)


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in ("zero rows", "opposite rows", "low rank")])
def test_closed_form_for_two_tasks(name):
    jacobian = sample(name, 2)
    (a, b), (_, c) = jacobian @ jacobian.T
    expected = torch.stack((1 / (a + b * (a / c).sqrt()).sqrt(), 1 / (c + b * (c / a).sqrt()).sqrt()))
    torch.testing.assert_close(NashMTL().weights(jacobian @ jacobian.T, torch.ones(2)), expected, rtol=1e-10, atol=0)


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem:UserWarning")
@pytest.mark.parametrize(
    ("name", "count"), [case for case in FULL_RANK if case[0] != "shared direction" and case[1] > 1]
)
def test_near_torchjd_and_more_exact(name, count):
    """TorchJD stops once `Gα − 1/α` has norm 1e-3, or α moves by less than 1e-6, in a Gramian of norm 1."""
    jacobian = sample(name, count)
    gramian = jacobian @ jacobian.T
    peer = PeerNashMTL(n_tasks=count, max_norm=0.0, optim_niter=100)
    theirs = peer.weighting(jacobian).double()
    alpha = NashMTL().weights(gramian, torch.ones(count))
    assert defect(gramian, theirs) < 1e-2
    assert defect(gramian, alpha) <= defect(gramian, theirs) + 1e-11
    # α_k is off by its defect over the Gramian's least eigenvalue in units of α (at least 1): generously tenfold
    torch.testing.assert_close(alpha, theirs, rtol=10 * float(defect(gramian, theirs)) + 1e-9, atol=0)


def test_tasks_with_no_gradient_do_not_bargain():
    jacobian = sample("zero rows", 5)
    alpha = NashMTL().weights(jacobian @ jacobian.T, torch.ones(5))
    rest = jacobian[1::2]
    expected = NashMTL().weights(rest @ rest.T, torch.ones(2))
    assert (alpha[::2] == 0).all()
    torch.testing.assert_close(alpha[1::2], expected)


def test_cancelling_gradients_get_bounded_weights():
    jacobian = torch.tensor([[1.0, 0.0], [-5.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    alpha = NashMTL().weights(jacobian @ jacobian.T, torch.ones(3))
    assert (alpha * jacobian.norm(dim=1) <= 1.1e6).all()
    torch.testing.assert_close(alpha @ jacobian, torch.tensor([0.0, 1.0]).double(), rtol=1e-6, atol=1e-6)
