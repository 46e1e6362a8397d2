import pytest
import torch
from torchjd.aggregation import IMTLG as PeerIMTLG

from equipoise.aggregators import IMTLG
from equipoise.testing._jacobians import CASES, FULL_RANK, sample


@pytest.mark.parametrize(
    ("name", "count"), [(name, count) for name, count in CASES if name not in ("low rank", "opposite rows")]
)
def test_equal_projections(name, count):
    jacobian = sample(name, count)
    alpha = IMTLG().weights(jacobian @ jacobian.T, torch.ones(count))
    norms = jacobian.norm(dim=1)
    present = norms > 0
    if present.any():
        torch.testing.assert_close(float(alpha.sum()), 1.0)
        projections = (jacobian @ (alpha @ jacobian))[present] / norms[present]
        torch.testing.assert_close(projections, projections[:1].expand_as(projections), rtol=1e-8, atol=0)
    assert (alpha[~present] == 0).all()


@pytest.mark.parametrize(("name", "count"), FULL_RANK)
def test_closed_form_of_the_paper(name, count):
    """`α_{2:K} = g_1 Uᵀ (D Uᵀ)⁻¹`, D = g_1 − g_k, U = u_1 − u_k, `α_1 = 1 − Σ α_k`."""
    jacobian = sample(name, count)
    if count == 1:
        return
    units = jacobian / jacobian.norm(dim=1, keepdim=True)
    differences, directions = jacobian[:1] - jacobian[1:], units[:1] - units[1:]
    rest = torch.linalg.solve((differences @ directions.T).T, directions @ jacobian[0])
    expected = torch.cat((1 - rest.sum()[None], rest))
    alpha = IMTLG().weights(jacobian @ jacobian.T, torch.ones(count))
    torch.testing.assert_close(alpha, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "count"),
    [(n, k) for n, k in CASES if n in ("random", "conflicting", "zero rows", "duplicate rows", "tiny", "huge")],
)
def test_equals_torchjd(name, count):
    """Duplicates leave a direction of weights open, along which the regularization amplifies rounding to 1e-6."""
    jacobian = sample(name, count)
    if name == "tiny":  # TorchJD takes a sum of weights below 1e-12 for 0
        expected = 1e-12 * PeerIMTLG()(1e12 * jacobian)
    elif name == "huge":
        expected = 1e12 * PeerIMTLG()(1e-12 * jacobian)
    else:
        expected = PeerIMTLG()(jacobian)
    tolerance = 1e-5 if name == "duplicate rows" else 1e-9
    torch.testing.assert_close(IMTLG()(jacobian), expected, rtol=tolerance, atol=tolerance * float(expected.norm()))


@pytest.mark.parametrize("count", [2, 3, 40])
def test_opposite_rows_give_zero(count):
    """No direction has equal projections on a row and on its opposite, save 0."""
    jacobian = sample("opposite rows", count)
    assert IMTLG()(jacobian).norm() <= 1e-6 * jacobian.norm(dim=1).min()
