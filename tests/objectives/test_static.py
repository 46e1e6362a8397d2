import pytest
import torch

from equipoise.objectives import Static, WeightedSum


@pytest.mark.parametrize("weights", [{"c": 0.0, "a": 2.0, "b": 0.3}, [2.0, 0.3, 0.0], torch.tensor([2.0, 0.3, 0.0])])
def test_weights_are_the_given_ones_whoever_is_present(drive, batches, weights):
    driver = drive(Static(weights))
    expected = {"a": 2.0, "b": 0.3, "c": 0.0}
    for losses in batches:
        value, coefficients, _ = driver.step(losses)
        assert value == pytest.approx(sum(expected[task] * loss for task, loss in losses.items()), rel=1e-7)
        assert coefficients == pytest.approx({task: expected[task] for task in losses}, rel=1e-7)


def test_weights_are_no_state():
    objective = WeightedSum(Static([1.0, 2.0]))
    objective.bind(["a", "b"])
    assert not [name for name in objective.state_dict() if not name.endswith("_extra_state")]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": -1.0}, r"weights\['a'\] must be a finite number ≥ 0, found -1.0"),
        ({"a": float("nan")}, r"weights\['a'\] must be a finite number ≥ 0, found nan"),
        ([1.0, float("inf")], r"weights\[1\] must be a finite number ≥ 0, found inf"),
        ({"a": 0.0, "b": 0.0}, r"at least one weight > 0, found \{'a': 0.0"),
        ([], r"at least one weight > 0, found \[\]"),
    ],
)
def test_bad_weights_are_errors(weights, message):
    with pytest.raises(ValueError, match=message):
        Static(weights)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1.0, "b": 1.0}, "weights: nothing given for task 'c'"),
        ({"a": 1.0, "b": 1.0, "c": 1.0, "depht": 1.0}, "weights: unknown task 'depht'; the tasks are 'a', 'b', 'c'"),
        ([1.0, 2.0], "weights: found 2 for 3 tasks"),
    ],
)
def test_weights_that_do_not_fit_the_tasks_are_errors(drive, weights, message):
    with pytest.raises(ValueError, match=message):
        drive(Static(weights))


def test_tasks_that_do_not_fit_leave_the_objective_free_for_others(drive):
    objective = WeightedSum(Static({"a": 1.0, "b": 3.0}))
    with pytest.raises(ValueError, match="unknown task 'b'"):
        drive(objective, ["a", "bb"])
    assert drive(objective, ["a", "b"]).weights({"a": 1.0, "b": 1.0}) == {"a": 1.0, "b": 3.0}
