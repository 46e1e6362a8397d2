"""A task's priority multiplies its update."""

import pytest
import torch
from networks import TASKS, Network, assert_same, batch

import equipoise as eq

FACTORS = {"a": 3.0, "b": 1.0, "c": 0.5}


def linear_losses(p, step):
    """Losses whose gradients do not depend on the parameter."""
    generator = torch.Generator().manual_seed(step)
    return {task: (p * torch.randn(5, dtype=torch.float64, generator=generator)).sum() for task in TASKS}


def trained(optimizer, p, tasks=TASKS, steps=4):
    for step in range(steps):
        optimizer.zero_grad()
        losses = {task: loss for task, loss in linear_losses(p, step).items() if task in tasks}
        if isinstance(optimizer, eq.MAO):
            optimizer.backward(losses)
        else:
            sum(losses.values()).backward()
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize("options", [{}, {"streaming": True}, {"fused": False}])
def test_updates_are_multiplied(options):
    p = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
    found = trained(eq.MAO([p], TASKS, lr=0.1, priorities={"a": 3.0, "c": 0.5}, **options), p)
    expected = torch.zeros(5, dtype=torch.float64)
    for task, factor in FACTORS.items():
        alone = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
        expected += factor * trained(torch.optim.AdamW([alone], lr=0.1, weight_decay=0), alone, task)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_weight_decay_is_not():
    p, q = (torch.nn.Parameter(torch.ones(5, dtype=torch.float64)) for _ in range(2))
    found = trained(eq.MAO([p], TASKS, lr=0.1, weight_decay=0.1, priorities=FACTORS), p, steps=1)
    update = trained(eq.MAO([q], TASKS, lr=0.1, priorities=FACTORS), q, steps=1) - 1
    torch.testing.assert_close(found, 1 - 0.1 * 0.1 + update, rtol=1e-12, atol=0)


@pytest.mark.parametrize("same", [{}, dict.fromkeys(TASKS, 4.0), {"a": 1.0}])
def test_equal_priorities_change_nothing(same):
    models = []
    for priorities in (None, same):
        model = Network()
        optimizer = eq.MAO(model.parameters(), TASKS, lr=0.1, weight_decay=0.1, priorities=priorities)
        for index in range(3):
            optimizer.zero_grad()
            optimizer.backward(model.losses(batch(index)))
            optimizer.step()
        models.append(model.state_dict())
    assert_same(*models)


def test_groups_share_a_priority():
    model = Network()
    groups = {"both": ["a", "b"], "one": ["c"]}
    optimizer = eq.MAO(model.parameters(), TASKS, groups=groups, priorities={"c": 2.0})
    assert optimizer.priorities == {"both": 1.0, "one": 2.0}
    with pytest.raises(ValueError, match=r"'both' share an update and need the same priority.*'a': 2.0, 'b': 1.0"):
        eq.MAO(model.parameters(), TASKS, groups=groups, priorities={"a": 2.0})
