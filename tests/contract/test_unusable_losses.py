"""Tasks that take no part in a step although their loss is there: the method cannot use it, or no sample has a label.

Whatever way there is to find out, the step is the one in which the task is left out of the losses: bit for bit where
the host looks at the losses, and within rounding where only the device knows (`check_finite=False` and counts as
tensors make the CPU go that way).
"""

import contextlib
import copy
import re
import warnings

import pytest
import torch
from networks import TASKS, Network, assert_same, batch, gradients
from registry import METRICS, NAMES, POSITIVE, RANDOM, make
from torch import nn

import equipoise as eq

VALUES = [0.0, -1.5]
REST = ("a", "c")
WAYS = {"host": {}, "device": {"check_finite": False}}

every_method = pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("single:")])
every_way = pytest.mark.parametrize("way", WAYS)
every_value = pytest.mark.parametrize("value", VALUES)


@pytest.fixture
def counts_elsewhere(monkeypatch):
    """Has counts that are tensors be treated as an accelerator's."""
    monkeypatch.setattr("equipoise.gradients.step.host_has", lambda count: not isinstance(count, torch.Tensor))


def trained(name, way, **options):
    """A method that has seen three steps and an epoch."""
    model, method = make(name, dtype=torch.float64, **WAYS[way], **options)
    for index in range(3):
        method.zero_grad()
        method.backward(model.losses(batch(index)))
        method.step()
        if method.needs_after_step:
            method.after_step(model.losses(batch(index)))
    method.end_epoch(METRICS[0] | METRICS[2])
    method.zero_grad()
    return model, method


def without_use(losses, value, *tasks):
    return {task: loss * 0 + value if task in tasks else loss for task, loss in losses.items()}


def said(due, task="'b'"):
    """Expects the warning where it is due."""
    if not due:
        return contextlib.nullcontext()
    return pytest.warns(UserWarning, match=f"the loss of task {task} is 0 or below in a step, or not above")


def state_of(method):
    """What the method keeps, without the optimizer's of parameters outside it."""
    state = method.state_dict()
    return state["optimizer"]["state"] if method.balancer is None else state["balancer"]


def assert_close(found, expected, path=""):
    """Asserts equality within rounding, through mappings and sequences. Zeros count as None."""
    if isinstance(expected, dict):
        assert list(found) == list(expected), path
        for key in expected:
            assert_close(found[key], expected[key], f"{path}[{key!r}]")
    elif found is None or expected is None:
        assert all(one is None or not one.any() for one in (found, expected)), path
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), path
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_close(one, other, f"{path}[{index}]")
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11, msg=lambda text: f"{path}: {text}")
    else:
        assert found == expected, path


def compare(way, name, found, expected):
    """Compares (model, method, weights) after `backward`, then after `step`."""
    (model, method, weights), (twin, other, fewer) = found, expected
    same = assert_same if way == "host" else assert_close
    weights = {task: weight for task, weight in weights.items() if task in fewer or way == "host"}
    if way == "device" and name in RANDOM - {"pcgrad", "graddrop"}:
        return  # it draws a number for the task, too
    same(weights, fewer)
    same(gradients(model), gradients(twin))
    if method.balancer is None:
        method.step()
        other.step()
        same(model.state_dict(), twin.state_dict())
    same(state_of(method), state_of(other))


@every_way
@every_value
@every_method
def test_is_the_step_without_the_task(name, value, way):
    model, method = trained(name, way)
    twin, other = copy.deepcopy((model, method))
    with said(name in POSITIVE):
        weights = method.backward(without_use(model.losses(batch(3)), value, "b"))
    if name not in POSITIVE:
        assert weights["b"].isfinite()
        return
    assert weights.get("b", 0.0) == 0.0
    compare(way, name, (model, method, weights), (twin, other, other.backward(twin.losses(batch(3), REST))))


@every_way
@pytest.mark.parametrize("counted", [False, True], ids=["without counts", "with counts"])
@pytest.mark.parametrize("where", [[0], [1], [0, 1]], ids=str)
@pytest.mark.parametrize("name", sorted(POSITIVE))
def test_is_the_micro_batch_without_the_task(name, where, counted, way):
    model, method = trained(name, way)
    twin, other = copy.deepcopy((model, method))
    results = []
    for m, one in ((model, method), (twin, other)):
        with said(one is method):
            for index in range(2):
                losses = m.losses(batch(3 + index))
                if index in where:
                    losses = without_use(losses, -1.5, "b") if one is method else {t: losses[t] for t in REST}
                counts = {task: 2 + index + TASKS.index(task) for task in losses} if counted else None
                weights = one.backward(losses, accumulate=index == 0, counts=counts)
        results.append((m, one, weights))
    compare(way, name, *results)


@every_way
@every_value
@pytest.mark.parametrize("name", sorted(POSITIVE))
def test_nothing_changes_where_no_loss_is_usable(name, value, way):
    model, method = trained(name, way)
    before = copy.deepcopy((model.state_dict(), state_of(method)))
    with said(True, "'a', 'b', 'c'"):
        weights = method.backward(without_use(model.losses(batch(3)), value, *TASKS))
    for accumulate in (True, False):
        method.backward(without_use(model.losses(batch(3)), value, *TASKS), accumulate=accumulate)
    assert not any(weights.values())
    assert all(gradient is None or not gradient.any() for gradient in gradients(model).values())
    after = model.state_dict(), state_of(method)
    if way == "device" and name in RANDOM:
        for _, states in (before, after):
            states.pop("objective.weighting._extra_state")  # its generator has drawn
    assert_same(after, before)


@every_way
@pytest.mark.parametrize("name", sorted(POSITIVE))
def test_it_is_said_once(name, way):
    model, method = trained(name, way)
    for index in range(4):
        method.zero_grad()
        with said(index == 0, "'a'"):
            method.backward(without_use(model.losses(batch(index)), -1.0, "ab"[index % 2]))
        method.step()


def test_the_warning_names_the_methods_that_take_such_losses():
    """All registered methods that do not give it, and no other."""
    messages = {}
    for name in eq.list_methods():
        model, method = make(name)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            method.backward(without_use(model.losses(batch(0)), -1.0, "b"))
        messages[name] = [str(warning.message) for warning in caught]
    silent = [name for name, given in messages.items() if not given]
    assert set(silent) == set(eq.list_methods()) - POSITIVE
    for name in POSITIVE:
        (text,) = messages[name]
        named = re.search(r"Methods that take such losses: (.*)\.$", text)[1].split(", ")
        assert named == silent


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@every_method
def test_a_loss_that_is_not_finite_is_an_error_all_the_same(name, value):
    model, method = trained(name, "host")
    before = copy.deepcopy((model.state_dict(), method.state_dict()))
    with pytest.raises(ValueError, match="a NaN or infinite loss must not enter the training"):
        method.backward(without_use(model.losses(batch(3)), value, "b"))
    assert_same((model.state_dict(), method.state_dict()), before)


OTHERS = {
    "mgda by losses": lambda: {"aggregator": eq.MGDA("loss")},
    "mgda by losses and norms": lambda: {"aggregator": eq.MGDA("loss+")},
    "ema, then mgda by losses": lambda: {"objective": eq.EMA(), "aggregator": eq.MGDA("loss")},
    "gls, then pcgrad": lambda: {"objective": eq.GeometricMean(eq.Equal()), "aggregator": eq.PCGrad(seed=0)},
    "gls, then graddrop": lambda: {"objective": eq.GeometricMean(eq.Equal()), "aggregator": eq.GradDrop(seed=0)},
    "rema, then gradnorm": lambda: {"objective": eq.REMA(), "aggregator": eq.GradNorm()},
    "famo with bounds": lambda: {"objective": eq.FAMO(lower_bounds={"a": -3.0, "b": 0.5})},
}


@every_way
@pytest.mark.parametrize("parts", OTHERS)
def test_other_methods_and_compositions(parts, way):
    results = []
    for tasks in (TASKS, REST):
        model = Network().double()
        balancer = eq.Balancer(TASKS, **OTHERS[parts](), model=model, **WAYS[way])
        for index in range(3):
            model.zero_grad()
            losses = model.losses(batch(index))
            due = index == 2
            if parts == "famo with bounds":  # b's is 0.01 at least
                losses["b"] = losses["b"] + 0.5
            if due and tasks is TASKS:
                losses = without_use(losses, 0.3 if "bounds" in parts else -0.3, "b")
            with said(due and tasks is TASKS):
                weights = balancer.backward(losses if not due else {task: losses[task] for task in tasks})
        results.append((gradients(model), {task: weights[task] for task in REST}, balancer.state_dict()))
    for found, expected in zip(*results, strict=True):
        (assert_same if way == "host" else assert_close)(found, expected)


@every_way
def test_famo_leaves_out_after_the_step_what_it_cannot_use(way):
    results = []
    for tasks in (TASKS, REST):
        model, method = trained("famo", way)
        method.backward(model.losses(batch(3)))
        losses = {task: loss for task, loss in without_use(model.losses(batch(3)), -1.0, "b").items() if task in tasks}
        with said(tasks is TASKS):
            method.after_step(losses)
        results.append(state_of(method))
    (assert_same if way == "host" else assert_close)(*results)


@pytest.mark.parametrize("counted", [False, True], ids=["loss", "count"])
@pytest.mark.parametrize("name", ["rlw", "rlw-g"])
def test_random_weights_are_shared_by_the_tasks_that_take_part(counts_elsewhere, name, counted):
    """On the device a number is drawn for the one that does not as well: no step without it is like this one."""
    model, method = trained(name, "device")
    losses = model.losses(batch(3))
    counts = dict(zip(TASKS, torch.tensor([3, 0, 5]), strict=True)) if counted else None
    if not counted and name == "rlw-g":
        losses = without_use(losses, -1.0, "b")
    elif not counted:
        return  # it takes any loss
    rows = eq.task_gradients(losses, model.trunk, retain_graph=True)
    with said(not counted):
        weights = method.backward(losses, counts=counts)
    assert weights["b"] == 0
    of_logarithms = [weights[task] * losses[task].detach() for task in REST]
    total = 1.0 if name == "rlw" else torch.stack([losses[task].detach() for task in REST]).log()
    if name == "rlw":
        torch.testing.assert_close(weights["a"] + weights["c"], torch.ones((), dtype=torch.float64))
    else:  # w_k L_k = s_k Π_j L_j^{s_j} with shares s that sum to 1
        shares = torch.stack(of_logarithms) / sum(of_logarithms)
        torch.testing.assert_close(sum(of_logarithms), (shares * total).sum().exp())
    expected = sum(weights[task] * rows[task][0] for task in REST)
    torch.testing.assert_close(model.trunk.weight.grad, expected, rtol=1e-9, atol=1e-12)


# --- counts of 0 that the device alone knows ----------------------------------------------------------------------


LABELS = [{"a": 4, "b": 3, "c": 5}, {"a": 2, "b": 0, "c": 6}, {"a": 1, "b": 2, "c": 2}, dict.fromkeys(TASKS, 0)]


def run_with_counts(name, there, micro_batches, **options):
    """Trains on batches with so many labels, which the device alone knows or the host as well; returns what is left."""
    model, method = make(name, dtype=torch.float64, **WAYS["device" if there else "host"], **options)
    kept = []
    for index, labels in enumerate(LABELS):
        if not (there or micro_batches or any(labels.values())):
            continue  # there is nothing to do, which is an error where the host knows it
        losses = model.losses(batch(index))
        counts = {task: torch.tensor(count) if there else count for task, count in labels.items()}
        accumulate = micro_batches and index < len(LABELS) - 1
        method.backward(losses, counts=counts, accumulate=accumulate)
        if not accumulate:
            if method.balancer is None:
                method.step()  # its gradients are not in `.grad`
            else:
                kept.append(gradients(model))
            if method.needs_after_step and not micro_batches:
                method.after_step(model.losses(batch(index)))
            method.zero_grad()
    state = state_of(method)
    if name in ("graddrop", "relobralo"):  # where the device knows that there is nothing to draw for, it has drawn
        state.pop("aggregator._extra_state" if name == "graddrop" else "objective.weighting._extra_state")
    return kept[: 1 if micro_batches else 3], model.state_dict(), state


@pytest.mark.parametrize("micro_batches", [False, True], ids=["steps", "micro-batches"])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("rlw", "rlw-g") and ":" not in name])
def test_counts_on_the_device_are_counts_on_the_host(counts_elsewhere, name, micro_batches):
    assert_close(run_with_counts(name, True, micro_batches), run_with_counts(name, False, micro_batches))


MAO_OPTIONS = [
    {"fused": False},
    {"max_norm": 0.1},
    {"groups": 2},
    {"groups": {"x": ["a", "c"], "y": ["b"]}, "fused": False},
    {"streaming": True},
    {"streaming": True, "fused": False},
    {"betas": (0.0, 0.99)},
]


@pytest.mark.parametrize("options", MAO_OPTIONS, ids=str)
def test_mao_with_counts_on_the_device(counts_elsewhere, options):
    found = run_with_counts("mao", True, micro_batches=False, weight_decay=0.3, **options)
    assert_close(found, run_with_counts("mao", False, micro_batches=False, weight_decay=0.3, **options))


@pytest.mark.parametrize("fused", [False, True])
def test_mao_leaves_alone_the_rows_of_a_task_without_labels(counts_elsewhere, fused):
    """Sparse gradients: of a table that both tasks use, and of one that is its own."""
    results = []
    for there in (False, True):
        torch.manual_seed(0)
        tables = [nn.Embedding(7, 3, sparse=True, dtype=torch.float64) for _ in range(2)]
        parameters = [table.weight for table in tables]
        optimizer = eq.MAO(parameters, ["a", "b"], lr=0.1, weight_decay=0.2, fused=fused, check_finite=False)
        for labels in ([2, 3], [2, 0], [0, 0], [0, 4]):
            places = torch.tensor([1, 5, 5])
            losses = {"a": tables[0](places).square().mean(), "b": sum(t(places + 1).exp().mean() for t in tables)}
            counts = dict(zip("ab", torch.tensor(labels) if there else labels, strict=True))
            if there or any(labels):
                optimizer.backward(losses, counts=counts)
                optimizer.step()
                optimizer.zero_grad()
        results.append(([p.detach().clone() for p in parameters], optimizer.state_dict()["state"]))
    assert_close(results[1], results[0])


def test_mao_knows_of_each_backward_before_a_step_whether_a_task_takes_part(counts_elsewhere):
    """Two calls of `backward` add up; the task has labels in one of them."""
    results = []
    for known in (True, False):
        for labels in ([2, 0], [0, 2], [None, 0], [0, None]):
            model, method = make("mao", dtype=torch.float64, check_finite=False, fused=False)
            method.backward(model.losses(batch(0)))
            method.step()
            method.zero_grad()
            for index, count in enumerate(labels):
                losses = model.losses(batch(1 + index))
                if known and count == 0:
                    del losses["b"]
                counts = None
                if count is not None and not known:
                    counts = {"a": 1, "b": torch.tensor(count), "c": 1}
                method.backward(losses, counts=counts)
            method.step()
            results.append((model.state_dict(), state_of(method)))
    half = len(results) // 2
    assert_close(results[half:], results[:half])
