"""Epochs, accuracies, and what `after_step` does."""

import math

import pytest
import torch
from networks import TASKS, Network, assert_same, batch, snapshot

import equipoise as eq


def losses_of(**values):
    return {task: torch.tensor(value, requires_grad=True) * 1.0 for task, value in values.items()}


def weights_of(balancer, **values):
    return [w.item() for w in balancer.backward(losses_of(**values)).values()]


def test_end_epoch_rolls_dwa():
    balancer = eq.Balancer(["a", "b"], eq.DWA(temperature=2.0))
    assert weights_of(balancer, a=4.0, b=1.0) == [1.0, 1.0]
    balancer.end_epoch()
    assert weights_of(balancer, a=2.0, b=1.0) == [1.0, 1.0]
    weights_of(balancer, a=4.0, b=2.0)
    balancer.end_epoch()
    rates = [3.0 / 4.0, 1.5 / 1.0]
    total = sum(math.exp(rate / 2) for rate in rates)
    assert weights_of(balancer, a=1.0, b=1.0) == pytest.approx([2 * math.exp(rate / 2) / total for rate in rates])


def test_end_epoch_gives_dtp_its_accuracies():
    balancer = eq.Balancer(["a", "b"], eq.DTP(gamma=1.0))
    assert balancer.needs_accuracies
    assert not eq.Balancer(["a", "b"]).needs_accuracies
    assert weights_of(balancer, a=1.0, b=1.0) == [1.0, 1.0]
    balancer.end_epoch({"b": torch.tensor(0.9), "a": 0.5})
    expected = [-(1 - k) * math.log(k) for k in (0.5, 0.9)]
    assert weights_of(balancer, a=1.0, b=1.0) == pytest.approx(expected)
    balancer.end_epoch({"a": 1.0})
    kappa = 0.1 * 1.0 + 0.9 * 0.5
    assert weights_of(balancer, a=1.0, b=1.0) == pytest.approx([-(1 - kappa) * math.log(kappa), expected[1]])


@pytest.mark.parametrize(
    ("metrics", "error", "words"),
    [
        ({"a": 0.5, "x": 0.5}, ValueError, "metrics: unknown task 'x'; the tasks are 'a', 'b', 'c'"),
        ({"a": 0.5, "b": 1.5}, ValueError, "accuracy of task 'b' must be .*≤ 1, found 1.5"),
        ({"a": 0.5, "b": -0.1}, ValueError, "accuracy of task 'b' must be .*≥ 0.*found -0.1"),
        ({"a": 0.5, "b": torch.tensor(torch.nan)}, ValueError, "accuracy of task 'b'"),
        ([0.5, 0.5], TypeError, "metrics must be a mapping from task to accuracy, found list"),
    ],
)
def test_bad_metrics_change_nothing(metrics, error, words):
    model = Network()
    balancer = eq.Balancer(TASKS, eq.GeometricMean(eq.DTP()))
    balancer.backward(model.losses(batch(0)))
    balancer.end_epoch({"a": 0.2})
    before = snapshot(model, balancer)
    with pytest.raises(error, match=words):
        balancer.end_epoch(metrics)
    assert_same(snapshot(model, balancer), before)


def test_after_step_moves_famo_by_its_formula():
    balancer = eq.Balancer(["a", "b"], eq.FAMO(lr=0.1, weight_decay=0.0))
    assert balancer.needs_after_step
    first = weights_of(balancer, a=2.0, b=4.0)
    assert first == pytest.approx([2 / 3, 1 / 3])  # ½/L_k over their sum
    balancer.after_step({"a": torch.tensor(1.0), "b": torch.tensor(4.0)})
    # the gradient's first Adam step is lr times its sign: a improved, so its logit falls and b's rises
    share = math.exp(-0.1) / (math.exp(-0.1) + math.exp(0.1))
    raw = [share / 2.0, (1 - share) / 4.0]
    assert weights_of(balancer, a=2.0, b=4.0) == pytest.approx([r / sum(raw) for r in raw], rel=1e-6)


def test_after_step_checks_and_changes_nothing_then():
    balancer = eq.Balancer(["a", "b"], eq.FAMO())
    weights_of(balancer, a=2.0, b=4.0)
    before = snapshot(balancer)
    for bad in ({"x": torch.tensor(1.0)}, {}, {"a": torch.tensor(torch.nan)}, {"a": torch.ones(2)}):
        with pytest.raises(ValueError):
            balancer.after_step(bad)
    with pytest.raises(TypeError, match="losses must be a mapping from task to scalar tensor, found NoneType"):
        balancer.after_step(None)
    assert_same(snapshot(balancer), before)


def test_a_loss_below_its_bound_is_left_out_and_named():
    model = Network()
    balancer = eq.Balancer(TASKS, eq.FAMO(lower_bounds={"a": -2.0, "b": 1000.0}))
    with pytest.warns(UserWarning, match=r"the loss of task 'b' is .* not above its lower bound: FAMO"):
        weights = balancer.backward(model.losses(batch(0)))
    assert list(weights) == ["a", "c"]


def test_after_step_is_free_to_call_for_others():
    balancer = eq.Balancer(["a", "b"], eq.EMA())
    before = snapshot(balancer)[0]
    assert balancer.after_step({"a": torch.tensor(1.0)}) is None
    assert_same(snapshot(balancer)[0], before)
