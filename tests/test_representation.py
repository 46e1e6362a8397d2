"""Gradients at the representation: MGDA-UB and its like, with one backward pass through the trunk."""

import pytest
import torch
from networks import TASKS, assert_same, batch, gradients, snapshot
from torch import nn

import equipoise as eq


class Recorder(eq.GramianAggregator):
    """Fixed weights by position; remembers the Gramians."""

    def __init__(self, weights):
        super().__init__()
        self.given = weights
        self.gramians = []

    def weights(self, gramian, losses):
        self.gramians.append(gramian)
        return gramian.new_tensor(self.given[: len(losses)])


class Scales(nn.Module):
    """A trunk of two tensors, the second computed from the first, and one of a branch above that a and b share.

    `around` is used below the representation and by a's head directly; `own` by c's head alone.
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 5)
        self.second = nn.Linear(5, 3)
        self.around = nn.Parameter(torch.randn(3))
        self.branch = nn.Linear(8, 4)
        self.own = nn.Linear(8, 1)
        self.heads = nn.ModuleDict({task: nn.Linear(4, 1) for task in "ab"})
        self.double()

    def representation(self, x, alias=True):
        first = self.first(x.double()).tanh()
        second = (self.second(first) * self.around).tanh()
        return [z.view_as(z) if alias else z for z in (first, second)]

    def losses(self, representation, tasks=TASKS):
        z = torch.cat(list(representation), 1)
        ab = self.branch(z).tanh()
        every = {
            "a": lambda: (self.heads["a"](ab) + self.around.sum()).square().mean(),
            "b": lambda: 20 * self.heads["b"](ab).exp().mean(),
            "c": lambda: (self.own(z) - 1).square().mean(),
        }
        return {task: every[task]() for task in tasks}


def by_hand(model, x, weights, tasks=TASKS):
    """Name → Σ_k w_k ∂L_k for all that leads to the representation and what is shared above it; else the sum."""
    shared = {"first", "second", "around", "branch"}
    total = {}
    for task in tasks:
        named = dict(model.named_parameters())
        loss = model.losses(model.representation(x), [task])[task]
        for name, g in zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True):
            if g is not None:
                w = weights[task] if name.split(".")[0] in shared else 1.0
                total[name] = total.get(name, 0) + w * g
    return total


def gramian_by_hand(model, x, tasks=TASKS):
    """From the gradients at a detached representation: that of the bound in the paper."""
    leaves = [z.detach().requires_grad_() for z in model.representation(x)]
    rows = []
    for loss in model.losses(leaves, tasks).values():
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves, retain_graph=True)]))
    return torch.stack(rows) @ torch.stack(rows).T


def assert_gradients(model, expected):
    found = {name: g for name, g in gradients(model).items() if g is not None}
    assert set(found) == set(expected)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("tasks", ["abc", "ab", "c", "ac"])
def test_weights_come_from_the_representation_and_apply_to_all_that_leads_to_it(tasks):
    model, x = Scales(), batch(0)
    aggregator = Recorder([0.3, -2.0, 5.0])
    balancer = eq.Balancer(TASKS, aggregator=aggregator)
    representation = model.representation(x)
    balancer.backward(model.losses(representation), representation=representation)
    model.zero_grad()
    representation = model.representation(x)
    weights = balancer.backward(model.losses(representation, tasks), representation=representation)
    expected = dict(zip(tasks, [0.3, -2.0, 5.0], strict=False))
    assert {task: w.item() for task, w in weights.items()} == expected
    torch.testing.assert_close(aggregator.gramians[1], gramian_by_hand(model, x, tasks), rtol=1e-12, atol=1e-14)
    assert_gradients(model, by_hand(model, x, expected, tasks))


def test_mgda_ub_in_closed_form():
    """`z = Wx`, `L_k = ½ mean_i (h_k·z_i − y_ik)²`: two tasks' min-norm point at z, then `W` gets it times `x`."""
    torch.manual_seed(0)
    x, y = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    trunk = nn.Parameter(torch.randn(4, 3).double())
    heads = [nn.Parameter(torch.randn(4).double()) for _ in range(2)]
    z = x @ trunk.T
    losses = {
        name: 0.5 * (z @ head - y[:, k]).square().mean() for k, (name, head) in enumerate(zip("ab", heads, strict=True))
    }
    weights = eq.Balancer(["a", "b"], aggregator=eq.MGDA()).backward(losses, representation=z)

    with torch.no_grad():
        errors = [(z @ head - y[:, k]) / 7 for k, head in enumerate(heads)]
        at_z = [torch.outer(error, head) for error, head in zip(errors, heads, strict=True)]
        aa, ab, bb = ((at_z[i] * at_z[j]).sum() for i, j in ((0, 0), (0, 1), (1, 1)))
        first = ((bb - ab) / (aa + bb - 2 * ab)).clamp(0, 1)
        combined = first * at_z[0] + (1 - first) * at_z[1]
    assert weights["a"].item() == pytest.approx(first.item(), rel=1e-12)
    assert 0 < first < 1
    torch.testing.assert_close(trunk.grad, combined.T @ x, rtol=1e-12, atol=1e-15)
    for head, error in zip(heads, errors, strict=True):
        torch.testing.assert_close(head.grad, error @ z.detach(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("order", [(0, 1, 0), (1, 1, 0), (0, 1, 1, 0)])
def test_a_tensor_given_twice_counts_once(order):
    model, x = Scales(), batch(0)
    aggregator = Recorder([0.3, -2.0, 5.0])
    representation = model.representation(x)
    losses = model.losses(representation)
    eq.Balancer(TASKS, aggregator=aggregator).backward(losses, representation=[representation[i] for i in order])
    torch.testing.assert_close(aggregator.gramians[0], gramian_by_hand(model, x), rtol=1e-12, atol=1e-14)
    assert_gradients(model, by_hand(model, x, dict(zip(TASKS, [0.3, -2.0, 5.0], strict=True))))


@pytest.mark.parametrize("name", ["mgda", "imtl-g", "cagrad", "nash-mtl", "pcgrad"])
def test_behind_an_orthogonal_trunk_it_is_the_exact_method(name):
    """With `z_i = W x_i` and orthonormal inputs `x_i`, the Gramian at `W` is the one at `z`."""
    inputs = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2)).double())[0]
    results = []
    for bound in (True, False):
        torch.manual_seed(3)
        model = nn.ModuleDict(
            {"trunk": nn.Linear(6, 4, bias=False), **{task: nn.Linear(4, 2) for task in TASKS}}
        ).double()
        method = eq.make_method(name, model, TASKS, lr=0.01)
        for _ in range(3):
            method.zero_grad()
            z = model["trunk"](inputs)
            losses = {task: (k + 1) * model[task](z).square().mean() for k, task in enumerate(TASKS)}
            weights = method.backward(losses, **({"representation": z} if bound else {}))
            method.step()
        results.append((weights, gradients(model)))
    for task in TASKS:
        torch.testing.assert_close(results[0][0][task], results[1][0][task], rtol=1e-8, atol=1e-10)
    for one, other in zip(results[0][1].values(), results[1][1].values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("around", [False, True])
def test_the_trunk_is_gone_through_once(around):
    """And each task's part once; twice where a parameter is used on both sides."""
    trunk, branch, bias = nn.Linear(4, 5), nn.Linear(5, 3), nn.Parameter(torch.zeros(()))
    z = trunk(batch(0)).tanh() + bias
    features = branch(z).tanh()
    losses = {task: (features - k).square().mean() + (bias if around else 0) for k, task in enumerate(TASKS)}
    nodes = {"trunk": z.grad_fn, "branch": features.grad_fn, **{task: loss.grad_fn for task, loss in losses.items()}}
    passes = dict.fromkeys(nodes, 0)
    for part, node in nodes.items():
        node.register_hook(lambda *_, part=part: passes.__setitem__(part, passes[part] + 1))
    eq.Balancer(TASKS, aggregator=eq.MGDA()).backward(losses, representation=z)
    again = int(around)
    assert passes == {"trunk": 1, "branch": 3 + again, **dict.fromkeys(TASKS, 1 + again)}


@pytest.mark.parametrize("option", ["scaler", "retain_graph", "objective", "add"])
def test_with_everything_else(option):
    model, x = Scales(), batch(0)
    given = {"a": 0.3, "b": -2.0, "c": 5.0}
    balancer = eq.Balancer(TASKS, eq.UW() if option == "objective" else None, Recorder(list(given.values())))
    representation = model.representation(x)
    losses = model.losses(representation)
    factor = 1.0
    if option == "add":
        balancer.backward(model.losses(model.representation(x)))
        factor = 2.0
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0) if option == "scaler" else None
    weights = balancer.backward(
        losses, representation=representation, scaler=scaler, retain_graph=option == "retain_graph"
    )
    if option == "retain_graph":
        balancer.backward(losses, representation=representation)
        factor = 2.0
    if option == "scaler":
        factor = 64.0
        torch.testing.assert_close(balancer.aggregator.gramians[0], gramian_by_hand(model, x), rtol=1e-11, atol=1e-13)
    expected = by_hand(model, x, given)
    if option == "objective":
        shared = {"first", "second", "around", "branch"}
        expected = by_hand(model, x, {task: w / 2 for task, w in given.items()})  # UW's coefficients are ½
        expected = {n: g if n.split(".")[0] in shared else g / 2 for n, g in expected.items()}
        assert weights["b"].item() == -1.0
        assert all(p.grad is not None for p in balancer.parameters())
    assert_gradients(model, {name: factor * g for name, g in expected.items()})


def test_an_overflow_leaves_the_state_alone():
    model = Scales()
    balancer = eq.Balancer(TASKS, eq.EMA(), eq.GradNorm())
    before = snapshot(balancer)
    representation = model.representation(batch(0))
    representation[1].register_hook(lambda g: g * torch.inf)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    balancer.backward(model.losses(representation), representation=representation, scaler=scaler)
    assert_same(snapshot(balancer), before)
    assert not model.second.weight.grad.isfinite().all()


def test_in_half_precision_small_gradients_survive_by_the_scaler():
    """Gradients of 1e-9 are 0 in float16; scaled they are not, and the weights are those in float32."""
    found = []
    for dtype in (torch.float16, torch.float32):
        torch.manual_seed(0)
        trunk, heads = nn.Linear(8, 8), [nn.Linear(8, 1) for _ in range(2)]
        z = trunk(torch.randn(16, 8, generator=torch.Generator().manual_seed(1))).to(dtype)
        losses = {
            name: (z.float() @ head.weight.T).square().mean() * 1e-8 for name, head in zip("ab", heads, strict=True)
        }
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
        found.append(eq.Balancer(["a", "b"], aggregator=eq.IMTLG()).backward(losses, representation=z, scaler=scaler))
    assert found[0]["a"].item() == pytest.approx(found[1]["a"].item(), rel=1e-2)


def test_a_monitor_sees_the_task_gradients():
    """What it is shown, and that showing it changes nothing."""

    class Watcher:
        due = True

        def see_rows(self, rows):
            self.rows = {task: dict(row) for task, row in rows.items()}

        def see_weights(self, weights, shared):
            self.weights, self.shared = weights, list(shared)

        def see_result(self, weights):
            self.result = weights

    models = [Scales() for _ in range(2)]
    watcher = Watcher()
    for model, watching in zip(models, (watcher, None), strict=True):
        balancer = eq.Balancer(TASKS, aggregator=eq.MGDA())
        balancer.watch(watching)
        representation = model.representation(batch(0))
        balancer.backward(model.losses(representation), representation=representation)
    assert_same(gradients(models[0]), gradients(models[1]))
    first = models[0].first.weight
    assert first in set(watcher.shared)
    total = sum(w * watcher.rows[task][first] for task, w in watcher.weights.items())
    torch.testing.assert_close(total, first.grad, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"representation": 3}, TypeError, "must be a tensor or a sequence of tensors, found 3"),
        ({"representation": ["z"]}, TypeError, "found 'z' in it"),
        ({"representation": []}, ValueError, "representation is empty"),
        ({"representation": torch.ones(2)}, ValueError, "must be what the trunk returned, with its graph"),
        ({"representation": torch.ones(2, requires_grad=True)}, ValueError, "with its graph"),
        ({"representation": torch.ones(2, requires_grad=True) * 1}, ValueError, "No loss depends on representation"),
        ({"alias": False}, ValueError, r"Tensor 0 of representation is on the way.*view_as\(z\)"),
        ({"accumulate": True}, ValueError, "representation balances one batch"),
        ({"micro": True}, ValueError, "representation balances one batch"),
        ({"aggregator": None}, ValueError, "needs an aggregator that finds weights from the Gramian; found none"),
        ({"aggregator": eq.GradDrop}, ValueError, "found GradDrop"),
        ({"shared": True}, ValueError, "make the Balancer without shared"),
        ({"losses": {}}, ValueError, "losses is empty"),
    ],
)
def test_errors_change_nothing(change, error, words):
    model = Scales()
    aggregator = change.get("aggregator", eq.GradNorm)
    balancer = eq.Balancer(
        TASKS,
        eq.EMA(),
        aggregator and aggregator(),
        shared=model.branch if "shared" in change else None,
        model=model,
    )
    if "micro" in change:
        balancer.backward(model.losses(model.representation(batch(1))), accumulate=True)
    representation = model.representation(batch(0), alias=change.get("alias", True))
    losses = change.get("losses", model.losses(representation))
    before = snapshot(model, balancer)
    with pytest.raises(error, match=words):
        balancer.backward(
            losses,
            representation=change.get("representation", representation),
            accumulate=change.get("accumulate", False),
        )
    assert_same(snapshot(model, balancer), before)


def test_what_a_loss_reaches_around_the_representation_is_not_cut():
    """A loss that does not depend on the representation at all has a row of zeros there, and its own gradients."""
    model, x = Scales(), batch(0)
    aggregator = Recorder([0.5, 2.0, 3.0])
    representation = model.representation(x)
    losses = model.losses(representation, ["a", "b"])
    losses["c"] = model.around.square().sum()
    eq.Balancer(TASKS, aggregator=aggregator).backward(losses, representation=representation)
    assert aggregator.gramians[0][2].tolist() == [0.0, 0.0, 0.0]
    expected = by_hand(model, x, {"a": 0.5, "b": 2.0}, ["a", "b"])["around"] + 3.0 * 2 * model.around.detach()
    torch.testing.assert_close(model.around.grad, expected, rtol=1e-12, atol=1e-14)


def test_tensors_of_one_node_and_a_compiled_trunk():
    class Chunks(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
            self.heads = nn.ModuleList(nn.Linear(3, 1) for _ in range(2))

    results = []
    for compiled in (False, True):
        model = Chunks()
        balancer = eq.Balancer(["a", "b"], aggregator=eq.MGDA())
        trunk = torch.compile(model.trunk, backend="aot_eager") if compiled else model.trunk
        z = trunk(batch(0)).chunk(2, 1)
        losses = {n: head(part).exp().mean() for n, head, part in zip("ab", model.heads, z, strict=True)}
        results.append((balancer.backward(losses, representation=z), gradients(model)))
        torch._dynamo.reset()
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
    assert results[0][0]["a"] + results[0][0]["b"] == pytest.approx(1.0)
