import pytest
import torch
from scipy.stats import trim_mean
from torchjd.aggregation import TrimmedMean as PeerTrimmedMean

from equipoise.aggregators import TrimmedMean
from equipoise.testing._jacobians import CASES, sample


@pytest.mark.parametrize("trim", [0, 1, 2])
@pytest.mark.parametrize(("name", "count"), CASES)
def test_equals_scipy_and_torchjd(name, count, trim):
    jacobian = sample(name, count)
    found = TrimmedMean(trim)(jacobian)
    cut = min(trim, (count - 1) // 2)
    atol = 1e-13 * float(jacobian.abs().max())
    expected = torch.from_numpy(trim_mean(jacobian.numpy(), (cut + 0.5) / count if cut else 0.0, axis=0))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=atol)
    torch.testing.assert_close(found, PeerTrimmedMean(cut)(jacobian), rtol=1e-12, atol=atol)


def test_tasks_that_the_device_leaves_out_are_not_there():
    jacobian = sample("random", 5)
    aggregator = TrimmedMean()
    aggregator.bind(list("abcde"))
    for kept in ([0, 1, 3, 4], [1, 2, 4], [0, 3], [2], []):
        usable = torch.zeros(5, dtype=torch.bool)
        usable[kept] = True
        with aggregator.step(usable=usable):
            found = aggregator(torch.where(usable[:, None], jacobian, 0.0))
        expected = TrimmedMean()(jacobian[kept]) if kept else torch.zeros(100, dtype=torch.float64)
        torch.testing.assert_close(found, expected)


def test_a_task_that_does_not_reach_a_parameter_has_zeros_there():
    rows = sample("random", 4)
    (first, second), weights = TrimmedMean().aggregate(
        [[rows[0].view(10, 10), None], [rows[1].view(10, 10), rows[1]], [None, rows[2]], [rows[3].view(10, 10), None]],
        torch.ones(4),
    )
    assert weights is None
    zero = torch.zeros(100, dtype=torch.float64)
    expected = TrimmedMean()(torch.stack((rows[0], rows[1], zero, rows[3])))
    torch.testing.assert_close(first, expected.view(10, 10))
    torch.testing.assert_close(second, TrimmedMean()(torch.stack((zero, rows[1], rows[2], zero))))


def test_preferences_multiply_the_gradients():
    jacobian = sample("random", 3)
    aggregator = TrimmedMean()
    aggregator.bind(["a", "b", "c"])
    aggregator.prefer({"a": 1.0, "b": 30.0, "c": 0.5})
    with aggregator.step():
        found = aggregator(jacobian)
    torch.testing.assert_close(found, TrimmedMean()(jacobian * torch.tensor([[1.0], [30.0], [0.5]])))
