"""States of other tasks: what belongs to the tasks of both goes over, by their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from contract.registry import METRICS, POTENTIALS, step
from networks import assert_same, snapshot
from torch import Tensor, nn

import equipoise as eq
from equipoise._saved import unpacked

METHODS = [*eq.list_methods(), "single:b", "torchjd:UPGrad", "torchjd:Random"]
BEFORE = ["ab", "a", "ab", "b", "ab", "ab"]
AFTER = ["bc", "c", "b", "bc", "cb"]
"""The tasks that have a label in each step."""


class Heads(nn.Module):
    """A trunk and a head a task, whose weights do not depend on which others there are."""

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 6)
        self.heads = nn.ModuleDict({task: nn.Linear(6, 2) for task in tasks})
        generator = torch.Generator().manual_seed(0)
        weights = {task: torch.randn(2, 6, generator=generator) for task in "abc"}
        with torch.no_grad():
            self.trunk.weight.copy_(torch.randn(6, 4, generator=generator))
            self.trunk.bias.zero_()
            for task, head in self.heads.items():
                head.weight.copy_(weights[task])
                head.bias.zero_()

    def losses(self, x: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        z = self.trunk(x).tanh()
        scales = {"a": 1.0, "b": 5.0, "c": 0.2}
        return {task: scales[task] * (self.heads[task](z) - x[:, :2]).square().mean() for task in tasks}


def make(name: str, tasks: Sequence[str], seed: int = 0, **options: Any) -> tuple[Heads, Any]:
    model = Heads(tasks)
    torch.manual_seed(seed)
    if name.startswith("amtl"):
        options["potentials"] = {task: POTENTIALS[task] for task in tasks}
    if name == "lr-annealing" and "b" in tasks:
        options["residual"] = "b"  # which all have; by default it is the first
    return model, eq.make_method(name, model, list(tasks), lr=0.05, weight_decay=0.01, **options)


def train(model: Heads, method: Any, steps: Sequence[str], start: int = 0) -> list[Any]:
    """Trains with the tasks of these steps, and an evaluation of them after every third."""
    seen, tasks = [], sorted(set("".join(steps)))
    for index, present in enumerate(steps, start):
        known = "".join(task for task in present if task in method.tasks)
        seen.append(step(model, method, index, known))
        if index % 3 == 2:
            measured = METRICS[index // 3 % len(METRICS)]
            method.end_epoch({task: measured[task] for task in tasks if task in measured and task in method.tasks})
    return seen


def by_task(method: Any, model: Heads, task: str) -> list[Any]:
    """What an optimizer holds of a task's head."""
    return [method.optimizer.state[p] for p in model.heads[task].parameters()]


@pytest.mark.parametrize("name", METHODS)
def test_goes_on_as_if_all_tasks_had_been_known(name: str) -> None:
    """Against a method that knew a, b and c all along, and lacked c before and a after."""
    model, method = make(name, "abc")
    train(model, method, BEFORE)
    expected = train(model, method, AFTER, len(BEFORE))

    old, earlier = make(name, "ab")
    train(old, earlier, BEFORE)
    new, later = make(name, "bc", seed=99)
    new.load_state_dict(old.state_dict(), strict=False)
    later.load_state_dict(earlier.state_dict(), tasks="intersection")
    found = train(new, later, AFTER, len(BEFORE))

    if name == "single:b":
        expected = [{task: weight for task, weight in weights.items() if task == "b"} for weights in expected]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    whole = model.state_dict()
    assert_same(dict(new.state_dict()), {parameter: whole[parameter] for parameter in new.state_dict()})
    for task in "bc":
        for one, other in zip(by_task(later, new, task), by_task(method, model, task), strict=True):
            vectors = ("step", "norm")  # of as many numbers as there are tasks
            assert_same(*({k: v for k, v in each.items() if k not in vectors} for each in (one, other)))


@pytest.mark.parametrize("name", METHODS)
def test_the_same_tasks_are_taken_over_as_ever(name: str) -> None:
    model, method = make(name, "ab")
    train(model, method, BEFORE)
    resumed = make(name, "ab", seed=99)[1]
    resumed.load_state_dict(method.state_dict(), tasks="intersection")
    assert_same(resumed.state_dict(), method.state_dict())


@pytest.mark.parametrize("name", METHODS)
def test_what_does_not_fit_changes_nothing(name: str) -> None:
    model, method = make(name, "bc")
    train(model, method, AFTER)
    before = snapshot(model, method)
    other = "ew" if name != "ew" else "uw"
    earlier = make(name, "ab")[1]
    states = {
        "another method": make(other, "ab")[1].state_dict(),
        "of another tasks|of other tasks": earlier.state_dict(),
        "lacks 'parameters'": {k: v for k, v in earlier.state_dict().items() if k != "parameters"},
    }
    for words, state in states.items():
        with pytest.raises(ValueError, match=words):
            method.load_state_dict(state, **({} if "other tasks" in words else {"tasks": "intersection"}))
    with pytest.raises(ValueError, match="tasks must be one of 'equal', 'intersection', found 'common'"):
        method.load_state_dict(earlier.state_dict(), tasks="common")
    if not name.startswith("single"):
        with pytest.raises(ValueError, match=r"has no task of these: found \['a'\]"):
            method.load_state_dict(make(name, "a")[1].state_dict(), tasks="intersection")
    train(*(wide := make_wide(name)), BEFORE)
    with pytest.raises(ValueError, match=r"does not fit the parameter 'trunk\.weight'"):
        method.load_state_dict(wide[1].state_dict(), tasks="intersection")
    assert_same(snapshot(model, method), before)


def make_wide(name: str) -> tuple[Heads, Any]:
    """A model whose trunk has another shape."""
    model = Heads("ab")
    model.trunk = nn.Linear(4, 8)
    model.heads = nn.ModuleDict({task: nn.Linear(8, 2) for task in "ab"})
    potentials = {task: POTENTIALS[task] for task in "ab"} if name.startswith("amtl") else None
    return model, eq.make_method(name, model, list("ab"), potentials=potentials)


def test_a_balancer_by_itself_in_another_order() -> None:
    model = Heads("abc")
    one = eq.Balancer(list("abc"), eq.EMA(), eq.GradNorm(), model=model)
    for index in range(3):
        one.backward(model.losses(torch.randn(5, 4), "abc"[: 2 + index % 2]))
    other = eq.Balancer(list("cab"), eq.EMA(), eq.GradNorm(), model=model)
    other.load_state_dict(one.state_dict(), tasks="intersection")
    for name, value in one.state_dict().items():
        if not name.endswith("_extra_state") and isinstance(value, Tensor):
            assert torch.equal(other.state_dict()[name], value[[2, 0, 1]])
    for kind, held in unpacked(one.get_extra_state())["weights"].items():
        assert unpacked(other.get_extra_state())["weights"][kind] == held
    assert (
        unpacked(other.get_extra_state())["shared"]
        == unpacked(one.get_extra_state())["shared"]
        == ["trunk.weight", "trunk.bias"]
    )


def test_own_state_of_tasks_that_the_other_lacks_stays() -> None:
    """And what was shared with a task that is gone is found anew."""
    model = Heads("abc")
    one, other = (eq.Balancer(list(tasks), eq.EMA(), eq.MGDA(), model=model) for tasks in ("ab", "bc"))
    for balancer in (one, other):
        for _ in range(2):
            balancer.backward(model.losses(torch.randn(5, 4), balancer.tasks))
    averages = one.objective.weighting.average.value, other.objective.weighting.average.value
    expected = torch.stack([averages[0][1], averages[1][1]])
    fresh = eq.Balancer(list("bc"), eq.EMA(), eq.MGDA(), model=model)
    for balancer in (fresh, other):
        balancer.load_state_dict(one.state_dict(), tasks="intersection")
    assert torch.equal(other.objective.weighting.average.value, expected)
    assert unpacked(other.get_extra_state())["shared"] == ["trunk.weight", "trunk.bias"]
    assert unpacked(fresh.get_extra_state())["shared"] == []


def test_state_that_is_not_told_apart_by_task() -> None:
    torchjd = pytest.importorskip("torchjd.aggregation")
    one, other = (eq.Balancer(list(tasks), aggregator=torchjd.NashMTL(2)) for tasks in ("ab", "bc"))
    with pytest.raises(ValueError, match="TorchJDMatrixWeighting keeps state that it does not tell apart by task"):
        other.load_state_dict(one.state_dict(), tasks="intersection")


def updated(model: Heads, optimizer: Any, tasks: str) -> None:
    for index in range(3):
        optimizer.backward(model.losses(torch.randn(5, 4, generator=torch.Generator().manual_seed(index)), tasks))
        optimizer.step()
        optimizer.zero_grad()


def test_moments_by_names_of_parameters() -> None:
    """b goes on with Adam's moments of its own, c with new ones."""
    old, new = Heads("ab"), Heads("bc")
    earlier = eq.MAO(old.named_parameters(), list("ab"), lr=0.01)
    updated(old, earlier, "ab")
    later = eq.MAO(new.named_parameters(), list("bc"), lr=0.5)
    new.load_state_dict(old.state_dict(), strict=False)
    later.load_state_dict(earlier.state_dict(), tasks="intersection")
    assert later.param_groups[0]["lr"] == 0.01

    moments = earlier.state[old.trunk.weight]
    adam = torch.optim.AdamW([new.trunk.weight], lr=0.01, weight_decay=0.0)
    kept = {"exp_avg": moments["exp_avg.b"], "exp_avg_sq": moments["exp_avg_sq.b"], "step": moments["step"][1]}
    adam.state[new.trunk.weight] = {name: value.clone() for name, value in kept.items()}
    fresh = torch.optim.AdamW([new.trunk.weight], lr=0.01, weight_decay=0.0)
    before = new.trunk.weight.detach().clone()
    x = torch.randn(5, 4)
    moved = torch.zeros_like(before)
    for optimizer, task in ((adam, "b"), (fresh, "c")):
        new.trunk.weight.grad = torch.autograd.grad(new.losses(x, task)[task], new.trunk.weight)[0]
        optimizer.step()
        moved += new.trunk.weight.detach() - before
        with torch.no_grad():
            new.trunk.weight.copy_(before)
    later.zero_grad()
    later.backward(new.losses(x, "bc"))
    later.step()
    torch.testing.assert_close(new.trunk.weight.detach(), before + moved)


def test_moments_by_the_places_of_parameters() -> None:
    model = Heads("abc")
    earlier = eq.MAO(model.parameters(), list("ab"))
    updated(model, earlier, "ab")
    later = eq.MAO(model.parameters(), list("bca"))
    later.load_state_dict(earlier.state_dict(), tasks="intersection")
    state, was = later.state[model.trunk.weight], earlier.state[model.trunk.weight]
    assert state["step"].tolist() == [3, 0, 3]
    assert torch.equal(state["exp_avg.a"], was["exp_avg.a"])
    assert "exp_avg.c" not in state
    with pytest.raises(ValueError, match=r"is of 8 parameters, expected 6.*give them model.named_parameters\(\)"):
        eq.MAO(Heads("bc").parameters(), list("bc")).load_state_dict(later.state_dict(), tasks="intersection")
    with pytest.raises(ValueError, match="has 1 groups of parameters, expected 2"):
        eq.MAO([{"params": [p]} for p in model.trunk.parameters()], list("bc")).load_state_dict(
            later.state_dict(), tasks="intersection"
        )


def test_moments_of_groups_of_the_same_tasks() -> None:
    model = Heads("abc")
    earlier = eq.MAO(model.parameters(), list("abc"), groups={"one": ["a", "b"], "two": ["c"]})
    updated(model, earlier, "abc")
    later = eq.MAO(model.parameters(), list("cab"), groups={"first": ["c"], "second": ["b", "a"]})
    later.load_state_dict(earlier.state_dict(), tasks="intersection")
    state, was = later.state[model.trunk.weight], earlier.state[model.trunk.weight]
    assert torch.equal(state["exp_avg_sq.second"], was["exp_avg_sq.one"])
    assert torch.equal(state["exp_avg.first"], was["exp_avg.two"])
    alone = eq.MAO(model.parameters(), list("abc"))
    alone.load_state_dict(earlier.state_dict(), tasks="intersection")
    assert list(alone.state[model.trunk.weight]) == ["step", "exp_avg.c", "exp_avg_sq.c"]
