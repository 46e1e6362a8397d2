import pytest
import torch
from torchjd.aggregation import GradDrop as PeerGradDrop

from equipoise.aggregators import GradDrop
from equipoise.testing._jacobians import CASES, sample


def draws_of(seed, *shapes, dtype=torch.float64):
    outer = torch.Generator().manual_seed(seed)
    inner = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=outer)))
    return [torch.rand(shape, dtype=dtype, generator=inner) for shape in shapes]


def drop(rows, draw, leaks):
    """Element by element, as the paper's Algorithm 1 says it."""
    result = torch.zeros_like(rows[0])
    for index in range(rows.shape[1]):
        column = rows[:, index].tolist()
        size = sum(abs(value) for value in column)
        purity = 0.5 * (1 + sum(column) / size) if size else 0.5
        for value, leak in zip(column, leaks, strict=True):
            mask = value > 0 if purity > draw[index] else value < 0
            result[index] += (leak + (1 - leak) * mask) * value
    return result


@pytest.mark.parametrize("leak", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(("name", "count"), CASES)
def test_equals_the_formula_element_by_element(name, count, leak):
    jacobian = sample(name, count)
    (draw,) = draws_of(7, 100)
    expected = drop(jacobian, draw, [leak] * count)
    # with full leak all is added up, in another order
    atol = 1e-14 * float(jacobian.abs().sum(0).max())
    torch.testing.assert_close(GradDrop(leak, seed=7)(jacobian), expected, rtol=1e-12, atol=atol)


@pytest.mark.parametrize(("name", "count"), [case for case in CASES if case[0] != "zero rows"])
def test_equals_torchjd_for_the_same_draws(name, count, monkeypatch):
    jacobian = sample(name, count)
    leaks = torch.linspace(0, 1, count, dtype=torch.float64)
    tasks = [f"task {k}" for k in range(count)]
    aggregator = GradDrop(dict(zip(tasks, leaks.tolist(), strict=True)), seed=3)
    aggregator.bind(tasks)
    with aggregator.step():
        combined = aggregator(jacobian)
    (draw,) = draws_of(3, 100)
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: draw)
    expected = PeerGradDrop(leak=leaks)(jacobian)
    atol = 1e-14 * float(jacobian.abs().sum(0).max())
    torch.testing.assert_close(combined, expected, rtol=1e-12, atol=atol)


def test_leaks_by_task_with_a_task_missing_and_one_unnamed():
    jacobian = sample("conflicting", 3)
    aggregator = GradDrop({"c": 0.5, "a": 0.9}, seed=2)
    aggregator.bind(["a", "b", "c"])
    with aggregator.step(torch.tensor([1, 2])) as step:
        combined = aggregator(jacobian[1:])
        step.commit()
    (draw,) = draws_of(2, 100)
    torch.testing.assert_close(combined, drop(jacobian[1:], draw, [0.0, 0.5]), rtol=1e-12, atol=1e-14)
    assert not any("leak" in name for name in aggregator.state_dict())


def test_several_parameters_and_tasks_that_do_not_reach_one():
    first, second = sample("conflicting", 3), sample("random", 3)
    rows = [[first[0].view(4, 25), None], [first[1].view(4, 25), second[1]], [None, second[2]]]
    combined, weights = GradDrop(seed=9).aggregate(rows, torch.ones(3))
    draw_first, draw_second = draws_of(9, (4, 25), (100,))
    assert weights is None
    torch.testing.assert_close(
        combined[0], drop(first[:2], draw_first.flatten(), [0.0, 0.0]).view(4, 25), rtol=1e-12, atol=1e-14
    )
    torch.testing.assert_close(combined[1], drop(second[1:], draw_second, [0.0, 0.0]), rtol=1e-12, atol=1e-14)


def test_positive_parts_pass_as_often_as_the_purity_says():
    column = torch.tensor([3.0, -1.0, 0.5, -2.0], dtype=torch.float64)
    jacobian = column[:, None].expand(4, 40_000)
    combined = GradDrop(seed=0)(jacobian)
    positive = combined == 3.5
    assert ((combined == -3.0) | positive).all()
    purity = 3.5 / 6.5
    assert abs(positive.double().mean() - purity) < 4 * (purity * (1 - purity) / 40_000) ** 0.5


def test_bfloat16_is_added_up_in_float32():
    jacobian = sample("conflicting", 40).bfloat16()
    combined = GradDrop(seed=4)(jacobian)
    (draw,) = draws_of(4, 100, dtype=torch.float32)
    assert combined.dtype == torch.bfloat16
    expected = drop(jacobian.double(), draw, [0.0] * 40)
    torch.testing.assert_close(combined.double(), expected, rtol=2**-8, atol=0)
