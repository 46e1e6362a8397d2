import math
import random

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.objectives import FAMO

BOUNDS = {"b": 0.1, "c": -20.0}


class Authors:
    """The authors' rule: autograd through the softmax, torch.optim.Adam; a tensor a task, as any can be absent."""

    def __init__(self, lr=0.025, weight_decay=1e-3, bounds=None):
        self.bounds = dict.fromkeys("abc", 0.0) | (bounds or {})
        self.logits = {task: torch.zeros((), dtype=torch.float64, requires_grad=True) for task in "abc"}
        self.optimizer = torch.optim.Adam(self.logits.values(), lr=lr, weight_decay=weight_decay)

    def share(self, tasks):
        return torch.softmax(torch.stack([self.logits[task] for task in tasks]), 0)

    def objective(self, losses):
        values = torch.tensor(list(losses.values()), dtype=torch.float64, requires_grad=True)
        gap = values - torch.tensor([self.bounds[task] for task in losses], dtype=torch.float64)
        share = self.share(losses).detach()
        value = (gap.log() * share / (share / gap).sum().detach()).sum()
        return value.item(), torch.autograd.grad(value, values)[0].tolist()

    def update(self, before, after):
        change = [math.log(before[t] - self.bounds[t]) - math.log(after[t] - self.bounds[t]) for t in before]
        used = [self.logits[task] for task in before]
        weights = torch.tensor(change, dtype=torch.float64)
        self.optimizer.zero_grad()
        for logit, gradient in zip(used, torch.autograd.grad(self.share(before), used, weights), strict=True):
            logit.grad = gradient
        self.optimizer.step()


def logits(driver):
    return driver.objective.logits.tolist()


@pytest.mark.parametrize("bounds", [None, BOUNDS])
@pytest.mark.parametrize(("lr", "weight_decay"), [(0.025, 1e-3), (0.3, 0.0), (0.1, 0.5)])
def test_steps_equal_the_authors_rule(drive, batches, lr, weight_decay, bounds):
    driver = drive(FAMO(lr, weight_decay, bounds))
    authors = Authors(lr, weight_decay, bounds)
    numbers = random.Random(3)
    for losses in batches * 3:
        value, coefficients, _ = driver.step(losses)
        expected, slopes = authors.objective(losses)
        assert value == pytest.approx(expected, rel=1e-12)
        assert list(coefficients.values()) == pytest.approx(slopes, rel=1e-12)
        after = {task: loss * numbers.uniform(0.7, 1.2) for task, loss in losses.items()}
        driver.after_step(after)
        authors.update(losses, after)
        assert logits(driver) == pytest.approx([x.item() for x in authors.logits.values()], rel=1e-11, abs=1e-13)
    assert max(map(abs, logits(driver))) > 0.02  # the logits did move


def test_defaults_are_the_papers(drive, batches):
    driver, authors = drive(FAMO()), Authors(lr=0.025, weight_decay=1e-3)
    for before, after in [(batches[0], batches[1]), (batches[1], batches[2])]:
        driver.step(before)
        driver.after_step(after)
        authors.update(before, after)
    assert logits(driver) == pytest.approx([x.item() for x in authors.logits.values()], rel=1e-12)


def test_formula_before_the_first_update(drive):
    losses = {"a": 0.1, "b": 2.0, "c": 50.0}
    value, coefficients, _ = drive(FAMO(lower_bounds={"b": 1.0})).step(losses)
    gap = {"a": 0.1, "b": 1.0, "c": 50.0}
    scale = 1 / sum(1 / 3 / x for x in gap.values())
    assert value == pytest.approx(scale * sum(math.log(x) / 3 for x in gap.values()), rel=1e-13)
    assert coefficients == pytest.approx({task: scale / 3 / x for task, x in gap.items()}, rel=1e-13)
    assert sum(coefficients.values()) == pytest.approx(1)


def test_a_task_that_improved_more_loses_weight(drive):
    driver = drive(FAMO())
    driver.step({"a": 1.0, "b": 1.0, "c": 1.0})
    driver.after_step({"a": 0.5, "b": 1.0, "c": 1.1})
    a, b, c = logits(driver)
    assert a < b < c


def test_a_second_call_or_one_after_a_dropped_step_changes_nothing(drive, batches):
    driver = drive(FAMO())
    driver.after_step(batches[0])
    assert logits(driver) == [0, 0, 0]
    driver.step(batches[0])
    driver.after_step(batches[1])
    state = {name: tensor.clone() for name, tensor in driver.objective.named_buffers()}
    driver.after_step(batches[2])
    driver.step(batches[0], commit=False)
    driver.after_step(batches[2])
    assert all(torch.equal(tensor, state[name]) for name, tensor in driver.objective.named_buffers())


def test_a_skipped_after_step_uses_the_newest_losses(drive, batches):
    driver, authors = drive(FAMO()), Authors()
    driver.step(batches[0])
    driver.step(batches[1])
    driver.after_step(batches[2])
    authors.update(batches[1], batches[2])
    assert logits(driver) == pytest.approx([x.item() for x in authors.logits.values()], rel=1e-12)


def test_lower_bounds_say_what_losses_are_allowed(drive):
    assert FAMO().requires_positive
    assert FAMO(lower_bounds={"a": 0.5}).requires_positive
    assert not FAMO(lower_bounds=BOUNDS).requires_positive
    objective = drive(FAMO(lower_bounds=BOUNDS)).objective
    with objective.step():
        assert objective.lower_bounds().tolist() == [0.0, 0.1, -20.0]
    with objective.step(torch.tensor([0, 2])):
        assert objective.lower_bounds().tolist() == [0.0, -20.0]


def test_asks_for_the_losses_after_the_step():
    assert FAMO().needs_after_step


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0}, "lr must be a finite number > 0, found 0"),
        ({"weight_decay": -1}, "weight_decay must be a finite number ≥ 0, found -1"),
        ({"lower_bounds": {"a": float("nan")}}, r"lower_bounds\['a'\] must be a finite number"),
    ],
)
def test_bad_hyperparameters_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        FAMO(**arguments)


def test_bounds_without_names_or_of_unknown_tasks_are_errors(drive):
    with pytest.raises(TypeError, match="lower_bounds must be a mapping from task to number, found"):
        FAMO(lower_bounds=[0.0, 0.0])
    with pytest.raises(ValueError, match="lower_bounds: unknown task 'd'; the tasks are 'a', 'b', 'c'"):
        drive(FAMO(lower_bounds={"d": 0.0}))


@pytest.mark.parametrize("counted", [True, False])
def test_after_micro_batches_the_losses_of_the_whole_step_count(counted):
    """Where nothing was trained in between, nothing has changed, whatever the last micro-batch was."""
    w = nn.Parameter(torch.tensor([0.3, -0.7], dtype=torch.float64))
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5], [4.0, 1.0]], dtype=torch.float64)

    def losses(rows):
        y = x[rows] * w
        return {"a": (y[:, 0] - 1).square().mean(), "b": (y[:, 1] + 2).square().mean()}

    balancer = eq.Balancer(["a", "b"], eq.FAMO(weight_decay=0.0))
    given = {"counts": {"a": 2, "b": 2}} if counted else {}
    factor = 1.0 if counted else 0.5
    for rows, more in (([0, 1], True), ([2, 3], False)):
        parts = {task: loss * factor for task, loss in losses(rows).items()}
        balancer.backward(parts, accumulate=more, **given)
    with torch.no_grad():
        balancer.after_step(losses([0, 1, 2, 3]))
    torch.testing.assert_close(balancer.objective.logits, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9)
