"""UPGrad, DualProj and the projections behind them."""

import numpy as np
import pytest
import quadprog
import torch
from torchjd.aggregation import DualProj as PeerDualProj
from torchjd.aggregation import UPGrad as PeerUPGrad
from torchjd.linalg import QuadprogProjector

from equipoise.aggregators import DualProj, UPGrad, _cone
from equipoise.aggregators._cone import multipliers
from equipoise.testing._jacobians import CASES, FULL_RANK, sample


def unit_rows(jacobian):
    norms = jacobian.norm(dim=1, keepdim=True)
    return jacobian / torch.where(norms > 0, norms, 1.0)


def project(vector, rows):
    """Onto `{d : ⟨d, row⟩ ≥ 0}`, in the coordinates of an orthonormal basis of what is spanned, by a general solver."""
    units = unit_rows(rows)
    basis = torch.linalg.svd(torch.cat((units, vector[None] / (vector.norm() + 1e-300))), full_matrices=False).Vh
    size = max(float(vector.norm()), 1e-300)
    target, constraints = (basis @ vector / size).numpy(), (units @ basis.T).numpy()
    some = np.abs(constraints).sum(1) > 0
    if not some.any():
        return vector
    found = quadprog.solve_qp(np.eye(len(target)), target, constraints[some].T, np.zeros(some.sum()))[0]
    return size * torch.from_numpy(found) @ basis


@pytest.mark.parametrize(("name", "count"), [case for case in CASES if case[1] < 40])
def test_upgrad_is_the_mean_of_the_projections(name, count):
    jacobian = sample(name, count)
    expected = torch.stack([project(row, jacobian) for row in jacobian]).mean(0)
    scale = float(jacobian.norm(dim=1).max())
    torch.testing.assert_close(UPGrad()(jacobian), expected, rtol=0, atol=1e-8 * scale)


@pytest.mark.parametrize(("name", "count"), CASES)
def test_dualproj_is_the_projection_of_the_mean(name, count):
    jacobian = sample(name, count)
    scale = float(jacobian.norm(dim=1).max())
    torch.testing.assert_close(DualProj()(jacobian), project(jacobian.mean(0), jacobian), rtol=0, atol=1e-8 * scale)


@pytest.mark.parametrize(("name", "count"), CASES)
def test_the_conditions_of_the_optimum_hold_to_rounding(name, count):
    units = unit_rows(sample(name, count))
    cosines = (units @ units.T).fill_diagonal_(1.0)
    found = multipliers(cosines, cosines)
    assert (found >= 0).all()
    assert torch.minimum(found, found @ cosines + cosines).abs().max() <= 1e-9


@pytest.mark.parametrize(("name", "count"), CASES)
def test_one_by_one_finds_the_same_projections(name, count):
    """Where block pivoting ends, both are exact; where it does not, this takes its place."""
    units = unit_rows(sample(name, count))
    cosines = (units @ units.T).fill_diagonal_(1.0)
    for index in range(0, count, 7):
        one = _cone._one_by_one(cosines, cosines[index])
        every = multipliers(cosines, cosines[index][None])[0]
        torch.testing.assert_close(one @ units, every @ units, rtol=0, atol=1e-8)


def test_more_tasks_than_directions():
    """No direction lowers all losses: nothing remains of any gradient."""
    jacobian = torch.randn(48, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert UPGrad()(jacobian).norm() <= 1e-8
    assert DualProj()(jacobian).norm() <= 1e-8


def test_many_tasks_that_pull_two_ways():
    generator = torch.Generator().manual_seed(1)
    jacobian = torch.randn(100, 300, dtype=torch.float64, generator=generator)
    jacobian[1::3] -= 0.5
    jacobian[::3] += 0.3
    units = unit_rows(jacobian)
    products = jacobian[:4] @ units.T
    found = jacobian[:4] + multipliers(units @ units.T, products) @ units
    expected = torch.stack([project(row, jacobian) for row in jacobian[:4]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


def test_constraints_that_contradict_one_another_have_no_multipliers():
    cosines = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    slopes = torch.tensor([[-1.0, -1.0, -1.0], [-1.0, 1.0, -1.0]], dtype=torch.float64)
    found = multipliers(cosines, slopes)
    assert found[0].isnan().all()
    assert float(found[1, 0] - found[1, 1]) == pytest.approx(1.0)
    assert float(found[1, 2]) == pytest.approx(1.0)


@pytest.mark.parametrize(("name", "count"), [case for case in FULL_RANK if 1 < case[1] < 40])
@pytest.mark.parametrize(("own", "peer"), [(UPGrad, PeerUPGrad), (DualProj, PeerDualProj)])
def test_equals_torchjd(own, peer, name, count):
    """With as little regularization as its solver goes with; it scales the Gramian by its trace."""
    if name == "shared direction":
        return  # rows over four decades, of which its regularization, relative to the trace, hides the short ones
    jacobian = sample(name, count)
    expected = peer(projector=QuadprogProjector(norm_eps=1e-300, reg_eps=1e-12))(jacobian)
    torch.testing.assert_close(own()(jacobian), expected, rtol=0, atol=1e-8 * float(jacobian.norm(dim=1).max()))


@pytest.mark.parametrize("own", [UPGrad, DualProj])
def test_preferences_weigh_the_projections(own):
    jacobian = sample("conflicting", 5)
    preferences = torch.tensor([1.0, 4.0, 0.5, 2.0, 3.0], dtype=torch.float64)
    aggregator = own()
    tasks = list("abcde")
    aggregator.bind(tasks)
    aggregator.prefer(dict(zip(tasks, preferences.tolist(), strict=True)))
    with aggregator.step():
        found = aggregator(jacobian)
    shares = preferences / preferences.sum()
    if own is UPGrad:
        expected = shares @ torch.stack([project(row, jacobian) for row in jacobian])
    else:
        expected = project(shares @ jacobian, jacobian)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
