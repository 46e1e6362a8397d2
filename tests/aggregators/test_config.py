import pytest
import torch
from torchjd.aggregation import ConFIG as PeerConFIG

from equipoise.aggregators import ConFIG
from equipoise.testing._jacobians import CASES, FULL_RANK, sample


@pytest.mark.parametrize(("name", "count"), FULL_RANK)
def test_all_cosines_are_equal_and_the_length_is_the_sum_of_the_parts(name, count):
    jacobian = sample(name, count)
    combined = ConFIG()(jacobian)
    projections = jacobian @ combined / combined.norm()
    cosines = projections / jacobian.norm(dim=1)
    assert (cosines > 0).all()
    torch.testing.assert_close(cosines, cosines.mean().expand(count), rtol=1e-7, atol=0)
    torch.testing.assert_close(combined.norm(), projections.sum(), rtol=1e-7, atol=0)


@pytest.mark.parametrize(("name", "count"), CASES)
def test_equals_the_formula_on_the_unit_gradients(name, count):
    jacobian = sample(name, count)
    norms = jacobian.norm(dim=1)
    units = jacobian[norms > 0] / norms[norms > 0, None]
    direction = torch.linalg.lstsq(units, torch.ones(len(units), 1, dtype=torch.float64), driver="gelsd").solution[:, 0]
    if direction.norm() < 1e-9 or not len(units):
        assert not ConFIG()(jacobian).any()
        return
    direction = direction / direction.norm()
    expected = (jacobian @ direction).sum() * direction
    scale = float(norms.sum())
    torch.testing.assert_close(ConFIG()(jacobian), expected, rtol=1e-6, atol=1e-8 * scale)


@pytest.mark.parametrize(("name", "count"), [case for case in CASES if case[0] != "opposite rows"])
def test_equals_torchjd(name, count):
    """But where opposite gradients leave a direction of rounding alone."""
    jacobian = sample(name, count)
    scale = float(jacobian.norm(dim=1).sum())
    torch.testing.assert_close(ConFIG()(jacobian), PeerConFIG()(jacobian), rtol=1e-6, atol=1e-8 * scale)


def test_opposite_gradients_leave_nothing():
    assert not ConFIG()(torch.tensor([[1.0, 2.0], [-2.0, -4.0]])).any()


def test_preferences_are_the_ratio_of_the_cosines():
    jacobian = sample("random", 3)
    aggregator = ConFIG()
    aggregator.bind(["a", "b", "c"])
    aggregator.prefer({"a": 1.0, "b": 3.0, "c": 0.5})
    with aggregator.step():
        combined = aggregator(jacobian)
    cosines = jacobian @ combined / jacobian.norm(dim=1)
    torch.testing.assert_close(cosines / cosines[0], torch.tensor([1.0, 3.0, 0.5]).double())
