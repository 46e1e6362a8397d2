import pytest
import torch
from torchjd.aggregation import Krum as PeerKrum

from equipoise.aggregators import Krum
from equipoise.testing._jacobians import CASES, sample


def krum(rows, byzantine, selected):
    """From the distances of the gradients themselves, task by task."""
    count = len(rows)
    byzantine = min(byzantine, count - 3)
    scores = []
    for k in range(count):
        distances = sorted(float((rows[k] - rows[j]).square().sum()) for j in range(count) if j != k)
        scores.append(sum(distances[: count - byzantine - 2]))
    taken = sorted(range(count), key=lambda k: (round(scores[k], 9), k))[:selected]
    return rows[taken].mean(0)


@pytest.mark.parametrize(("byzantine", "selected"), [(0, 1), (1, 1), (2, 3), (9, 99)])
@pytest.mark.parametrize("count", [3, 5, 40])
@pytest.mark.parametrize("name", ["random", "conflicting", "shared direction"])
def test_equals_the_formula(name, count, byzantine, selected):
    jacobian = sample(name, count)
    torch.testing.assert_close(Krum(byzantine, selected)(jacobian), krum(jacobian, byzantine, selected))


@pytest.mark.parametrize(("name", "count"), [case for case in CASES if case[0] in ("random", "shared direction")])
def test_equals_torchjd_with_one_neighbour(name, count):
    """It adds up distances that are not squared: of one it is the same."""
    if count < 4:
        return  # the two tasks nearest to one another have the same score
    jacobian = sample(name, count)
    both = Krum(count - 3, selected=2)(jacobian)
    torch.testing.assert_close(both, PeerKrum(count - 3, n_selected=2)(jacobian))


@pytest.mark.parametrize("count", [1, 2])
def test_the_mean_of_one_or_two(count):
    jacobian = sample("random", count)
    torch.testing.assert_close(Krum()(jacobian), jacobian.mean(0))


def test_outliers_cannot_lead_away():
    jacobian = torch.randn(9, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3
    expected = Krum(2)(jacobian)
    jacobian[[1, 6]] = 1e6
    found = Krum(2)(jacobian)
    assert (found - expected).norm() < 12
    assert any(torch.equal(found, row) for row in jacobian)
