"""A call that is wrong is an error in every registered method, and leaves everything as it was."""

import pytest
import torch
from networks import TASKS, Network, assert_same, batch, snapshot
from registry import HYPERPARAMETERS, NAMES, every_method, has_aggregator, make, train
from torch import nn

import equipoise as eq

BAD_LOSSES = [
    (lambda m, x: {**m.losses(x), "d": m.losses(x)["a"]}, ValueError, r"unknown task 'd'.*'a', 'b', 'c'"),
    (lambda m, x: {"a": m.losses(x)["a"], "B": m.losses(x)["b"]}, ValueError, "unknown task 'B'"),
    (lambda m, x: {}, ValueError, "losses is empty: pass the loss of every task"),
    (lambda m, x: list(m.losses(x).values()), TypeError, r"must be a mapping.*found list"),
    (lambda m, x: m.losses(x)["a"], TypeError, r"must be a mapping.*found Tensor"),
    (lambda m, x: dict.fromkeys(TASKS, 1.0), TypeError, "must be a tensor, found float"),
    (
        lambda m, x: {task: loss.expand(3) for task, loss in m.losses(x).items()},
        ValueError,
        r"must be a scalar \(0-dim\) tensor, found shape \(3,\).*\.mean\(\)",
    ),
    (lambda m, x: {task: loss[None] for task, loss in m.losses(x).items()}, ValueError, r"found shape \(1,\)"),
    (
        lambda m, x: {task: loss.detach() for task, loss in m.losses(x).items()},
        ValueError,
        r"has no graph.*Leave the task out",
    ),
    (
        lambda m, x: {task: loss * torch.nan for task, loss in m.losses(x).items()},
        ValueError,
        "task '[abc]' is nan: a NaN or infinite loss",
    ),
    (lambda m, x: {task: loss / 0 for task, loss in m.losses(x).items()}, ValueError, "'[abc]' is inf"),
]


BAD_METRICS = [
    ({"d": 0.5}, ValueError, "metrics: unknown task 'd'; the tasks are 'a', 'b', 'c'"),
    ({"a": 0.5, "b": 1.2}, ValueError, r"accuracy of task 'b' must be .*≤ 1, found 1.2"),
    ({"a": -0.5}, ValueError, r"accuracy of task 'a'.*found -0.5"),
    ({"c": float("nan")}, ValueError, r"accuracy of task 'c'.*found nan"),
    ({"a": None}, ValueError, r"accuracy of task 'a' must be .*, found None"),
    ({"a": torch.ones(2)}, ValueError, r"accuracy of task 'a' must be .*, found tensor"),
    ([0.5], TypeError, "metrics must be a mapping"),
]


def check_unchanged(name, *cases):
    """Every case (act, error, words) raises as expected and leaves everything as it was.

    After all of them training goes on as if nothing had been.
    """
    (model, method), (twin, undisturbed) = make(name), make(name)
    for m, one in ((model, method), (twin, undisturbed)):
        train(m, one, 0, 4)
        one.zero_grad()
        one.backward(m.losses(batch(4)))
    before = snapshot(model, method)
    for act, error, words in cases:
        with pytest.raises(error, match=words):
            act(model, method)
        assert_same(snapshot(model, method), before)
    for m, one in ((model, method), (twin, undisturbed)):
        one.step()
        train(m, one, 5, 8)
    assert_same(snapshot(model, method), snapshot(twin, undisturbed))


@every_method
def test_bad_losses(name):
    def act(losses):
        return lambda model, method: method.backward(losses(model, batch(9)))

    check_unchanged(name, *((act(losses), error, words) for losses, error, words in BAD_LOSSES))


@every_method
def test_bad_metrics(name):
    def act(metrics):
        return lambda model, method: method.end_epoch(metrics)

    check_unchanged(name, *((act(metrics), error, words) for metrics, error, words in BAD_METRICS))


@every_method
def test_bad_validation_losses(name):
    def act(losses, **options):
        return lambda model, method: method.observe_validation(losses, **options)

    good = {task: torch.ones(()) for task in TASKS}
    check_unchanged(
        name,
        (act({"d": torch.ones(())}), ValueError, "losses: unknown task 'd'; the tasks are 'a', 'b', 'c'"),
        (act({}), ValueError, "losses is empty"),
        (act([torch.ones(())]), TypeError, "losses must be a mapping.*found list"),
        (act({"a": 1.0}), TypeError, "task 'a' must be a tensor, found float"),
        (act({"a": torch.ones(2)}), ValueError, r"must be a scalar \(0-dim\) tensor, found shape \(2,\)"),
        (act(good, counts={"a": 1}), ValueError, "counts lacks task 'b', 'c'"),
    )


@every_method
def test_bad_counts(name):
    def act(counts):
        return lambda model, method: method.backward(model.losses(batch(9)), counts=counts)

    check_unchanged(
        name,
        (act({}), ValueError, "counts lacks task"),
        (act(dict.fromkeys(TASKS, -1)), ValueError, r"counts\['[abc]'\] must be a finite number ≥ 0, found -1"),
        (act(dict.fromkeys(TASKS, 0)), ValueError, "all counts are 0"),
        (act(dict.fromkeys([*TASKS, "d"], 3)), ValueError, "counts: unknown task 'd'; the tasks are 'a', 'b', 'c'"),
    )


@every_method
def test_state_of_another(name):
    other = "mgda" if name != "mgda" else "ew"
    potentials = dict.fromkeys(TASKS, 0.5) if name.startswith("amtl") else None
    small = eq.make_method(name, nn.Linear(2, 2), TASKS, potentials=potentials, **HYPERPARAMETERS.get(name, {}))

    def act(foreign):
        return lambda model, method: method.load_state_dict(foreign.state_dict())

    check_unchanged(
        name,
        (act(make(other)[1]), ValueError, f"found '{other}', expected '{name}'"),
        (
            act(make(name, tasks=("b", "a", "c"))[1]),
            ValueError,
            r"found \['b', 'a', 'c'\], expected \['a', 'b', 'c'\]",
        ),
        (act(small), ValueError, "group"),
    )


@pytest.mark.parametrize("name", [n for n in NAMES if has_aggregator(n)])
def test_no_shared_parameters(name):
    heads = {task: nn.Linear(4, 1) for task in TASKS}

    def act(model, method):
        method.backward({task: head(batch(9)).square().mean() for task, head in heads.items()})

    check_unchanged(name, (act, ValueError, "shared parameters, and found none.*Check that"))


@every_method
def test_bad_tasks(name):
    model = Network()
    for tasks, error, words in (
        ([], ValueError, "tasks is empty"),
        (["a", "b", "a"], ValueError, "found twice: 'a'"),
        ("abc", TypeError, "single string"),
        (["a", 1], TypeError, "found 1 of type int"),
    ):
        with pytest.raises(error, match=words):
            eq.make_method(name, model, tasks, potentials={"a": 0.5, "b": 0.5})
