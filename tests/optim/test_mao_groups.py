"""MAO's groups: tasks that share moments are one task with the sum of their losses."""

import pytest
import torch
from networks import TASKS, Network, batch

import equipoise as eq


def network():
    return Network().double()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "groups",
    [
        2,
        {"group0": ["a", "c"], "group1": ["b"]},
        len(TASKS),
        {"first": ["c"], "second": ["a"], "third": ["b"]},
    ],
    ids=str,
)
def test_a_group_is_one_task_with_the_summed_loss(groups, streaming):
    grouped, summed = network(), network()
    optimizer = eq.MAO(grouped.parameters(), TASKS, lr=0.01, weight_decay=0.1, groups=groups, streaming=streaming)
    reference = eq.MAO(summed.parameters(), list(optimizer.groups), lr=0.01, weight_decay=0.1)
    for index in range(15):
        present = {1: ("a", "b"), 2: ("b",), 3: ("c",)}.get(index % 5, TASKS)
        weights = optimizer.backward(grouped.losses(batch(index), present))
        assert tuple(weights) == present
        optimizer.step()
        optimizer.zero_grad()
        own = summed.losses(batch(index), present)
        held = {group: [own[task] for task in members if task in own] for group, members in optimizer.groups.items()}
        reference.backward({group: sum(losses) for group, losses in held.items() if losses})
        reference.step()
        reference.zero_grad()
        for one, other in zip(grouped.parameters(), summed.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [(2, {"group0": ("a", "c"), "group1": ("b",)}), (3, {f"group{i}": (t,) for i, t in enumerate(TASKS)})],
)
def test_a_number_of_groups_deals_the_tasks_in_turn(groups, expected):
    assert eq.MAO(network().parameters(), TASKS, groups=groups).groups == expected


def test_one_group_is_adamw_on_the_sum():
    grouped, summed = network(), network()
    optimizer = eq.MAO(grouped.parameters(), TASKS, lr=0.01, groups=1)
    reference = torch.optim.AdamW(summed.parameters(), lr=0.01, weight_decay=0.0)
    for index in range(10):
        optimizer.backward(grouped.losses(batch(index)))
        optimizer.step()
        optimizer.zero_grad()
        sum(summed.losses(batch(index)).values()).backward()
        reference.step()
        reference.zero_grad()
        for one, other in zip(grouped.parameters(), summed.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (0, "between 1 and the number of tasks, 3; found 0"),
        (4, "between 1 and the number of tasks, 3; found 4"),
        ({"one": ["a", "b"]}, "every task once, found a, b"),
        ({"one": ["a", "b"], "two": ["b", "c"]}, "every task once, found a, b, b, c"),
        ({"one": ["a", "b", "d"]}, "unknown task 'd'"),
        ({"one": [], "two": ["a", "b", "c"]}, "groups must not be empty, found no task in 'one'"),
        ({}, "every task once, found none"),
    ],
)
def test_groups_that_do_not_fit_are_errors(groups, message):
    with pytest.raises(ValueError, match=message):
        eq.MAO(network().parameters(), TASKS, groups=groups)


def test_counts_cannot_be_accumulated_in_groups():
    model = network()
    optimizer = eq.MAO(model.parameters(), TASKS, groups=2)
    with pytest.raises(ValueError, match="accumulate without counts"):
        optimizer.backward(model.losses(batch(0)), accumulate=True, counts=dict.fromkeys(TASKS, 2))


def test_a_state_of_other_groups_is_refused():
    one, other = (eq.MAO(network().parameters(), TASKS, groups=groups) for groups in (1, 2))
    with pytest.raises(ValueError, match="of other groups"):
        one.load_state_dict(other.state_dict())


def test_groups_resume_bit_for_bit(tmp_path):
    straight, stopped = network(), network()
    one, other = (eq.MAO(model.parameters(), TASKS, lr=0.01, groups=2) for model in (straight, stopped))
    for index in range(6):
        for model, optimizer in ((straight, one), (stopped, other)):
            optimizer.backward(model.losses(batch(index)))
            optimizer.step()
            optimizer.zero_grad()
        if index == 2:
            torch.save(other.state_dict(), tmp_path / "state.pt")
            other = eq.MAO(stopped.parameters(), TASKS, lr=0.01, groups=2)
            other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), stopped.parameters(), strict=True))
