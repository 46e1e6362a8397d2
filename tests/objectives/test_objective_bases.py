"""WeightedSum and GeometricMean, and what every objective owes its callers."""

import io
import math

import pytest
import torch
from catalogue import METHODS, SIGNED

from equipoise.objectives import DTP, EMA, Equal, GeometricMean, Static, WeightedSum

ACCURACIES = [{"a": 0.1, "b": 0.5, "c": 0.2}, {"b": 0.7}, {"a": 0.3, "c": 1.0}]


@pytest.fixture(params=METHODS, ids=str)
def make(request):
    return METHODS[request.param]


@pytest.fixture
def script(events):
    """All that can happen to an objective, in the order of a training loop."""
    calls = []
    accuracies = iter(ACCURACIES * 3)
    for event in events:
        if event is None:
            calls += [("observe", next(accuracies)), ("end_epoch",)]
            calls += [("observe_validation", {"a": 2.0, "b": 1.0 + len(calls), "c": 0.3})]
        else:
            calls += [("step", event), ("after_step", {task: 0.9 * loss + 0.01 for task, loss in event.items()})]
    return calls


def play(driver, calls, **keywords):
    results = []
    for name, *arguments in calls:
        result = getattr(driver, name)(*arguments, **keywords)
        if result is not None:
            results.append(result)
            with torch.no_grad():
                gradients = [gradient for by_task in result[2].values() for gradient in by_task]
                for parameter, gradient in zip(driver.parameters, gradients, strict=True):
                    parameter -= 0.02 * gradient
    return results


def state(driver):
    return {key: value["generator"] if isinstance(value, dict) and value else value
            for key, value in driver.objective.state_dict().items()}  # fmt: skip


def equal(left, right):
    return left.keys() == right.keys() and all(
        torch.equal(value, right[key]) if isinstance(value, torch.Tensor) else value == right[key]
        for key, value in left.items()
    )


def test_resuming_anywhere_is_bit_identical(drive, make, script):
    torch.manual_seed(0)
    whole = drive(make())
    start = state(whole)
    checkpoints = []
    results = []
    for call in script:
        file = io.BytesIO()
        torch.save(whole.objective.state_dict(), file)
        checkpoints.append((len(results), file))
        results += play(whole, [call])
    assert len(start) == len(state(whole))
    for position in (1, 2, 7, 8, 20, 33, len(script) - 1):
        resumed = drive(make())
        done, file = checkpoints[position]
        file.seek(0)
        resumed.objective.load_state_dict(torch.load(file, weights_only=True))
        assert play(resumed, script[position:]) == results[done:]
        assert equal(state(resumed), state(whole))


def test_nothing_changes_without_a_commit(drive, make, script):
    driver = drive(make())
    play(driver, script[:21])
    before = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in state(driver).items()}
    for name, argument in script[21:27]:
        getattr(driver, name)(argument, commit=False)
    driver.end_epoch(commit=False)
    assert equal(state(driver), before)


def test_absent_tasks_keep_their_state(drive, make, script):
    driver = drive(make())
    for name, *arguments in script:
        buffers, learned = list(driver.objective.buffers()), driver.parameters
        before = [buffer.clone() for buffer in buffers], [parameter.item() for parameter in learned]
        play(driver, [(name, *arguments)])
        if arguments:
            absent = [index for index, task in enumerate("abc") if task not in arguments[0]]
            for buffer, old in zip(buffers, before[0], strict=True):
                assert torch.equal(buffer[absent], old[absent])
            for index in absent if learned else ():
                assert learned[index].item() == before[1][index]


@pytest.mark.parametrize("name", METHODS)
def test_results_are_finite_and_state_is_never_nan(drive, name, script):
    driver = drive(METHODS[name]())
    for value, coefficients, gradients in play(driver, script):
        numbers = [value, *coefficients.values(), *(g for row in gradients.values() for g in row)]
        assert all(map(math.isfinite, numbers))
        assert name in SIGNED or all(coefficient >= 0 for coefficient in coefficients.values())
    assert all(tensor.isfinite().all() for tensor in driver.objective.buffers())


@pytest.mark.parametrize("name", [name for name in METHODS if "rlw" not in name])  # it draws in the tasks' order
def test_task_order_does_not_matter(drive, name, script):
    make = METHODS[name]
    forward, backward = play(drive(make()), script), play(drive(make(), ["c", "b", "a"]), script)
    for (value, weights, _), (other_value, other_weights, _) in zip(forward, backward, strict=True):
        assert other_value == pytest.approx(value, rel=1e-9)
        assert other_weights == pytest.approx(weights, rel=1e-9)


def test_float32_steps_give_float32(drive, make):
    objective = drive(make()).objective
    with objective.step(torch.tensor([0, 2]), torch.float32):
        assert objective(torch.tensor([1.0, 2.0])).dtype == torch.float32


def test_losses_are_bounded_below_by_zero_or_not_at_all():
    assert EMA().lower_bounds() == 0
    assert Equal().lower_bounds() == -math.inf


def test_weighted_sum_takes_over_what_its_weighting_needs():
    assert WeightedSum(EMA()).requires_positive
    assert not WeightedSum(Equal()).requires_positive


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.2, 5.0, 0.0], [1e-8, 1e-8, 3e-8]])
def test_geometric_mean_follows_the_formula(drive, batches, weights):
    driver = drive(GeometricMean(Static(weights)))
    named = dict(zip("abc", weights, strict=True))
    for losses in batches:
        total = sum(named[task] for task in losses)
        shares = {task: named[task] / total if total else 1 / len(losses) for task in losses}
        mean = math.prod(loss ** shares[task] for task, loss in losses.items())
        value, slopes, _ = driver.step(losses)
        assert value == pytest.approx(mean, rel=1e-12)
        assert slopes == pytest.approx({t: shares[t] * mean / loss for t, loss in losses.items()}, rel=1e-12)


def test_geometric_mean_of_equal_weights_is_gls_over_the_tasks_present(drive, batches):
    driver = drive(GeometricMean(Equal()))
    for losses in batches:
        expected = math.prod(losses.values()) ** (1 / len(losses))
        assert driver.step(losses)[0] == pytest.approx(expected, rel=1e-12)


def test_geometric_mean_is_scale_invariant(drive):
    driver = drive(GeometricMean(Static([1.0, 2.0, 3.0])))
    _, small, _ = driver.step({"a": 1.0, "b": 2.0, "c": 3.0})
    value, large, _ = driver.step({"a": 1e6, "b": 2.0, "c": 3.0})
    assert large["a"] * 1e6 / value == pytest.approx(1 / 6)
    assert large["b"] / large["c"] == pytest.approx(small["b"] / small["c"])


def test_geometric_mean_does_not_overflow(drive):
    value, _, _ = drive(GeometricMean(Equal())).step({"a": 1e200, "b": 1e200, "c": 1e200})
    assert value == pytest.approx(1e200, rel=1e-12)


def test_geometric_mean_needs_positive_losses():
    assert GeometricMean(Equal()).requires_positive


def test_all_zero_weights_count_as_equal(drive):
    driver = drive(GeometricMean(DTP()))
    driver.observe({"a": 1.0, "b": 1.0, "c": 1.0})
    assert driver.step({"a": 1.0, "b": 2.0, "c": 4.0})[0] == pytest.approx(2)


def test_use_outside_a_step_is_an_error():
    with pytest.raises(RuntimeError, match="GeometricMean is used outside a step"):
        GeometricMean(Static([1.0]))(torch.ones(1))
