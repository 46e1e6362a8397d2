import math

import pytest
import torch

from equipoise.aggregators import GradNorm
from equipoise.testing._jacobians import sample

TASKS = ["a", "b", "c"]


class Reference:
    """GradNorm with Adam, one task at a time in Python floats."""

    def __init__(self, alpha=1.5, lr=0.025):
        self.alpha, self.lr = alpha, lr
        self.weight = dict.fromkeys(TASKS, 1.0)
        self.initial, self.first, self.second, self.steps = {}, {}, {}, {}

    def step(self, norms, losses):
        count = len(losses)
        scale = count / math.fsum(self.weight[task] for task in losses)
        used = {task: self.weight[task] * scale for task in losses}
        for task, loss in losses.items():
            self.initial.setdefault(task, loss)
            self.steps[task] = self.steps.get(task, 0) + 1
        progress = {task: loss / self.initial[task] for task, loss in losses.items()}
        mean_progress = math.fsum(progress.values()) / count
        mean_norm = math.fsum(used[task] * norms[task] for task in losses) / count
        updated = {}
        for task in losses:
            target = mean_norm * (progress[task] / mean_progress) ** self.alpha
            difference = used[task] * norms[task] - target
            slope = norms[task] * ((difference > 0) - (difference < 0))
            self.first[task] = 0.9 * self.first.get(task, 0.0) + 0.1 * slope
            self.second[task] = 0.999 * self.second.get(task, 0.0) + 0.001 * slope**2
            first = self.first[task] / (1 - 0.9 ** self.steps[task])
            second = self.second[task] / (1 - 0.999 ** self.steps[task])
            updated[task] = max(used[task] - self.lr * first / (math.sqrt(second) + 1e-8), 1e-3)
        total = math.fsum(updated.values())
        for task in losses:
            self.weight[task] = updated[task] * count / total
        return used


@pytest.mark.parametrize(("alpha", "lr"), [(1.5, 0.025), (0.0, 0.025), (3.0, 0.4)])
def test_follows_the_formula_with_tasks_missing(alpha, lr):
    aggregator, reference = GradNorm(alpha, lr), Reference(alpha, lr)
    aggregator.bind(TASKS)
    generator = torch.Generator().manual_seed(0)
    for turn in range(60):
        present = {0: [0, 1], 3: [1, 2], 4: [2]}.get(turn % 6, [0, 1, 2])
        jacobian = torch.randn(len(present), 20, generator=generator, dtype=torch.float64)
        jacobian *= torch.tensor([[1.0], [20.0], [0.1]]).double()[present]
        losses = torch.rand(len(present), generator=generator, dtype=torch.float64) + 0.1
        names = [TASKS[k] for k in present]
        norms = dict(zip(names, jacobian.norm(dim=1).tolist(), strict=True))
        used = reference.step(norms, dict(zip(names, losses.tolist(), strict=True)))
        with aggregator.step(torch.tensor(present)) as step:
            combined = aggregator(jacobian, losses)
            step.commit()
        expected = sum(used[name] * row for name, row in zip(names, jacobian, strict=True))
        torch.testing.assert_close(combined, expected, rtol=1e-10, atol=1e-12)
        stored = torch.tensor([reference.weight[task] for task in TASKS], dtype=torch.float64)
        torch.testing.assert_close(aggregator.weight, stored, rtol=1e-10, atol=1e-12)


def test_slower_task_and_smaller_gradient_gain_weight():
    aggregator = GradNorm()
    aggregator.bind(["a", "b"])
    gradients = torch.eye(2, dtype=torch.float64) * torch.tensor([1.0, 4.0]).double()
    for _ in range(200):
        with aggregator.step() as step:
            aggregator(gradients, torch.tensor([1.0, 1.0]).double())
            step.commit()
    norms = aggregator.weight * torch.tensor([1.0, 4.0])
    assert abs(norms[0] / norms[1] - 1) < 0.15  # equal training rates: equal norms, up to the step of the weights
    even = aggregator.weight.clone()
    for _ in range(200):
        with aggregator.step() as step:
            aggregator(gradients, torch.tensor([1.0, 0.25]).double())
            step.commit()
    assert aggregator.weight[0] > even[0] + 0.05


def test_state_changes_on_commit_only():
    aggregator = GradNorm()
    aggregator.bind(TASKS)
    jacobian, losses = sample("random", 3), torch.tensor([1.0, 2.0, 3.0]).double()
    before = {name: value.clone() for name, value in aggregator.named_buffers()}
    with aggregator.step():
        aggregator(jacobian, losses)
    with aggregator.step() as step:
        aggregator(jacobian, losses * math.nan)
        step.commit(valid=torch.tensor(False))
    for name, value in aggregator.named_buffers():
        assert torch.equal(value, before[name]), name
    with aggregator.step() as step:
        aggregator(jacobian, losses)
        step.commit()
    assert not torch.equal(aggregator.weight, before["weight"])
    assert torch.equal(aggregator.initial_loss, losses)


def test_weights_stay_positive():
    aggregator = GradNorm(lr=5.0)
    aggregator.bind(TASKS)
    for seed in range(20):
        with aggregator.step() as step:
            aggregator(sample("conflicting", 3, seed), torch.tensor([1.0, 2.0, 3.0]).double())
            step.commit()
        assert (aggregator.weight > 0).all()
        torch.testing.assert_close(float(aggregator.weight.sum()), 3.0)


def test_gradients_of_zero_leave_the_weights():
    aggregator = GradNorm()
    aggregator.bind(TASKS)
    with aggregator.step() as step:
        combined = aggregator(torch.zeros(3, 5).double(), torch.ones(3).double())
        step.commit()
    assert not combined.any()
    torch.testing.assert_close(aggregator.weight, torch.ones(3).double())


def test_needs_a_step():
    with pytest.raises(RuntimeError, match=r"GradNorm is used outside a step.*bind\(tasks\)"):
        GradNorm()(sample("random", 3))
