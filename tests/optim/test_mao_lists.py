"""What MAO hands to PyTorch's kernels is listed once, and anew when what it is of has changed."""

import copy
import weakref

import pytest
import torch
from networks import TASKS, Network, assert_same, batch
from torch import nn

import equipoise as eq
from equipoise.optim._listing import NO_TASK, Listing


@pytest.fixture
def listed(monkeypatch):
    """The tasks that have been listed, in order."""
    tasks = []
    make = Listing._make

    def noted(self, task, *rest):
        tasks.append(task)
        return make(self, task, *rest)

    monkeypatch.setattr(Listing, "_make", noted)
    return tasks


def made(**options):
    model = Network()
    groups = [
        {"params": [*model.trunk.parameters(), *model.branch.parameters()]},
        {"params": [*model.own.parameters(), *model.heads.parameters()], "lr": 0.02},
    ]
    return model, eq.MAO(groups, TASKS, lr=0.05, weight_decay=0.1, **options)


def step(model, optimizer, index, tasks=TASKS):
    optimizer.backward(model.losses(batch(index), tasks))
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("options", [{}, {"fused": False}, {"streaming": True}, {"max_norm": 1.0}], ids=str)
def test_once_whatever_tasks_take_part(listed, options):
    model, optimizer = made(**options)
    for index, tasks in enumerate(["ab", "c", "cab", "b", "abc"]):
        step(model, optimizer, index, tasks)
    assert listed == ["a", "b", "c"]


def replace_moments(model, optimizer):
    for state in optimizer.state.values():
        for name, value in state.items():
            state[name] = value if name == "step" else value.clone()


def move_counts(model, optimizer):
    """As somebody does who keeps the state on the host between steps."""
    for state in optimizer.state.values():
        state["step"].data = state["step"].clone()


def to_float64(model, optimizer):
    model.double()
    for state in optimizer.state.values():
        for name, value in state.items():
            value.data = value.data if name == "step" else value.data.double()


def add_group(model, optimizer):
    optimizer.add_param_group({"params": list(model.unused.parameters())})


def exchange_groups(model, optimizer):
    """Two parameters change places, and with them their learning rates."""
    groups = [group["params"] for group in optimizer.param_groups]
    groups[0][0], groups[1][0] = groups[1][0], groups[0][0]


def exchange_parameter(model, optimizer):
    """Puts another parameter in the place of one, as wrappers do that shard a model."""
    head, bias = model.heads["b"], model.heads["b"].bias
    head.bias = nn.Parameter(bias.detach().clone())
    parameters = optimizer.param_groups[1]["params"]
    optimizer.param_groups[1]["params"] = [head.bias if p is bias else p for p in parameters]
    optimizer.state[head.bias] = optimizer.state.pop(bias)


CHANGES = {
    "freeze": (lambda model, optimizer: model.branch.weight.requires_grad_(False), "ab"),
    "freeze all of a group that a task reaches": (lambda model, _: model.heads["c"].requires_grad_(False), "c"),
    "hold less": (lambda _, optimizer: optimizer.state.pop(optimizer.param_groups[1]["params"].pop()), "abc"),
    "add a group": (add_group, "abc"),
    "exchange a parameter": (exchange_parameter, "abc"),
    "exchange groups": (exchange_groups, "abc"),
    "load": (lambda _, optimizer: optimizer.load_state_dict(optimizer.state_dict()), "abc"),
    "replace moments": (replace_moments, "abc"),
    "lose state": (lambda model, optimizer: optimizer.state[model.trunk.weight].clear(), "abc"),
    "move step counts": (move_counts, "abc"),
    "another dtype": (to_float64, "abc"),
    "capturable": (lambda _, optimizer: optimizer.param_groups[0].update(capturable=True), "abc"),
    "loop": (lambda _, optimizer: optimizer.param_groups[0].update(fused=False), "abc"),
    "other memory": (lambda model, _: setattr(model.trunk.weight, "data", model.trunk.weight.data.clone()), ""),
    "learning rate": (lambda _, optimizer: optimizer.param_groups[0].update(lr=0.3), ""),
    "betas": (lambda _, optimizer: optimizer.param_groups[1].update(betas=(0.5, 0.8)), ""),
    "nothing": (lambda *_: None, ""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_anew_for_whom_something_has_changed(listed, change):
    """And the numbers are those of lists that are made anew at every step."""
    make_change, expected = CHANGES[change]
    runs = []
    for fresh in (True, False):
        model, optimizer = made()
        for index in range(6):
            if index == 3:
                make_change(model, optimizer)
                listed.clear()
            if fresh:
                optimizer._listing.forget()
            step(model, optimizer, index)
        runs.append([model.state_dict(), optimizer.state_dict()])
    assert listed == list(expected)
    assert_same(*runs)


def test_what_grad_holds_is_listed_beside_the_tasks(listed):
    model, optimizer = made()
    for index in range(4):
        optimizer.backward(model.losses(batch(index)))
        if index:
            model.trunk.weight.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert listed == ["a", "b", "c", NO_TASK]


def test_sparse_gradients_are_listed_apart(listed):
    """A gradient of the same parameter is sparse, dense, and sparse again."""
    states = []
    for fresh in (True, False):
        listed.clear()
        table, bias = nn.Parameter(torch.ones(5, 2)), nn.Parameter(torch.ones(2))
        optimizer = eq.MAO([bias, table], ["a", "b"], lr=0.1, weight_decay=0.1)
        for sparse in (True, True, False, False, True):
            found = nn.functional.embedding(torch.tensor([3, 3, 1]), table, sparse=sparse)
            optimizer.backward({"a": (found * bias).square().sum(), "b": bias.exp().sum()})
            if fresh:
                optimizer._listing.forget()
            optimizer.step()
            optimizer.zero_grad()
        states.append([table.detach(), bias.detach(), optimizer.state_dict()])
    assert listed == ["a", "b", "a", "a"]
    assert_same(*states)


def test_loading_lets_go_of_the_old_state():
    model, optimizer = made()
    step(model, optimizer, 0)
    old = weakref.ref(optimizer.state[model.trunk.weight]["exp_avg.a"])
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert old() is None
