import pytest
import torch
from torchjd.aggregation import AlignedMTL as PeerAlignedMTL

from equipoise.aggregators import AlignedMTL
from equipoise.testing._jacobians import CASES, sample

EVEN = [case for case in CASES if case[0] not in ("wildly scaled", "shared direction")]
"""But gradients whose Gramian has eigenvalues over more decades than float64 has digits."""


@pytest.mark.parametrize("scale", ["min", "median", "mean"])
@pytest.mark.parametrize(("name", "count"), [case for case in EVEN if case != ("zero rows", 1)])
def test_is_the_mean_of_the_orthogonal_factor(name, count, scale):
    """By the singular values of the Jacobian itself: `J = UΣVᵀ`, and the aligned gradients are `√s UVᵀ`."""
    jacobian = sample(name, count)
    left, values, right = torch.linalg.svd(jacobian, full_matrices=False)
    kept = values > 1e-6 * values[0]
    values = values[kept]
    length = {"min": values[-1], "median": values[len(values) // 2], "mean": values.square().mean().sqrt()}[scale]
    expected = length * (left[:, kept] @ right[kept]).mean(0)
    found = AlignedMTL(scale)(jacobian)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9 * float(values[0]))


@pytest.mark.parametrize(("own", "peer"), [("min", "min"), ("median", "median"), ("mean", "rmse")])
@pytest.mark.parametrize(("name", "count"), EVEN)
def test_equals_torchjd(name, count, own, peer):
    jacobian = sample(name, count)
    expected = PeerAlignedMTL(scale_mode=peer)(jacobian)
    scale = float(jacobian.norm(dim=1).max())
    torch.testing.assert_close(AlignedMTL(own)(jacobian), expected, rtol=1e-6, atol=1e-8 * scale)


def test_preferences_weigh_the_aligned_gradients():
    jacobian = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
    aggregator = AlignedMTL()
    aggregator.bind(["a", "b"])
    aggregator.prefer({"a": 3.0, "b": 1.0})
    with aggregator.step():
        torch.testing.assert_close(aggregator(jacobian), torch.tensor([0.75, 0.25]))
