"""CoBa beside its formula, recomputed in plain Python from all that was ever observed."""

import math
import random

import pytest
import torch

import equipoise as eq
from equipoise.objectives import CoBa, coba

TASKS = ["a", "b", "c"]


def softmax(numbers):
    top = max(numbers)
    exponentials = [math.exp(number - top) for number in numbers]
    return [value / sum(exponentials) for value in exponentials]


def fitted(values):
    """The slope of the least-squares line through the values, one a step."""
    places = range(len(values))
    middle, mean = sum(places) / len(values), sum(values) / len(values)
    across = sum((place - middle) * (value - mean) for place, value in zip(places, values, strict=True))
    return across / sum((place - middle) ** 2 for place in places)


def slopes_of(history, warmup, window):
    """The slopes of a task's validation losses, from the end of the warm-up on."""
    ratios = [loss / history[0] for loss in history]
    return [fitted(ratios[:end][-window:]) for end in range(warmup, len(ratios) + 1)]


def expected(histories, warmup, window, temperature, present=TASKS, horizon=None):
    """The weights by the paper's equations; histories are those of tasks observed together."""
    if any(len(histories[task]) < warmup for task in present):
        return {task: 1 / len(present) for task in present}
    slopes = {task: slopes_of(history, warmup, window) for task, history in histories.items()}
    now = {task: slopes[task][-1] for task in present}
    relative = softmax([len(present) * slope / sum(map(abs, now.values())) for slope in now.values()])
    absolute = []
    for task in present:
        recent = slopes[task][-window:]
        absolute.append(-len(recent) * recent[-1] / sum(map(abs, recent)))
    steepest = [max(at_once) for at_once in zip(*slopes.values(), strict=True)][-(horizon or 10**9) :]
    steps, total = len(steepest), sum(map(abs, steepest))
    share = softmax([-temperature * steps * slope / total for slope in steepest])[-1]
    factor = min(1.0, steps * share)
    mixed = [factor * r + (1 - factor) * a for r, a in zip(relative, softmax(absolute), strict=True)]
    return dict(zip(present, mixed, strict=True))


@pytest.fixture
def curves():
    """Validation losses at very different scales: a falls fast and levels off, b falls slowly, c turns and rises."""
    numbers = random.Random(3)
    found = []
    for step in range(24):
        smooth = {"a": math.exp(-step / 4), "b": 50 * (1 - step / 60), "c": 0.02 * (1 + ((step - 8) / 8) ** 2)}
        found.append({task: loss * numbers.uniform(0.95, 1.05) for task, loss in smooth.items()})
    return found


@pytest.mark.parametrize(("warmup", "window", "temperature"), [(2, 2, 5.0), (3, 8, 5.0), (6, 4, 0.3), (100, 200, 5.0)])
def test_weights_follow_the_formula(drive, curves, warmup, window, temperature):
    driver = drive(CoBa(warmup, window, temperature))
    histories = {task: [] for task in TASKS}
    for index, losses in enumerate(curves):
        present = ("abc", "ab", "c")[index % 3]
        found = driver.weights(dict.fromkeys(present, 1.0))
        assert found == pytest.approx(expected(histories, warmup, window, temperature, present), rel=1e-10)
        driver.observe_validation(losses)
        for task, loss in losses.items():
            histories[task].append(loss)
        found = driver.weights(losses)
        assert found == pytest.approx(expected(histories, warmup, window, temperature), rel=1e-10)
        assert sum(found.values()) == pytest.approx(1)


def test_the_slower_weighs_more_and_the_one_that_turns_less(drive, curves):
    """In convergence the relative score decides; in divergence the absolute one."""
    driver = drive(CoBa(warmup=3, history=6))
    for losses in curves[:4]:
        driver.observe_validation(losses)
    weights = driver.weights(curves[0])
    assert weights["b"] > weights["c"] > 0
    assert weights["b"] > weights["a"]
    for losses in curves[4:]:
        driver.observe_validation(losses)
    weights = driver.weights(curves[0])
    assert weights["c"] == min(weights.values())


def test_losses_that_stand_still_weigh_equally(drive):
    driver = drive(CoBa(warmup=2))
    for _ in range(5):
        driver.observe_validation({"a": 0.1, "b": 7.0, "c": 3.3})
    assert driver.weights({"a": 1.0, "b": 2.0, "c": 3.0}) == pytest.approx(dict.fromkeys(TASKS, 1 / 3), rel=1e-15)


def test_a_task_that_is_not_observed_keeps_its_history(drive, curves):
    """The others go on without it, and where it is present without a history, weights are equal."""
    driver = drive(CoBa(warmup=3, history=5))
    histories = {task: [] for task in "ab"}
    for losses in curves[:9]:
        driver.observe_validation({task: losses[task] for task in "ab"})
        for task in "ab":
            histories[task].append(losses[task])
    assert driver.weights({"a": 1.0, "b": 1.0}) == pytest.approx(expected(histories, 3, 5, 5.0, "ab"), rel=1e-10)
    assert driver.weights(dict.fromkeys(TASKS, 1.0)) == dict.fromkeys(TASKS, 1 / 3)
    before = driver.weights({"a": 1.0, "b": 1.0})
    driver.observe_validation({"c": 2.0})
    assert driver.weights({"a": 1.0, "b": 1.0}) == before


def test_a_history_begins_with_the_first_loss_above_zero(drive, curves):
    driver, other = drive(CoBa(warmup=2, history=4)), drive(CoBa(warmup=2, history=4))
    driver.observe_validation({"a": 0.0, "b": -1.0, "c": 0.0})
    for losses in [*curves[:6], {"a": 0.0, "b": -1.0, "c": 0.1}]:
        driver.observe_validation(losses)
        other.observe_validation(losses)
    assert driver.weights(curves[0]) == pytest.approx(other.weights(curves[0]), rel=1e-14)


def test_the_divergence_factor_looks_at_as_many_slopes_as_the_state_has(drive, curves, monkeypatch):
    monkeypatch.setattr(coba, "HORIZON", 7)
    driver = drive(CoBa(warmup=2, history=4))
    for losses in curves:
        driver.observe_validation(losses)
    histories = {task: [losses[task] for losses in curves] for task in TASKS}
    bounded = expected(histories, 2, 4, 5.0, horizon=7)
    assert driver.weights(curves[0]) == pytest.approx(bounded, rel=1e-10)
    assert bounded != pytest.approx(expected(histories, 2, 4, 5.0), rel=1e-3)


@pytest.mark.parametrize("options", [{"warmup": 1}, {"history": 1}, {"warmup": 2.5}, {"history": True}])
def test_a_slope_needs_two_losses(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be an integer ≥ 2, found"):
        CoBa(**options)


def test_temperature_is_positive():
    with pytest.raises(ValueError, match="temperature must be a finite number > 0, found 0"):
        CoBa(temperature=0)


# --- through the Balancer -------------------------------------------------------------------------------------------


def of(losses):
    return {task: torch.tensor(loss, requires_grad=True) * 1.0 for task, loss in losses.items()}


def weights_of(balancer):
    return {task: weight.item() for task, weight in balancer.backward(of(dict.fromkeys(balancer.tasks, 1.0))).items()}


def test_the_balancer_takes_validation_losses_in_any_order_and_dtype(curves):
    balancer = eq.Balancer(TASKS, CoBa(warmup=2, history=4))
    assert balancer.needs_validation_losses
    for losses in curves[:8]:
        given = {task: torch.tensor(losses[task], dtype=torch.float64) for task in "cab"}
        balancer.observe_validation(given)
    histories = {task: [losses[task] for losses in curves[:8]] for task in TASKS}
    assert weights_of(balancer) == pytest.approx(expected(histories, 2, 4, 5.0), rel=1e-10)


def test_a_validation_loss_that_is_not_finite_is_an_error_or_does_not_count(curves):
    for check_finite in (None, False):
        balancer = eq.Balancer(TASKS, CoBa(warmup=2, history=4), check_finite=check_finite)
        for losses in curves[:5]:
            balancer.observe_validation(of(losses))
        before = {name: value.clone() for name, value in balancer.state_dict().items()}
        bad = of({**curves[5], "b": math.nan})
        if check_finite is None:
            with pytest.raises(ValueError, match="The loss of task 'b' is nan"):
                balancer.observe_validation(bad)
        else:
            balancer.observe_validation(bad)
        assert all(torch.equal(value, before[name]) for name, value in balancer.state_dict().items())


def test_a_task_added_later_begins_a_history_of_its_own(curves):
    old = eq.Balancer(["b", "a"], CoBa(warmup=2, history=4))
    for losses in curves[:6]:
        old.observe_validation(of({task: losses[task] for task in "ab"}))
    new = eq.Balancer(TASKS, CoBa(warmup=2, history=4))
    new.load_state_dict(old.state_dict(), tasks="intersection")
    both = {task: torch.ones((), requires_grad=True) * 1.0 for task in "ab"}
    known = {task: weight.item() for task, weight in old.backward(dict(both)).items()}
    both = {task: torch.ones((), requires_grad=True) * 1.0 for task in "ab"}
    assert {task: weight.item() for task, weight in new.backward(both).items()} == pytest.approx(known, rel=1e-15)
    assert weights_of(new) == pytest.approx(dict.fromkeys(TASKS, 1 / 3))
    with pytest.raises(ValueError, match=r"ratios' is a tensor of shape \(2, 4\), expected a tensor of shape \(2, 9\)"):
        eq.Balancer(["b", "a"], CoBa(warmup=2, history=9)).load_state_dict(old.state_dict(), tasks="intersection")


def test_others_only_check_validation_losses():
    balancer = eq.Balancer(TASKS, eq.EMA())
    assert not balancer.needs_validation_losses
    before = {name: value.clone() for name, value in balancer.state_dict().items()}
    balancer.observe_validation({"a": torch.tensor(-1.0)})
    assert all(torch.equal(value, before[name]) for name, value in balancer.state_dict().items())
    with pytest.raises(ValueError, match="unknown task 'x'"):
        balancer.observe_validation({"x": torch.tensor(1.0)})
