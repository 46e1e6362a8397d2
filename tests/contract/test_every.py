"""Statistics in every nth step, and weights held in between."""

import copy
import io
import pickle

import pytest
import torch
from networks import TASKS, Network, assert_same, batch, gradients, snapshot
from registry import GRAMIAN, POTENTIALS, make, step
from torch import nn

import equipoise as eq
from equipoise._state import Flag

WAYS = {
    "found": {},
    "layers": {"engine": "layers"},
    "probe": {"probe": "trunk"},
    "chunks": {"chunk_size": 2},
}
SOLVED = sorted(GRAMIAN)


class Counting(eq.MGDA):
    """Counts how often weights are found."""

    asked = 0

    def weights(self, gramian, losses):
        self.asked += 1
        return super().weights(gramian, losses)


def balancer(every, way="found", objective=None, aggregator=None, **more):
    model = Network().double()
    options = {**WAYS[way], **more}
    if "probe" in options:
        options["probe"] = model.trunk
    given = Counting() if aggregator is None else aggregator
    return model, eq.Balancer(TASKS, objective, given, every=every, model=model, **options)


def rows_of(model, x, tasks=TASKS):
    """{task: {name: gradient}}, and the names of what is shared, each from a pass of its own."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows = {}
    for task in tasks:
        found = torch.autograd.grad(model.losses(x, [task])[task], list(named.values()), allow_unused=True)
        rows[task] = {name: g for name, g in zip(named, found, strict=True) if g is not None}
    return rows


SHARED = {
    name
    for name in dict(Network().named_parameters())
    if sum(name in row for row in rows_of(Network().double(), batch(0)).values()) > 1
}


def by_hand(rows, coefficients, weights):
    """`Σ c_k α_k g_k` of what is shared, `Σ c_k g_k` of the rest."""
    total = {}
    for task, row in rows.items():
        for name, gradient in row.items():
            factor = coefficients[task] * (weights[task] if name in SHARED else 1.0)
            total[name] = total.get(name, 0.0) + factor * gradient
    return total


def assert_gradients(model, expected):
    found = {name: g for name, g in gradients(model).items() if g is not None}
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("name", SOLVED)
def test_every_step_is_the_default_bit_for_bit(name):
    results = []
    for options in ({}, {"every": 1}):
        model, method = make(name, **options)
        for index in range(4):
            step(model, method, index, TASKS)
        results.append(snapshot(model, method))
    assert_same(*results)


@pytest.mark.parametrize(("way", "objective"), [*((way, None) for way in WAYS), ("found", eq.EMA), ("found", eq.UW)])
def test_steps_in_between_hold_the_weights(way, objective):
    """Every third: against the rows, each from its own pass, and the weights of a Balancer that takes statistics."""
    made = objective and objective()
    model, ours = balancer(3, way, made)
    alone = eq.Balancer(TASKS, objective and objective())
    held = None
    for index in range(7):
        x = batch(index)
        model.zero_grad()
        coefficients = {task: c.item() for task, c in alone.backward(model.losses(x)).items()}
        alone.zero_grad()
        model.zero_grad()
        weights = {task: w.item() for task, w in ours.backward(model.losses(x)).items()}
        if index % 3 == 0:
            held = {task: weights[task] / coefficients[task] for task in TASKS}
            assert "held" not in ours.way
        else:
            assert ours.way == "one backward pass, of held weights"
            for task in TASKS:
                assert weights[task] == pytest.approx(coefficients[task] * held[task], rel=1e-9, abs=1e-12)
        assert_gradients(model, by_hand(rows_of(model, x), coefficients, held))
    assert ours.aggregator.asked == 3


class Passes:
    """Counts the backward passes through a layer."""

    def __init__(self, layer):
        self.count = 0
        layer.weight.register_hook(self._add)

    def _add(self, _):
        self.count += 1


@pytest.mark.parametrize("every", [1, 2, 4])
def test_passes_through_the_trunk(every):
    model, ours = balancer(every)
    passes = Passes(model.trunk)
    for index in range(8):
        ours.backward(model.losses(batch(index)))
    taken = 8 // every
    assert passes.count == taken * 3 + (8 - taken)
    assert ours.aggregator.asked == taken


@pytest.mark.parametrize(("name", "at"), [*((name, 5) for name in SOLVED), ("mgda", 4), ("mgda", 6)])
def test_resumes_in_the_middle_bit_for_bit(name, at):
    present = ["abc", "abc", "ab", "c", "abc", "ac", "abc", "b"]
    model, method = make(name, every=3)
    for index in range(at):
        step(model, method, index, present[index])
    file = io.BytesIO()
    torch.save((model.state_dict(), method.state_dict()), file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    twin, resumed = make(name, seed=5, every=3)
    twin.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    copied = copy.deepcopy((model, method))
    pickled = pickle.loads(pickle.dumps((model, method)))
    for net, other in ((twin, resumed), copied, pickled, (model, method)):
        for index in range(at, len(present)):
            step(net, other, index, present[index])
    for others in ((twin, resumed), copied, pickled):
        assert_same(snapshot(*others), snapshot(model, method))


def test_the_size_of_the_state_stays():
    model, ours = balancer(5)
    sizes = set()
    for index in range(4):
        sizes.add(ours.state_dict()["_extra_state"].shape)
        ours.backward(model.losses(batch(index)))
    assert len(sizes) == 1


def test_missing_tasks_and_a_task_without_a_weight():
    model, ours = balancer(4)
    found = []
    for index, tasks in enumerate(["ab", "a", "ab", "abc", "bc", "abc", "c", "abc"]):
        model.zero_grad()
        weights = ours.backward(model.losses(batch(index), tasks))
        found.append((ours.aggregator.asked, {task: w.item() for task, w in weights.items()}))
        if index in (1, 4, 6):  # held, as they were
            before = found[index - 1 - (index == 6)][1] if index != 1 else found[0][1]
            assert found[-1][1] == {task: before[task] for task in tasks}
            assert_gradients(model, by_hand(rows_of(model, batch(index), tasks), dict.fromkeys(TASKS, 1.0), before))
    # "c" has no weight in the fourth step: statistics are taken, and a cycle begins
    assert [asked for asked, _ in found] == [1, 1, 1, 2, 2, 2, 2, 3]


@pytest.mark.parametrize("counted", [False, True])
def test_micro_batches_of_a_held_step(counted):
    model, ours = balancer(2)
    passes = Passes(model.trunk)
    for index in range(4):
        model.zero_grad()
        passes.count = 0
        x = batch(index)
        halves = x[:2], x[2:]
        for part, half in enumerate(halves):
            losses = {task: loss / (1 if counted else 2) for task, loss in model.losses(half).items()}
            counts = dict.fromkeys(TASKS, float(len(half))) if counted else None
            weights = ours.backward(losses, accumulate=part == 0, counts=counts)
        if index % 2 == 0:
            held = {task: w.item() for task, w in weights.items()}
            assert passes.count == 6
        else:
            assert weights == pytest.approx(held)
            assert passes.count == (6 if counted else 2)
        factors = [len(half) / len(x) if counted else 0.5 for half in halves]
        rows = [rows_of(model, half) for half in halves]
        expected = {}
        for factor, part in zip(factors, rows, strict=True):
            for name, gradient in by_hand(part, dict.fromkeys(TASKS, factor), held).items():
                expected[name] = expected.get(name, 0.0) + gradient
        assert_gradients(model, expected)
        assert ours.aggregator.asked == index // 2 + 1


def test_a_task_that_comes_with_a_later_micro_batch_takes_the_mean():
    model, ours = balancer(2)
    weights = ours.backward(model.losses(batch(0), "ab"))
    mean = sum(w.item() for w in weights.values()) / 2
    model.zero_grad()
    ours.backward(model.losses(batch(1), "ab"), accumulate=True)
    found = ours.backward(model.losses(batch(2), "c"))
    assert found["c"].item() == pytest.approx(mean)
    assert ours.aggregator.asked == 1


def test_gradients_cleared_between_micro_batches_do_not_count():
    model, ours = balancer(3)
    ours.backward(model.losses(batch(0)))
    model.zero_grad()
    ours.backward(model.losses(batch(1)), accumulate=True)
    model.zero_grad()
    ours.backward(model.losses(batch(2)))
    assert_gradients(model, by_hand(rows_of(model, batch(2)), dict.fromkeys(TASKS, 1.0), weights_of(ours)))
    ours.backward(model.losses(batch(3)))
    assert ours.aggregator.asked == 1
    ours.backward(model.losses(batch(4)))
    assert ours.aggregator.asked == 2


def weights_of(ours):
    return {task: w.item() for task, w in ours._balancing.collect.held.weights.items()}


def overflowing(model, losses, where):
    factor = {"trunk": model.trunk.weight, "head": model.heads["a"].weight}[where]
    broken = (factor - factor.detach())[0, 0].sqrt()
    return {task: loss + broken if where == "trunk" or task == "a" else loss for task, loss in losses.items()}


@pytest.mark.parametrize("where", ["trunk", "head"])
@pytest.mark.parametrize("dropped", [0, 1, 2])
def test_a_dropped_step_does_not_count(where, dropped):
    """Whether it took statistics or held weights; those after are as if it had never been."""
    results = []
    for drops in (True, False):
        model, ours = balancer(3)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for index in range(5):
            for overflows in (True, False) if drops and index == dropped else (False,):
                optimizer.zero_grad()
                losses = model.losses(batch(index))
                ours.backward(overflowing(model, losses, where) if overflows else losses, scaler=scaler)
                scaler.step(optimizer)
                scaler.update(2.0**10)
        results.append((dict(model.state_dict()), ours.state_dict()))
    assert_same(*results)


def test_the_scalar_holds_weights_too():
    (model, ours), (twin, scalar) = balancer(3), balancer(3)
    for index in range(5):
        for net in (model, twin):
            net.zero_grad()
        ours.backward(model.losses(batch(index)))
        scalar(twin.losses(batch(index))).backward()
        for found, expected in zip(gradients(twin).values(), gradients(model).values(), strict=True):
            assert found is None or torch.allclose(found, expected, rtol=1e-12, atol=1e-14)
    assert scalar.aggregator.asked == ours.aggregator.asked == 2


def test_what_is_frozen_neither_counts_nor_takes_statistics():
    model, ours = balancer(2)
    ours.backward(model.losses(batch(0)))
    for index in range(3):
        with ours.frozen():
            ours.backward(model.losses(batch(index)))
    assert ours.aggregator.asked == 1
    ours.backward(model.losses(batch(1)))
    assert ours.aggregator.asked == 1
    ours.backward(model.losses(batch(2)))
    assert ours.aggregator.asked == 2


def test_a_representation():
    torch.manual_seed(0)
    trunk, heads = nn.Linear(4, 5).double(), nn.ModuleDict({t: nn.Linear(5, 1).double() for t in TASKS})
    ours = eq.Balancer(TASKS, aggregator=Counting(), every=2)
    passes = Passes(trunk)
    for index in range(4):
        z = trunk(batch(index).double()).tanh()
        losses = {task: head(z).square().mean() for task, head in heads.items()}
        heads.zero_grad()
        trunk.zero_grad()
        rows = {task: torch.autograd.grad(losses[task], trunk.weight, retain_graph=True)[0] for task in TASKS}
        own = {task: torch.autograd.grad(losses[task], heads[task].weight, retain_graph=True)[0] for task in TASKS}
        passes.count = 0
        weights = ours.backward(losses, representation=z)
        assert passes.count == 1
        expected = sum(weights[task] * rows[task] for task in TASKS)
        torch.testing.assert_close(trunk.weight.grad, expected, rtol=1e-10, atol=1e-13)
        for task, head in heads.items():
            torch.testing.assert_close(head.weight.grad, own[task], rtol=1e-12, atol=1e-14)
    assert ours.aggregator.asked == 2


def test_a_task_that_shares_nothing_waits_for_no_statistics():
    trunk = nn.Linear(4, 5).double()
    heads = nn.ModuleDict({task: nn.Linear(4 if task == "c" else 5, 1).double() for task in TASKS})
    ours = eq.Balancer(TASKS, aggregator=Counting(), every=3)
    for index in range(3):
        x = batch(index).double()
        z = trunk(x).tanh()
        losses = {task: head(x if task == "c" else z).square().mean() for task, head in heads.items()}
        heads.zero_grad()
        weights = ours.backward(losses)
        assert weights["c"] == 1.0
    assert ours.aggregator.asked == 1


@pytest.mark.parametrize("every", [0, -1, 1.5, True, None, "2"])
def test_what_is_no_number_of_steps(every):
    with pytest.raises(ValueError, match="every must be a number of steps ≥ 1, found"):
        eq.Balancer(TASKS, aggregator=eq.MGDA(), every=every)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ema", "Found no aggregator: leave every out"),
        ("graddrop", "Found GradDrop: leave every out"),
        ("mao", "takes no gradient statistics: leave every out"),
        ("single:a", "takes no gradient statistics: leave every out"),
    ],
)
def test_methods_without_weights_to_hold(name, words):
    with pytest.raises(ValueError, match=words):
        eq.make_method(name, Network(), TASKS, potentials=POTENTIALS, every=2)


def test_a_flag_is_its_truth():
    assert Flag(torch.tensor(True))
    assert not Flag(torch.tensor(False))
