"""What counts as shared: found in one step, all its micro-batches together; and what a probe is worth then."""

import warnings

import pytest
import torch
from balancer.by_hand import Recorder, assert_gradients, gramian_by_hand, shared_names, task_gradients_by_hand, weighted
from networks import TASKS, Network, batch, gradients
from torch import nn

import equipoise as eq
from equipoise._saved import unpacked

AGGREGATORS = {
    "pcgrad": lambda: eq.PCGrad(seed=0),
    "mgda": eq.MGDA,
    "cagrad": eq.CAGrad,
    "nash-mtl": eq.NashMTL,
    "imtl-g": eq.IMTLG,
    "graddrop": lambda: eq.GradDrop(seed=0),
    "gradnorm": eq.GradNorm,
}
GRAMIAN = [name for name in AGGREGATORS if name != "graddrop"]
PLANS = {  # the tasks of each micro-batch of a step
    "two tasks": ["a", "b"],
    "three tasks": ["a", "b", "c"],
    "a task that returns": ["ab", "c", "a"],
    "an end without tasks": ["c", "a", ""],
}
CLOSE = {"rtol": 1e-8, "atol": 1e-10}


class Weights:
    """A watcher that remembers the aggregator's weights of each step."""

    due = True

    def __init__(self):
        self.seen = []

    def see_rows(self, rows):
        """Nothing to remember."""

    def see_weights(self, weights, shared):
        self.seen.append({task: weight.clone() for task, weight in weights.items()})

    def see_result(self, weights):
        """Nothing to remember."""


def in_micro_batches(model, balancer, plan, step, counts):
    """One step, each micro-batch with its own tasks."""
    weights = {}
    for index, tasks in enumerate(plan):
        given = {"counts": dict.fromkeys(tasks, 2 + index)} if counts else {}
        losses = model.losses(batch(10 * step + index), tasks)
        weights = balancer.backward(losses, accumulate=index < len(plan) - 1, **given)
    return weights


def at_once(model, balancer, plan, step, counts):
    """The same step from one call: sums of the micro-batches' losses, or their means over all samples."""
    sums, samples = {}, {}
    for index, tasks in enumerate(plan):
        for task, loss in model.losses(batch(10 * step + index), tasks).items():
            n = 2 + index if counts else 1
            sums[task] = sums.get(task, 0) + n * loss
            samples[task] = samples.get(task, 0) + n
    losses = {task: sums[task] / samples[task] if counts else sums[task] for task in TASKS if task in sums}
    return balancer.backward(losses)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(
    ("name", "counts", "probed"),
    [
        *((name, False, False) for name in AGGREGATORS),
        *((name, True, name in GRAMIAN) for name in AGGREGATORS),
    ],
)
def test_tasks_of_different_micro_batches_are_balanced_as_in_one_step(name, plan, counts, probed):
    plan = PLANS[plan]
    tasks = sorted(set("".join(plan)))
    results = []
    for run in (in_micro_batches, at_once):
        model = Network().double()
        probe = [model.trunk.weight] if probed else None
        balancer = eq.Balancer(tasks, aggregator=AGGREGATORS[name](), probe=probe, model=model)
        watcher = Weights()
        balancer.watch(watcher)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        last, grads = [], []
        for step in range(2):  # the second with what the aggregator remembers of the first
            last.append(run(model, balancer, plan, step, counts))
            grads.append(gradients(model))
            optimizer.step()
            optimizer.zero_grad()
        state = balancer.state_dict()
        results.append((grads, last, watcher.seen, unpacked(state.pop("_extra_state")), state))
    (grads, last, seen, shared, state), (whole_grads, whole_last, whole_seen, whole_shared, whole_state) = results
    assert len(seen) == len(whole_seen) == (0 if name == "graddrop" else 2)
    torch.testing.assert_close(seen, whole_seen, **CLOSE)
    torch.testing.assert_close(dict(state), dict(whole_state), **CLOSE)
    torch.testing.assert_close(shared.pop("weights"), whole_shared.pop("weights"), **CLOSE)
    assert shared == whole_shared
    for found, whole in zip(last, whole_last, strict=True):
        assert set(found) == set(plan[-1])
        torch.testing.assert_close(found, {task: whole[task] for task in found}, **CLOSE)
    for found, whole in zip(grads, whole_grads, strict=True):
        assert_gradients_close(found, whole)


def assert_gradients_close(found, expected):
    assert {n for n, g in found.items() if g is not None} == {n for n, g in expected.items() if g is not None}
    for name, gradient in expected.items():
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, **CLOSE)


def test_mgda_of_two_micro_batches_in_closed_form():
    """The shortest vector between two gradients, on what both tasks reach."""
    model = Network().double()
    balancer = eq.Balancer(["a", "c"], aggregator=eq.MGDA())
    rows = {task: task_gradients_by_hand(model, batch(index), [task])[task] for index, task in enumerate(["a", "c"])}
    (aa, ac), (_, cc) = gramian_by_hand(rows, ["trunk.weight", "trunk.bias"]).tolist()
    first = min(1.0, max(0.0, (cc - ac) / (aa + cc - 2 * ac)))
    weights = {"a": first, "c": 1 - first}
    balancer.backward(model.losses(batch(0), ["a"]), accumulate=True)
    last = balancer.backward(model.losses(batch(1), ["c"]))
    assert last["c"].item() == pytest.approx(weights["c"], rel=1e-9)
    names = dict.fromkeys(name for row in rows.values() for name in row)
    ones = dict.fromkeys(weights, 1.0)
    assert_gradients(model, {n: weighted(rows, n, weights if "trunk" in n else ones) for n in names})


def test_what_several_tasks_reach_in_different_steps_only_is_not_shared():
    model = Network().double()
    balancer = eq.Balancer(TASKS, aggregator=Recorder([2.0, 3.0, 5.0]), model=model)
    for index, task in enumerate(TASKS):
        model.zero_grad()
        balancer.backward(model.losses(batch(index), [task]))
        assert_gradients(model, task_gradients_by_hand(model, batch(index), [task])[task])
    assert unpacked(balancer.get_extra_state())["shared"] == []
    balancer.backward(model.losses(batch(0), ["a"]), accumulate=True)
    balancer.backward(model.losses(batch(1), ["c"]))
    assert unpacked(balancer.get_extra_state())["shared"] == ["trunk.weight", "trunk.bias"]


@pytest.mark.parametrize("plan", PLANS)
def test_mao_with_tasks_in_different_micro_batches(plan):
    plan = PLANS[plan]
    models = Network().double(), Network().double()
    for model, run in zip(models, (in_micro_batches, at_once), strict=True):
        optimizer = eq.MAO(model.parameters(), TASKS, lr=0.1)
        for step in range(3):
            run(model, optimizer, plan, step, counts=False)
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def small(tasks="ab"):
    trunk, heads = nn.Linear(2, 3), nn.ModuleDict({task: nn.Linear(3, 1) for task in tasks})
    return nn.ModuleDict({"trunk": trunk, "heads": heads})


def losses_of(model, tasks):
    z = model["trunk"](torch.ones(2)).tanh()
    return {task: model["heads"][task](z).square().sum() + 0.1 for task in tasks}


def warned(run):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in caught if str(w.message).startswith("equipoise")]


@pytest.mark.parametrize("name", AGGREGATORS)
def test_an_aggregator_without_two_tasks_in_100_steps_says_so_once(name):
    model = small()
    balancer = eq.Balancer(["a", "b"], aggregator=AGGREGATORS[name]())

    def steps(count):
        for index in range(count):
            balancer.backward(losses_of(model, "ab"[index % 2]))

    assert not warned(lambda: steps(99))
    (text,) = warned(lambda: steps(150))
    for words in (type(balancer.aggregator).__name__, "100 steps", "concatenated", "accumulate=True"):
        assert words in text


@pytest.mark.parametrize("how", ["one step with both", "accumulated", "no aggregator", "one task"])
def test_that_is_not_said_where_there_were_two_tasks_or_none_to_expect(how):
    model = small()
    tasks = ["a"] if how == "one task" else ["a", "b"]
    balancer = eq.Balancer(tasks, aggregator=None if how == "no aggregator" else eq.PCGrad())

    def steps():
        for index in range(120):
            if how == "one step with both" and index == 50:
                balancer.backward(losses_of(model, "ab"))
            balancer.backward(losses_of(model, "a"), accumulate=how == "accumulated")
            if how == "accumulated":
                balancer.backward(losses_of(model, "b"))

    assert not warned(steps)


@pytest.mark.parametrize("accumulated", [False, True], ids=["at once", "accumulated"])
@pytest.mark.parametrize("name", GRAMIAN)
def test_with_a_task_that_does_not_reach_the_probe_statistics_are_of_all_that_is_shared(name, accumulated):
    """The branch is of a and b alone: on it c would have a gradient of zero."""
    results = []
    for probed in (True, False):
        model = Network().double()
        balancer = eq.Balancer(TASKS, aggregator=AGGREGATORS[name](), probe=model.branch if probed else None)
        if accumulated:
            balancer.backward(model.losses(batch(0), ["a", "b"]), accumulate=True)
            weights = balancer.backward(model.losses(batch(0), ["c"]))
        else:
            weights = balancer.backward(model.losses(batch(0)))
        assert weights["c"] > 0
        results.append((weights, gradients(model)))
    (weights, found), (expected_weights, expected) = results
    torch.testing.assert_close(weights, expected_weights, **CLOSE)
    assert_gradients_close(found, expected)


class Branches(nn.Module):
    """A trunk under two branches, of the tasks a and b, and c and d."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(4, 6)
        self.left, self.right = nn.Linear(6, 5), nn.Linear(6, 5)
        self.heads = nn.ModuleDict({task: nn.Linear(5, 1) for task in "abcd"})
        self.double()

    def losses(self, x, tasks):
        z = self.trunk(x.double()).tanh()
        branches = {task: self.left if task in "ab" else self.right for task in "abcd"}
        return {task: (self.heads[task](branches[task](z).tanh()) - 1).square().mean() for task in tasks}


@pytest.mark.parametrize("accumulated", [False, True], ids=["at once", "accumulated"])
@pytest.mark.parametrize("tasks", ["abcd", "ac", "ab"])
def test_with_tasks_that_reach_different_parts_of_the_probe_too(tasks, accumulated):
    model, aggregator = Branches(), Recorder([2.0, 3.0, 5.0, 7.0])
    probe = [*model.left.parameters(), *model.right.parameters()]
    balancer = eq.Balancer(list("abcd"), aggregator=aggregator, probe=probe)
    balancer.backward(model.losses(batch(0), "abcd"))  # all of both branches is known as shared from here on
    model.zero_grad()
    if accumulated:
        for index, task in enumerate(tasks):
            balancer.backward(model.losses(batch(1), task), accumulate=index < len(tasks) - 1)
    else:
        balancer.backward(model.losses(batch(1), tasks))
    rows = task_gradients_by_hand(model, batch(1), tasks)
    left = ["left.weight", "left.bias"]
    shared = ["trunk.weight", "trunk.bias", *left, "right.weight", "right.bias"]
    measured = left if tasks == "ab" else shared  # a and b have the left branch in common
    measured = [name for name in measured if any(name in row for row in rows.values())]
    torch.testing.assert_close(aggregator.gramians[-1], gramian_by_hand(rows, measured))
    weights = dict(zip(tasks, aggregator.given, strict=False))
    ones = dict.fromkeys(tasks, 1.0)
    names = dict.fromkeys(name for row in rows.values() for name in row)
    assert_gradients(model, {n: weighted(rows, n, weights if n in shared else ones) for n in names})


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((name, way) for name in AGGREGATORS for way in ("at once", "accumulated", "shared")),
        *((name, way) for name in GRAMIAN for way in ("probe", "layers")),
    ],
)
def test_a_task_that_shares_nothing_leaves_the_others_as_if_alone(name, way):
    """To MGDA its row of zeros would be the shortest vector, and the others would stand still."""
    results = []
    for tasks in (["a", "b", "c"], ["a", "b"]):
        model = Network().double()
        apart = nn.Linear(4, 1, dtype=torch.float64)
        probe = model.trunk if way == "probe" else None
        given = {"shared": model.shared()} if way == "shared" else {"engine": "layers"} if way == "layers" else {}
        balancer = eq.Balancer(
            tasks, eq.Static([1.0, 1.0, 0.5][: len(tasks)]), AGGREGATORS[name](), probe=probe, **given
        )
        for index in range(2):  # with what the aggregator remembers
            losses = model.losses(batch(index), ["a", "b"])
            if "c" in tasks:
                losses["c"] = apart(batch(index).double()).square().mean()
                (wanted,) = torch.autograd.grad(losses["c"], apart.weight, retain_graph=True)
                before = 0.0 if apart.weight.grad is None else apart.weight.grad.clone()
            if way == "accumulated":
                first = {task: losses.pop(task) for task in ("a", "c") if task in losses}
                balancer.backward(first, accumulate=True, retain_graph=True)
            weights = balancer.backward(losses)
            if "c" in tasks:
                assert weights.pop("c", torch.tensor(0.5)).item() == 0.5
                torch.testing.assert_close(apart.weight.grad, before + 0.5 * wanted)
        results.append((weights, gradients(model)))
    torch.testing.assert_close(results[0][0], results[1][0], **CLOSE)
    assert_gradients_close(results[0][1], results[1][1])


@pytest.mark.parametrize("accumulated", [False, True], ids=["at once", "accumulated"])
def test_a_module_that_the_model_gets_later_is_trained(accumulated):
    """With `model=`, the balancer made before: what is added counts, also in the checkpoint."""
    model = Network().double()
    branch, model.branch = model.branch, nn.Identity()
    balancer = eq.Balancer(TASKS, aggregator=Recorder([2.0, 3.0, 5.0]), model=model)
    model.branch = branch
    if accumulated:
        for index, task in enumerate(TASKS):
            balancer.backward(model.losses(batch(0), [task]), accumulate=index < 2)
    else:
        balancer.backward(model.losses(batch(0)))
    rows = task_gradients_by_hand(model, batch(0))
    torch.testing.assert_close(balancer.aggregator.gramians[0], gramian_by_hand(rows, shared_names(model)))
    weights, ones = dict(zip(TASKS, [2.0, 3.0, 5.0], strict=True)), dict.fromkeys(TASKS, 1.0)
    names = dict.fromkeys(name for row in rows.values() for name in row)
    shared = shared_names(model)
    assert_gradients(model, {n: weighted(rows, n, weights if n in shared else ones) for n in names})

    resumed = Network().double()
    again = eq.Balancer(TASKS, aggregator=Recorder([2.0, 3.0, 5.0]), model=resumed)
    again.load_state_dict(balancer.state_dict())
    again.backward(resumed.losses(batch(1), ["b"]))
    expected = task_gradients_by_hand(resumed, batch(1), ["b"])["b"]
    assert_gradients(resumed, {n: (2.0 if n in shared else 1.0) * g for n, g in expected.items()})


@pytest.mark.parametrize("objective", [None, eq.EMA, eq.UW])
def test_shared_without_an_aggregator_is_refused_in_words(objective):
    model = Network()
    with pytest.raises(ValueError, match=r"there is no aggregator.*Leave shared out, or give aggregator="):
        eq.Balancer(TASKS, objective and objective(), shared=model.trunk)
