"""What `GramianAggregator` and `Normalized` do for all Gramian methods."""

import math

import pytest
import torch

from equipoise.aggregators import IMTLG, MGDA, CAGrad, GradNorm, GramianAggregator, NashMTL, PCGrad
from equipoise.aggregators._normalized import Normalized, row_norms
from equipoise.testing._jacobians import SAMPLES, sample


class Recorder(GramianAggregator):
    """Gives the losses as weights, and keeps what it was called with."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def weights(self, gramian, losses):
        self.calls.append((gramian, losses))
        return losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("losses_dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_weights_are_found_in_float64_on_the_host(dtype, losses_dtype):
    gramian = torch.tensor([[2.0, 0.1], [0.1, 3.0]], dtype=dtype)
    losses = torch.tensor([0.7, 1.5], dtype=losses_dtype)
    aggregator = Recorder()
    with aggregator.solved(gramian, losses) as (weights, state):
        assert state is not None
    ((seen, values),) = aggregator.calls
    assert seen.dtype == values.dtype == torch.float64
    assert seen.device == values.device == torch.device("cpu")
    assert torch.equal(seen, gramian.double())
    assert torch.equal(values, losses.to(dtype).double())
    assert torch.equal(weights, losses.to(dtype))


@pytest.mark.parametrize("name", ["random", "zero rows", "opposite rows"])
@pytest.mark.parametrize(
    "method",
    [IMTLG, MGDA, lambda: MGDA("l2"), lambda: MGDA("loss+"), CAGrad, lambda: CAGrad(c=0), NashMTL, PCGrad, GradNorm],
)
def test_weights_are_float64_and_leave_the_gramian_alone(method, name):
    jacobian = sample(name, 5)
    gramian = jacobian @ jacobian.T
    before = gramian.clone()
    aggregator = method()
    aggregator.bind(["a", "b", "c", "d", "e"])
    with aggregator.step():
        weights = aggregator.weights(gramian, torch.ones(5, dtype=torch.float64))
    assert weights.dtype == torch.float64
    assert weights.shape == (5,)
    assert torch.equal(gramian, before)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_weights_are_looked_for_where_the_gramian_is_not_finite(value):
    gramian = torch.eye(3)
    gramian[0, 1] = gramian[1, 0] = value
    aggregator = Recorder()
    with aggregator.solved(gramian, torch.ones(3)) as (weights, state):
        assert state is None  # there is nothing to commit
    assert weights.dtype == torch.float32
    assert weights.shape == (3,)
    assert weights.isnan().all()
    assert not aggregator.calls


def test_a_loss_that_is_not_finite_is_the_methods_own_affair():
    with Recorder().solved(torch.eye(2), torch.tensor([math.inf, 1.0])) as (weights, _):
        assert weights.tolist() == [math.inf, 1.0]


def test_tasks_that_take_no_part_are_left_out_and_keep_their_state():
    """As with `present`, which the host knows."""
    gramian = sample("random", 4)
    gramian, losses = gramian @ gramian.T, torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    masked, restricted = GradNorm(), GradNorm()
    for aggregator in (masked, restricted):
        aggregator.bind(list("abcde"))
    kept = [0, 1, 3]
    usable = torch.tensor([True, True, False, True])
    for factor in (1.0, 1.7):
        with masked.solved(gramian, losses * factor, [0, 1, 3, 4], usable) as (found, state):
            state.commit()
        with restricted.solved(gramian[kept][:, kept], (losses * factor)[kept], [0, 1, 4]) as (expected, state):
            state.commit()
        assert found[2] == 0
        assert torch.equal(found[kept], expected)
    for one, other in zip(masked.buffers(), restricted.buffers(), strict=True):
        assert torch.equal(one, other)
    with masked.solved(gramian, losses, [0, 1, 3, 4], torch.zeros(4, dtype=torch.bool)) as (found, state):
        assert state is None
        assert not found.any()


def test_state_stays_on_the_host():
    aggregator = GradNorm()
    aggregator.bind(["a", "b"])
    aggregator.to("meta").half()
    assert {buffer.device.type for buffer in aggregator.buffers()} == {"cpu"}
    assert aggregator.weight.dtype == torch.float64
    torch.nn.Sequential(aggregator).to("meta")
    assert {buffer.device.type for buffer in aggregator.buffers()} == {"cpu"}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("count", [1, 4, 40])
def test_norms_and_cosines_are_those_of_the_rows(name, count):
    jacobian = sample(name, count)
    norms = jacobian.norm(dim=1)
    rows = Normalized(jacobian @ jacobian.T)
    torch.testing.assert_close(row_norms(jacobian @ jacobian.T), norms, rtol=1e-12, atol=0)
    assert torch.equal(rows.zero, norms == 0)
    units = jacobian / torch.where(norms > 0, norms, 1.0)[:, None]
    expected = (units @ units.T).fill_diagonal_(1.0)
    torch.testing.assert_close(rows.cosines, expected, rtol=0, atol=1e-12)
    present = norms > 0
    torch.testing.assert_close(rows.norms[present], norms[present], rtol=1e-12, atol=0)
    if present.any():
        torch.testing.assert_close(rows.norms[~present], norms[present].min().expand(int((~present).sum())))


def test_rows_that_are_all_zero_count_as_orthogonal_units():
    rows = Normalized(torch.zeros(3, 3, dtype=torch.float64))
    assert rows.zero.all()
    assert torch.equal(rows.norms, torch.ones(3, dtype=torch.float64))
    assert torch.equal(rows.cosines, torch.eye(3, dtype=torch.float64))


def test_rounding_below_zero_on_the_diagonal_is_a_row_of_zeros():
    assert Normalized(torch.diag(torch.tensor([-1e-30, 4.0], dtype=torch.float64))).zero.tolist() == [True, False]
