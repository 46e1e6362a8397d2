"""The monitor's numbers against the same training done by hand, in NumPy.

Task k's loss is ½ (h_k s_k·Wx − y_k)² with a shared W, a factor h_k of its own and a fixed vector s_k. So with the
error e_k its gradients are e_k h_k s_k xᵀ and e_k s_k·Wx.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.monitor import rates, sums

TASKS = ("a", "b")
DIRECTIONS = {"a": np.array([1.0, 0.5]), "b": np.array([-0.8, 0.4])}
TARGETS = {"a": 1.3, "b": -40.0}
PRESENT = ["ab", "ab", "a", "ab", "b", "ab", "a", "ab"]
LR = 0.05


class Factor(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(3, 2, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.shared.weight.copy_(torch.tensor([[0.4, -0.7, 0.2], [0.9, 0.3, -0.5]], dtype=torch.float64))
        self.own = nn.ModuleDict({"a": Factor(0.7), "b": Factor(-1.1)})

    def losses(self, x, tasks):
        features = self.shared(torch.tensor(x))
        outputs = {task: self.own[task].value * (torch.tensor(DIRECTIONS[task]) @ features) for task in tasks}
        return {task: 0.5 * (output - TARGETS[task]) ** 2 for task, output in outputs.items()}


def inputs():
    return np.random.default_rng(0).normal(size=(len(PRESENT), 3))


class ByHand:
    """The parameters W, h_a and h_b, and what is remembered of each."""

    def __init__(self, update):
        self.update = update
        self.parameters = {
            "W": np.array([[0.4, -0.7, 0.2], [0.9, 0.3, -0.5]]),
            "a": np.array(0.7),
            "b": np.array(-1.1),
        }
        self.memory = {}

    def gradients(self, x, tasks):
        found, losses = {}, {}
        for task in tasks:
            features, direction, factor = self.parameters["W"] @ x, DIRECTIONS[task], self.parameters[task]
            error = factor * (direction @ features) - TARGETS[task]
            losses[task] = 0.5 * error**2
            found[task] = {"W": error * factor * np.outer(direction, x), task: error * (direction @ features)}
        return losses, found

    def step(self, gradients):
        """Updates with the weighted task gradients; returns the mean contributions by task and parameter."""
        contributions = {task: {} for task in gradients}
        for name in self.parameters:
            own = {task: row[name] for task, row in gradients.items() if name in row}
            if own:
                memory = self.memory.setdefault(name, {})
                self.parameters[name], rates = self.update(self.parameters[name], own, memory)
                for task, gradient in own.items():
                    contributions[task][name] = np.mean(np.abs(gradient) * rates[task])
        return contributions


def adam(amsgrad=False, decay=0.0, betas=(0.9, 0.999), eps=1e-8):
    def update(theta, own, memory):
        gradient = sum(own.values())
        t = memory["t"] = memory.get("t", 0) + 1
        m = memory["m"] = betas[0] * memory.get("m", 0) + (1 - betas[0]) * gradient
        v = memory["v"] = betas[1] * memory.get("v", 0) + (1 - betas[1]) * gradient**2
        if amsgrad:
            v = memory["most"] = np.maximum(memory.get("most", 0), v)
        rate = LR / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        return theta * (1 - LR * decay) - rate * m / (1 - betas[0] ** t), dict.fromkeys(own, rate)

    return update


def mao(betas=(0.9, 0.999), eps=1e-8):
    def update(theta, own, memory):
        rates = {}
        for task, gradient in own.items():
            kept = memory.setdefault(task, {"t": 0, "m": 0.0, "v": 0.0})
            kept["t"] += 1
            kept["m"] = betas[0] * kept["m"] + (1 - betas[0]) * gradient
            kept["v"] = betas[1] * kept["v"] + (1 - betas[1]) * gradient**2
            rates[task] = LR / (np.sqrt(kept["v"] / (1 - betas[1] ** kept["t"])) + eps)
            theta = theta - rates[task] * kept["m"] / (1 - betas[0] ** kept["t"])
        return theta, rates

    return update


def sgd(momentum=0.0):
    def update(theta, own, memory):
        gradient = sum(own.values())
        memory["b"] = gradient + (momentum * memory["b"] if "b" in memory else 0)
        return theta - LR * memory["b"], dict.fromkeys(own, LR)

    return update


def rmsprop(centered):
    def update(theta, own, memory):
        gradient = sum(own.values())
        v = memory["v"] = 0.99 * memory.get("v", 0) + 0.01 * gradient**2
        if centered:
            memory["m"] = 0.99 * memory.get("m", 0) + 0.01 * gradient
            v = v - memory["m"] ** 2
        rate = LR / (np.sqrt(v) + 1e-8)
        return theta - rate * gradient, dict.fromkeys(own, rate)

    return update


def adagrad():
    def update(theta, own, memory):
        gradient = sum(own.values())
        t = memory["t"] = memory.get("t", 0) + 1
        v = memory["v"] = memory.get("v", 0) + gradient**2
        rate = LR / (1 + (t - 1) * 0.1) / (np.sqrt(v) + 1e-10)
        return theta - rate * gradient, dict.fromkeys(own, rate)

    return update


OPTIMIZERS = {
    "Adam": (lambda p: torch.optim.Adam(p, LR), adam()),
    "Adam, amsgrad": (lambda p: torch.optim.Adam(p, LR, amsgrad=True, betas=(0.8, 0.5)), adam(True, betas=(0.8, 0.5))),
    "Adam, foreach": (lambda p: torch.optim.Adam(p, LR, foreach=True, eps=1e-2), adam(eps=1e-2)),
    "Adam, tensor": (lambda p: torch.optim.Adam(p, torch.tensor(LR, dtype=torch.float64)), adam()),
    "AdamW": (lambda p: torch.optim.AdamW(p, LR, weight_decay=0.1, eps=1e-3), adam(decay=0.1, eps=1e-3)),
    "AdamW, fused": (lambda p: torch.optim.AdamW(p, LR, weight_decay=0.1, fused=True), adam(decay=0.1)),
    "SGD": (lambda p: torch.optim.SGD(p, LR), sgd()),
    "SGD, tensor": (lambda p: torch.optim.SGD(p, torch.tensor(LR, dtype=torch.float64)), sgd()),
    "SGD, momentum": (lambda p: torch.optim.SGD(p, LR, momentum=0.9), sgd(0.9)),
    "RMSprop": (lambda p: torch.optim.RMSprop(p, LR), rmsprop(False)),
    "RMSprop, centered": (lambda p: torch.optim.RMSprop(p, LR, centered=True), rmsprop(True)),
    "Adagrad": (lambda p: torch.optim.Adagrad(p, LR, lr_decay=0.1), adagrad()),
}


class Weights:
    """By hand: equal weights, EMA, and PCGrad of two tasks, which has a closed form."""

    def __init__(self, kind):
        self.kind = kind
        self.averages = {}

    def __call__(self, losses, gradients):
        """Returns the weights on W, and those on a task's own parameter."""
        if self.kind == "ema":
            for task, loss in losses.items():
                self.averages[task] = 0.1 * loss + 0.9 * self.averages.get(task, loss)
            own = {task: 1 / self.averages[task] for task in losses}
            return own, own
        own = dict.fromkeys(losses, 1.0)
        if self.kind == "pcgrad" and len(losses) == 2:
            a, b = (gradients[task]["W"].ravel() for task in TASKS)
            if a @ b < 0:
                return {"a": 1 - (a @ b) / (a @ a), "b": 1 - (a @ b) / (b @ b)}, own
        return own, own


def expected_record(by_hand, weights, x, tasks):
    """Takes a step by hand; returns what the monitor has to say of it."""
    losses, raw = by_hand.gradients(x, tasks)
    shared, own = weights(losses, raw)
    weighted = {task: {"W": shared[task] * row["W"], task: own[task] * row[task]} for task, row in raw.items()}
    moved = by_hand.step(weighted)
    layers = ("W", "a", "b")
    cosines = [[None, None], [None, None]]
    by_layer = [None, None, None]
    if len(raw) == 2:
        a, b = (raw[task]["W"].ravel() for task in TASKS)
        cosine = a @ b / math.sqrt((a @ a) * (b @ b))
        cosines = [[1.0, cosine], [cosine, 1.0]]
        by_layer[0] = [cosine]
    return {
        "weights": {task: shared.get(task) for task in TASKS},
        "gradient": {
            task: [np.linalg.norm(weighted[task][name]) if name in weighted.get(task, {}) else None for name in layers]
            for task in TASKS
        },
        "contribution": {task: [moved.get(task, {}).get(name) for name in layers] for task in TASKS},
        "cosines": cosines,
        "layer_cosines": by_layer,
    }


def assert_record(found, expected):
    for key in ("weights", "gradient", "contribution"):
        assert found[key] == {
            task: pytest.approx(value, rel=1e-9, abs=1e-15) if isinstance(value, float) else approximately(value)
            for task, value in expected[key].items()
        }, key
    assert found["cosines"] == [approximately(row) for row in expected["cosines"]]
    for own, theirs in zip(found["layer_cosines"], expected["layer_cosines"], strict=True):
        if theirs is None:
            assert own in (None, [None])  # of W, where one task is missing
        else:
            assert own == pytest.approx(theirs, abs=0.51e-4)


def approximately(values):
    if values is None:
        return None
    return [value if value is None else pytest.approx(value, rel=1e-9, abs=1e-15) for value in values]


def check(method, model, update, weights, every=1, optimizer=None):
    """Trains beside the training by hand; `method` has backward, `optimizer` step."""
    monitor = eq.BalanceMonitor(method, model, every=every, optimizer=optimizer)
    stepping = optimizer or method
    by_hand, expected = ByHand(update), []
    for x, tasks in zip(inputs(), PRESENT, strict=True):
        expected.append(expected_record(by_hand, weights, x, tasks))
        method.backward(model.losses(x, tasks))
        stepping.step()
        stepping.zero_grad()
    assert monitor.recording.layers == ["shared", "own.a", "own.b"]
    assert monitor.recording.steps == list(range(0, len(PRESENT), every))
    for record in monitor.records:
        assert_record(record, expected[record["step"]])
    np.testing.assert_allclose(model.shared.weight.detach().numpy(), by_hand.parameters["W"], rtol=1e-9)


@pytest.fixture(params=[None, "tensors", 4, 1], ids=["small", "numbers as on a GPU", "two blocks", "blocks of one"])
def block(request, monkeypatch):
    """How the parameters are gone through: as small ones, with step counts on the device, as large ones on a CPU."""
    if request.param == "tensors":
        monkeypatch.setattr(rates, "_numbers", lambda vector: list(vector.unbind()))
    elif request.param:
        monkeypatch.setattr(sums, "BLOCK", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_with_equal_weights(name):
    make, update = OPTIMIZERS[name]
    model = Line()
    check(eq.Balancer(TASKS), model, update, Weights("ew"), optimizer=make(model.parameters()))


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("kind", ["ema", "pcgrad"])
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_weights(kind, name):
    make, update = OPTIMIZERS[name]
    model = Line()
    balancer = eq.Balancer(TASKS, eq.EMA()) if kind == "ema" else eq.Balancer(TASKS, aggregator=eq.PCGrad())
    check(balancer, model, update, Weights(kind), optimizer=make(model.parameters()))


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("fused", [False, True])
def test_mao(fused):
    model = Line()
    check(eq.MAO(model.parameters(), TASKS, lr=LR, fused=fused), model, mao(), Weights("ew"))


@pytest.mark.parametrize("every", [2, 3])
def test_every_few_steps(every):
    model = Line()
    method = eq.make_method("ema", model, TASKS, lr=LR, weight_decay=0.1)
    check(method, model, adam(decay=0.1), Weights("ema"), every)


def test_groups_of_parameters_have_rates_of_their_own():
    model = Line()
    groups = [{"params": model.shared.parameters(), "lr": 0.5}, {"params": model.own.parameters(), "lr": 0.01}]
    balancer, optimizer = eq.Balancer(TASKS), torch.optim.SGD(groups)
    monitor = eq.BalanceMonitor(balancer, model, every=1, optimizer=optimizer)
    x = inputs()[0]
    _, gradients = ByHand(sgd()).gradients(x, TASKS)
    balancer.backward(model.losses(x, TASKS))
    optimizer.step()
    expected = [0.5 * np.abs(gradients["a"]["W"]).mean(), 0.01 * abs(gradients["a"]["a"]), None]
    assert monitor.records[0]["contribution"]["a"] == approximately(expected)


def test_what_clipping_does_shows_in_the_rates():
    """The optimizer sees a tenth of the gradient: Adam's first step then moves as far as ever, SGD's a tenth."""
    for kind, factor in ((torch.optim.SGD, 1.0), (torch.optim.Adam, 10.0)):
        model = Line()
        balancer, optimizer = eq.Balancer(TASKS), kind(model.parameters(), lr=LR)
        monitor = eq.BalanceMonitor(balancer, model, every=1, optimizer=optimizer)
        _, gradients = ByHand(sgd()).gradients(inputs()[0], TASKS)
        balancer.backward(model.losses(inputs()[0], TASKS))
        for parameter in model.parameters():
            parameter.grad /= 10
        optimizer.step()
        own, total = gradients["a"]["W"], gradients["a"]["W"] + gradients["b"]["W"]
        rate = LR if kind is torch.optim.SGD else factor * LR / np.abs(total)
        assert monitor.records[0]["contribution"]["a"][0] == pytest.approx(np.mean(np.abs(own) * rate), rel=1e-6)
        assert monitor.records[0]["gradient"]["a"][0] == pytest.approx(np.linalg.norm(own))


PLANES = {
    "a": ([1.0, 2.0, 0.0], [3.0, 0.0]),
    "b": ([2.0, -1.0, 1.0], [1.0, 1.0]),
    "c": ([-1.0, -2.0, 0.0], None),  # reaches p alone
}


class Planes(nn.Module):
    """Task k's loss is u_k·p + w_k·q, with p and q in layers of their own: its gradients are u_k and w_k."""

    def __init__(self):
        super().__init__()
        self.p, self.q = nn.Module(), nn.Module()
        self.p.value = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.q.value = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def losses(self, tasks="abc"):
        found = {}
        for task in tasks:
            u, w = PLANES[task]
            found[task] = self.p.value @ torch.tensor(u, dtype=torch.float64)
            if w is not None:
                found[task] = found[task] + self.q.value @ torch.tensor(w, dtype=torch.float64)
        return found


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("name", ["ew", "pcgrad", "mao"])
def test_cosines_by_layer(name):
    """a and b are at right angles in p and at 45° in q; a and c are opposed in p. Together: 3/√(14·8) of a and b."""
    model = Planes()
    method = eq.make_method(name, model, list("abc"), lr=LR)
    monitor = eq.BalanceMonitor(method, model, every=1)
    for tasks in ("abc", "ab", "ac", "a"):
        method.backward(model.losses(tasks))
        method.step()
        method.zero_grad()
    assert monitor.recording.layers == ["p", "q"]
    assert monitor.recording.pairs == [("a", "b"), ("a", "c"), ("b", "c")]
    first, second, third, last = (record["layer_cosines"] for record in monitor.records)
    assert first == [[0.0, -1.0, 0.0], [0.7071, None, None]]
    assert second == [[0.0, None, None], [0.7071, None, None]]
    assert third == [[None, -1.0, None], [None, None, None]]
    assert last in ([None, None], [[None] * 3] * 2)
    whole = monitor.records[0]["cosines"]
    assert whole[0][1] == pytest.approx(3 / math.sqrt(14 * 8), rel=1e-9)
    assert whole[0][2] == pytest.approx(-5 / math.sqrt(14 * 5), rel=1e-9)
    assert monitor.recording.mean_layer_cosines() == {
        ("a", "b"): [0.0, pytest.approx(0.7071)],
        ("a", "c"): [-1.0, None],
        ("b", "c"): [0.0, None],
    }
