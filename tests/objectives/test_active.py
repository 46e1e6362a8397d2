"""Tasks that take no part, though present: on an accelerator, which they are may be known to the device alone."""

import math
import random

import pytest
import torch
from catalogue import METHODS
from conftest import TASKS

import equipoise.objectives
from equipoise._active import Active
from equipoise.objectives import EMA, FAMO, Equal, GeometricMean, Objective, WeightedSum, Weighting

BASES = {"Objective", "Weighting", "WeightedSum", "GeometricMean"}
RANDOM = ("rlw", "rlw-g")
NAN = float("nan")


@pytest.fixture
def pair(drive):
    """Two drivers of the same method that have drawn the same seed."""

    def made(make):
        torch.manual_seed(0)
        first = drive(make())
        torch.manual_seed(0)
        return first, drive(make())

    return made


def state(driver):
    """All numbers that the method keeps, in one vector, and its generators' states."""
    buffers = [buffer.double().flatten() for buffer in driver.objective.buffers()]
    learned = [parameter.detach().double().reshape(1) for parameter in driver.parameters]
    generators = [m.generator.get_state() for m in driver.objective.task_modules() if m.generator is not None]
    return torch.cat([torch.zeros(0), *buffers, *learned]), generators


def assert_same_state(first, second, **tolerance):
    (numbers, generators), (others, other_generators) = state(first), state(second)
    torch.testing.assert_close(numbers, others, **tolerance)
    assert all(map(torch.equal, generators, other_generators))


def learn(driver, gradients):
    with torch.no_grad():
        flat = [gradient for by_task in gradients.values() for gradient in by_task]
        for parameter, gradient in zip(driver.parameters, flat, strict=True):
            parameter -= 0.1 * gradient


def subset(numbers, tasks):
    return {task for task in tasks if numbers.random() < 0.6}


@pytest.mark.parametrize("name", [name for name in METHODS if name not in RANDOM])
@pytest.mark.parametrize("seed", range(2))
def test_a_task_that_takes_no_part_is_as_one_that_is_left_out(pair, name, seed):
    masked, left_out = pair(METHODS[name])
    numbers = random.Random(seed)
    pending = set()  # tasks that `after_step` can move
    sizes = set()
    for index in range(48):
        present = {0: "abc", 1: "ab", 2: "c"}.get(index % 5, "abc")
        losses = {task: numbers.uniform(0.1, 3.0) * 10 ** TASKS.index(task) for task in present}
        usable = subset(numbers, present)
        sizes.add(len(usable))
        before = [masked.objective.snapshot(), *state(masked)]
        value, coefficients, gradients = masked.step(losses, usable=usable)
        assert math.isfinite(value)
        if usable:
            expected = left_out.step({task: losses[task] for task in losses if task in usable})
            assert value == pytest.approx(expected[0], rel=1e-12)
            assert coefficients == pytest.approx(dict.fromkeys(losses, 0.0) | expected[1], rel=1e-12, abs=0)
            assert gradients == {name: pytest.approx(row, rel=1e-12, abs=0) for name, row in expected[2].items()}
            learn(left_out, expected[2])
        else:
            assert set(coefficients.values()) == {0.0}
            assert all(gradient == 0 for row in gradients.values() for gradient in row)
            numbers_after, generators = state(masked)
            assert torch.equal(numbers_after, before[1])
            assert all(map(torch.equal, generators, before[2]))
        learn(masked, gradients)

        pending |= usable
        after = {task: numbers.uniform(0.7, 1.2) * loss for task, loss in losses.items()}
        usable = set(present) if index % 2 else subset(numbers, present)
        masked.after_step(after, usable=None if index % 4 == 1 else usable)
        moved = usable & pending
        pending -= moved
        if moved:
            left_out.after_step({task: after[task] for task in after if task in moved})
        if index % 7 == 3:
            accuracies = {task: numbers.random() for task in "abc" if index > 20 or task != "b"}
            for driver in (masked, left_out):
                driver.observe(accuracies)
                driver.end_epoch()
                driver.observe_validation(accuracies)
        assert_same_state(masked, left_out, rtol=1e-11, atol=1e-12)
    assert sizes == {0, 1, 2, 3}


@pytest.mark.parametrize("name", METHODS)
def test_a_mask_that_holds_all_tasks_changes_no_bit(pair, name, batches):
    masked, plain = pair(METHODS[name])
    for losses in batches:
        assert masked.step(losses, usable="abc") == plain.step(losses)
        masked.after_step(losses, usable="abc")
        plain.after_step(losses)
        assert_same_state(masked, plain, rtol=0, atol=0)


@pytest.mark.parametrize("name", METHODS)
def test_float32_steps_stay_float32(drive, name):
    objective = drive(METHODS[name]()).objective
    with objective.step([0, 2], torch.float32, torch.tensor([True, False])):
        losses = torch.tensor([2.0, 1.0], requires_grad=True)
        value = objective(losses)
        assert value.dtype == torch.float32
        assert torch.autograd.grad(value, losses)[0][1] == 0


def test_the_tests_and_masks_cover_every_objective():
    classes = {type(module).__name__ for make in METHODS.values() for module in make().modules()}
    assert set(equipoise.objectives.__all__) - BASES <= classes
    assert all(make().masked for make in METHODS.values())


def test_masked_is_what_a_class_says_of_its_own_formula():
    class Normalised(EMA):
        def forward(self, losses):
            weights = super().forward(losses)
            return weights / weights.sum()

    class Declared(Normalised):
        masked = True

    assert not Normalised.masked
    assert Declared.masked
    assert not Objective.masked
    assert not Weighting.masked
    assert not WeightedSum(Normalised()).masked
    assert not GeometricMean(Normalised()).masked
    assert GeometricMean(Equal()).masked


def test_weights_of_tasks_that_take_no_part_do_not_matter(drive):
    class Broken(Weighting):
        masked = True

        def forward(self, losses):
            return torch.tensor([1.0, NAN, math.inf], dtype=torch.float64)

    for wrap in (WeightedSum, GeometricMean):
        _, coefficients, _ = drive(wrap(Broken())).step({"a": 5.0, "b": 2.0, "c": 2.0}, usable="a")
        assert coefficients == {"a": pytest.approx(1), "b": 0, "c": 0}


def test_famo_needs_no_logarithm_of_a_task_that_takes_no_part(drive):
    """The loss that stands in for an unusable one, 1, can be at or below the task's bound."""
    driver = drive(FAMO(lower_bounds={"b": 1.0, "c": 5.0}))
    _, coefficients, _ = driver.step({"a": 2.0, "b": 0.5, "c": 4.0}, usable="a")
    assert coefficients == {"a": pytest.approx(1), "b": 0, "c": 0}
    driver.after_step({"a": 1.0, "b": 0.5, "c": 4.0}, usable="a")
    assert all(buffer.isfinite().all() for buffer in driver.objective.buffers())


def test_famo_moves_no_task_that_took_no_part_in_the_step(drive):
    driver, without = drive(FAMO(lr=0.3)), drive(FAMO(lr=0.3))
    losses, after = {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 0.2, "b": 0.5, "c": 0.9}
    driver.step(losses, usable="ac")
    driver.after_step(after)
    without.step({"a": 1.0, "c": 1.0})
    without.after_step({"a": 0.2, "c": 0.9})
    assert driver.objective.logits.tolist() == pytest.approx(without.objective.logits.tolist(), rel=1e-13)
    assert driver.objective.logits[1] == 0
    assert driver.objective.logits[0] < -0.1


@pytest.mark.parametrize("name", RANDOM)
def test_random_weights_are_drawn_for_all_and_shared_by_those_that_take_part(pair, name):
    masked, whole = pair(METHODS[name])
    numbers = random.Random(1)
    for index in range(30):
        losses = {task: numbers.uniform(0.1, 3.0) for task in ("ab" if index % 4 == 3 else "abc")}
        usable = subset(numbers, losses)
        before = masked.objective.weighting.generator.get_state()
        value, coefficients, _ = masked.step(losses, usable=usable)
        if not usable:
            assert set(coefficients.values()) == {0.0}
            assert torch.equal(masked.objective.weighting.generator.get_state(), before)
            continue
        expected, slopes, _ = whole.step(losses)
        drawn = {task: s * losses[task] / expected if name == "rlw-g" else s for task, s in slopes.items()}
        weights = {task: drawn[task] / sum(drawn[other] for other in usable) for task in usable}
        if name == "rlw-g":
            mean = math.prod(losses[task] ** weight for task, weight in weights.items())
            weights = {task: weight * mean / losses[task] for task, weight in weights.items()}
            assert value == pytest.approx(mean, rel=1e-12)
        assert coefficients == pytest.approx(dict.fromkeys(losses, 0.0) | weights, rel=1e-12, abs=0)
        assert_same_state(masked, whole, rtol=0, atol=0)


X = [0.3, -2.0, 5.0, 0.0]


@pytest.mark.parametrize("taken", [[0, 1, 2, 3], [0, 2], [3], [1, 2, 3], []])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_done_across_tasks_is_done_across_those_that_take_part(taken, dtype):
    mask = torch.zeros(4, dtype=torch.bool)
    mask[taken] = True
    active = Active(4, dtype, mask)
    x, outside = torch.tensor(X, dtype=dtype), torch.tensor(X, dtype=dtype).masked_fill(~mask, math.inf)
    inside = x[mask]
    assert float(active.count) == len(taken)
    assert active.where(outside, -1.0).tolist() == [value if k in taken else -1 for k, value in enumerate(x.tolist())]
    torch.testing.assert_close(active.sum(outside), inside.sum())
    assert active.all(x > 0) == all(X[k] > 0 for k in taken)
    assert active.any(x > 0) == any(X[k] > 0 for k in taken)
    torch.testing.assert_close(active.mean(outside), inside.mean() if taken else x.new_zeros(()))
    torch.testing.assert_close(active.softmax(outside), _spread(inside.softmax(0), mask) if taken else x * 0 + 0.25)
    weights = outside.abs()
    shares = inside.abs() / inside.abs().sum() if inside.any() else torch.ones_like(inside)
    torch.testing.assert_close(active.shares(weights), _spread(shares, mask))
    equal = _spread(torch.full_like(inside, 1 / max(len(taken), 1)), mask)
    torch.testing.assert_close(active.shares(torch.where(mask, 0.0, weights)), equal)
    assert (1 / active.count).dtype == dtype


def _spread(values, mask):
    return torch.zeros(len(mask), dtype=values.dtype).masked_scatter(mask, values)


def test_without_a_mask_all_take_part():
    active, x = Active(4, torch.float64), torch.tensor(X)
    assert active.count == 4
    assert active.where(x, 1.0) is x
    assert torch.equal(active.softmax(x), x.softmax(0))
    assert torch.equal(active.mean(x), x.mean())
    assert active.without(torch.tensor([True, False, False, True])).sum(x).item() == 3
    assert active.without(x > 0).without(x < 0).mask.tolist() == [False, False, False, True]
