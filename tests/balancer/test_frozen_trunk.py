"""Nothing shared because the trunk is frozen, and parameters frozen between the forward and the backward pass."""

import warnings

import pytest
import torch
from balancer.by_hand import Recorder, assert_gradients, gramian_by_hand, shared_names, task_gradients_by_hand, weighted
from balancer.test_sharing import AGGREGATORS, CLOSE, GRAMIAN
from networks import TASKS, Network, assert_same, batch, gradients
from torch import nn

import equipoise as eq

ONES = dict.fromkeys(TASKS, 1.0)
WEIGHTS = {"a": 2.0, "b": 3.0, "c": -5.0}


def freeze(model, frozen=True):
    for p in model.shared():
        p.requires_grad_(not frozen)


def sums(rows, weights=ONES, shared=()):
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return {name: weighted(rows, name, weights if name in shared else ONES) for name in names}


def said(run):
    """The warnings of equipoise that a call gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in caught if str(w.message).startswith("equipoise")]


def backward(model, balancer, index, accumulated=False):
    if not accumulated:
        return balancer.backward(model.losses(batch(index)))
    for task in TASKS:
        weights = balancer.backward(model.losses(batch(index), [task]), accumulate=task != "c")
    return weights


@pytest.mark.parametrize("accumulated", [False, True], ids=["at once", "accumulated"])
@pytest.mark.parametrize("when", ["from the start", "later"])
@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, ()) for name in AGGREGATORS), ("mgda", ("probe",)), ("gradnorm", ("probe",)), ("pcgrad", ("model",))],
)
def test_a_frozen_trunk_gives_plain_gradients_and_one_warning(name, options, when, accumulated):
    model, twin = Network().double(), Network().double()

    def made(model):
        given = {"probe": model.trunk if "probe" in options else None, "model": model if "model" in options else None}
        return eq.Balancer(TASKS, aggregator=AGGREGATORS[name](), **given)

    balancer, expected = made(model), made(twin)
    if when == "later":
        backward(model, balancer, 9)
        backward(twin, expected, 9)
        model.zero_grad()
        twin.zero_grad()
    freeze(model)

    def warm_up():
        for index in range(3):
            weights = backward(model, balancer, index, accumulated)
            assert {weight.item() for weight in weights.values()} == {1.0}
            assert_gradients(model, sums(task_gradients_by_hand(model, batch(index))))
            model.zero_grad()

    (text,) = said(warm_up)
    for words in (type(balancer.aggregator).__name__, "found none", "right while the trunk is frozen"):
        assert words in text
    freeze(model, frozen=False)  # and now it is as if there had been no warm-up
    backward(model, balancer, 5, accumulated)
    backward(twin, expected, 5, accumulated)
    assert_same(gradients(model), gradients(twin))
    state, expected_state = balancer.state_dict(), expected.state_dict()
    assert_same(dict(state), dict(expected_state))


@pytest.mark.parametrize("name", ["pcgrad", "mgda"])
def test_a_long_warm_up_is_said_once(name):
    model = nn.ModuleDict({"trunk": nn.Linear(2, 3).requires_grad_(False), "a": nn.Linear(3, 1), "b": nn.Linear(3, 1)})
    balancer = eq.Balancer(["a", "b"], aggregator=AGGREGATORS[name]())

    def steps():
        for _ in range(110):
            z = model["trunk"](torch.ones(2))
            balancer.backward({"a": model["a"](z).square().sum(), "b": model["b"](z).square().sum()})

    assert len(said(steps)) == 1


@pytest.mark.parametrize("way", ["plain", "model", "the trunk alone as model", "shared", "detached"])
def test_a_warm_up_is_none_of_these_ways_an_error(way):
    model = Network().double()
    if way != "detached":
        freeze(model)
    given = {
        "plain": {},
        "model": {"model": model},
        "the trunk alone as model": {"model": model.trunk},
        "shared": {"shared": model.shared()},
        "detached": {},
    }[way]
    balancer = eq.Balancer(TASKS, aggregator=eq.PCGrad(seed=0), **given)
    z = (model.trunk(batch(0).double()) + model.frozen(batch(0).double())).tanh()
    ab, own = (model.branch(z) if way != "detached" else z[:, :5]), model.own(z.detach())
    losses = {task: model.heads[task]((own if task == "c" else ab).detach()).square().mean() for task in TASKS}
    (text,) = said(lambda: balancer.backward(losses))
    assert "right while the trunk is frozen" in text
    assert all(p.grad is None for p in model.shared())


@pytest.mark.parametrize("way", ["plain", "model", "later"])
def test_a_frozen_trunk_on_points_that_require_a_gradient_is_no_error(way):
    """The points are all that several losses reach, and yet the losses have a trunk in common."""
    model = Network().double()
    balancer = eq.Balancer(TASKS, aggregator=eq.MGDA(), model=model if way == "model" else None)
    if way == "later":
        backward(model, balancer, 0)
        model.zero_grad()
    freeze(model)
    points = batch(1).double().requires_grad_()
    losses = model.losses(points)
    (wanted,) = torch.autograd.grad(sum(losses.values()), points, retain_graph=True)
    (text,) = said(lambda: balancer.backward(losses))
    assert "right while the trunk is frozen" in text
    assert "an input of shape (6, 4)" in text
    torch.testing.assert_close(points.grad, wanted, **CLOSE)
    assert_gradients(model, sums(task_gradients_by_hand(model, batch(1))))


FROZEN = {  # between the forward and the backward pass
    "part of the trunk": ["trunk.bias"],
    "the branch": ["branch.weight", "branch.bias"],
    "a head": ["heads.a.weight", "heads.a.bias"],
    "part of each": ["trunk.weight", "branch.bias", "heads.b.weight"],
}


def freeze_named(model, names):
    for name in names:
        model.get_parameter(name).requires_grad_(False)


@pytest.mark.parametrize("way", ["rows", "layers", "probe", "accumulated", "counts"])
@pytest.mark.parametrize("names", FROZEN)
def test_freezing_between_forward_and_backward_skips_the_parameter(names, way):
    names = FROZEN[names]
    model, recorder = Network().double(), Recorder(list(WEIGHTS.values()))
    probe = [p for name, p in model.named_parameters() if name.startswith("trunk") and name not in names]
    engine = way if way in ("rows", "layers") else None
    balancer = eq.Balancer(TASKS, aggregator=recorder, probe=probe if way == "probe" else None, engine=engine)
    losses = model.losses(batch(0))
    freeze_named(model, names)
    if way == "accumulated":
        balancer.backward({"a": losses["a"]}, accumulate=True, retain_graph=True)
        balancer.backward({"b": losses["b"], "c": losses["c"]})
    else:
        balancer.backward(losses, counts=dict.fromkeys(TASKS, 2) if way == "counts" else None)
    rows = task_gradients_by_hand(model, batch(0))
    shared = [name for name in shared_names(model) if name not in names]
    assert_gradients(model, sums(rows, WEIGHTS, shared))
    measured = [name for name in shared if way != "probe" or name.startswith("trunk")]
    torch.testing.assert_close(recorder.gramians[0], gramian_by_hand(rows, measured), **CLOSE)


@pytest.mark.parametrize("accumulated", [False, True])
@pytest.mark.parametrize("names", FROZEN)
def test_without_an_aggregator_too(names, accumulated):
    model = Network().double()
    losses = model.losses(batch(0))
    freeze_named(model, FROZEN[names])
    balancer = eq.Balancer(TASKS)
    if accumulated:
        balancer.backward({"a": losses["a"]}, accumulate=True, retain_graph=True)
        losses = {"b": losses["b"], "c": losses["c"]}
    balancer.backward(losses)
    assert_gradients(model, sums(task_gradients_by_hand(model, batch(0))))


@pytest.mark.parametrize("names", FROZEN)
def test_under_a_representation_too(names):
    """It is what the trunk gives; the branch above it is shared by a and b, which its statistics do not tell."""
    names = FROZEN[names]
    model, recorder = Network().double(), Recorder(list(WEIGHTS.values()))
    balancer = eq.Balancer(TASKS, aggregator=recorder)
    kept = []
    hook = model.trunk.register_forward_hook(lambda _, __, z: kept.append(z))
    losses = model.losses(batch(0))
    hook.remove()
    freeze_named(model, names)
    balancer.backward(losses, representation=kept[0])
    rows = task_gradients_by_hand(model, batch(0))
    assert_gradients(model, sums(rows, WEIGHTS, [name for name in shared_names(model) if name not in names]))


@pytest.mark.parametrize("way", ["rows", "layers", "probe", "representation"])
@pytest.mark.parametrize("name", GRAMIAN)
def test_the_whole_trunk_frozen_between_forward_and_backward(name, way):
    model = nn.ModuleDict({"trunk": nn.Linear(4, 3), "a": nn.Linear(3, 1), "b": nn.Linear(3, 1)}).double()
    probe = model["trunk"] if way == "probe" else None
    engine = "layers" if way == "layers" else None
    balancer = eq.Balancer(["a", "b"], aggregator=AGGREGATORS[name](), probe=probe, engine=engine)
    z = model["trunk"](batch(0).double())
    losses = {"a": model["a"](z).square().mean(), "b": model["b"](z).exp().mean()}
    heads = [*model["a"].parameters(), *model["b"].parameters()]
    wanted = torch.autograd.grad(sum(losses.values()), heads, retain_graph=True)
    model["trunk"].requires_grad_(False)
    given = {"representation": z} if way == "representation" else {}
    (text,) = said(lambda: balancer.backward(losses, **given))
    assert "right while the trunk is frozen" in text
    torch.testing.assert_close([p.grad for p in heads], list(wanted), **CLOSE)
    assert all(p.grad is None for p in model["trunk"].parameters())


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("names", [*FROZEN, "all that is shared"])
def test_mao_leaves_it_where_it_is_and_moves_the_others(names, streaming):
    model, twin = Network().double(), Network().double()
    names = FROZEN.get(names) or shared_names(model)
    optimizers = [eq.MAO(m.parameters(), TASKS, lr=0.1, streaming=streaming) for m in (model, twin)]
    losses = [m.losses(batch(0)) for m in (model, twin)]
    freeze_named(model, names)
    for optimizer, given in zip(optimizers, losses, strict=True):
        optimizer.backward(given)
        optimizer.step()
    before = dict(Network().double().named_parameters())
    for (name, p), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), (before[name] if name in names else other).detach(), rtol=0, atol=1e-12)
        assert name not in names or p.grad is None


def test_a_trunk_that_is_detached_later_gives_plain_gradients():
    """As one that is frozen: the heads are those of the steps before."""
    model = Network().double()
    balancer = eq.Balancer(["a", "c"], aggregator=eq.PCGrad(seed=0), model=model)
    balancer.backward(model.losses(batch(0), ["a", "c"]))
    model.zero_grad()
    x = batch(1).double()
    z = (model.trunk(x) + model.frozen(x)).tanh().detach()
    losses = {
        "a": model.heads["a"](model.branch(z).tanh()).square().mean(),
        "c": model.heads["c"](model.own(z)).square().mean(),
    }
    with pytest.warns(UserWarning, match="found none"):
        balancer.backward(losses)
    assert model.trunk.weight.grad is None
    twin = torch.autograd.grad(model.heads["a"](model.branch(z).tanh()).square().mean(), model.heads["a"].weight)[0]
    torch.testing.assert_close(model.heads["a"].weight.grad, twin, rtol=1e-12, atol=1e-14)
