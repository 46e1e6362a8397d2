"""Methods whose state is as large as the tasks' gradients: MoCo, DB-MTL and ExcessMTL."""

import copy

import pytest
import torch
from networks import TASKS, Network, assert_same, batch, snapshot
from torch import nn
from torchjd.aggregation import ExcessMTL as PeerExcessMTL

import equipoise as eq
from equipoise.testing._jacobians import sample

NAMES = ["moco", "db-mtl", "excess-mtl"]
STEPS = [("conflicting", "abc"), ("random", "abc"), ("conflicting", "ac"), ("random", "abc"), ("conflicting", "b")]


class MoCo:
    """Task by task, in float64, as the paper's Algorithm 1 with the authors' normalisation and softmax."""

    def __init__(self, normalize):
        self.normalize = normalize
        self.y = dict.fromkeys(TASKS, torch.zeros(100, dtype=torch.float64))
        self.share, self.t = dict.fromkeys(TASKS, 1 / 3), dict.fromkeys(TASKS, 0)

    def __call__(self, rows, losses):
        for task, row in rows.items():
            self.t[task] += 1
            aim = losses[task] * row / row.norm() if self.normalize else row
            self.y[task] = self.y[task] - 0.5 / self.t[task] ** 0.5 * (self.y[task] - aim)
        total = sum(self.share[task] for task in rows)
        share = {task: self.share[task] / total for task in rows}
        common = sum(share[task] * self.y[task] for task in rows)
        moved = {
            task: share[task] - 0.1 / self.t[task] ** 0.5 * (self.y[task] @ common + 0.2 * share[task]) for task in rows
        }
        new = torch.tensor([float(value) for value in moved.values()], dtype=torch.float64).softmax(0)
        self.share |= {task: total * float(value) for task, value in zip(rows, new, strict=True)}
        return sum(value * self.y[task] for task, value in zip(rows, new, strict=True))


class DBMTL:
    """Task by task, in float64."""

    def __init__(self):
        self.m = dict.fromkeys(TASKS, torch.zeros(100, dtype=torch.float64))
        self.t = dict.fromkeys(TASKS, 0)

    def __call__(self, rows, losses):
        for task, row in rows.items():
            self.t[task] += 1
            beta = 0.7 / self.t[task] ** 0.5
            self.m[task] = beta * self.m[task] + (1 - beta) * row
        longest = max(self.m[task].norm() for task in rows)
        return sum(longest / self.m[task].norm() * self.m[task] for task in rows)


class ExcessMTL:
    """Task by task, in float64, as the paper's Eq. 6, 7 and 9."""

    def __init__(self):
        self.s = dict.fromkeys(TASKS, torch.zeros(100, dtype=torch.float64))
        self.weight, self.first = dict.fromkeys(TASKS, 1.0), {}

    def __call__(self, rows, losses):
        total, new = sum(self.weight[task] for task in rows), {}
        for task, row in rows.items():
            self.s[task] = self.s[task] + row.square()
            excess = float((row.square() / (self.s[task] + 1e-7).sqrt()).sum())
            known = task in self.first
            self.first.setdefault(task, excess)
            new[task] = self.weight[task] * 2.718281828459045 ** (0.3 * excess / self.first[task] if known else 0.0)
        scale = sum(new.values())
        self.weight |= {task: total * value / scale for task, value in new.items()}
        return sum(len(rows) * new[task] / scale * row for task, row in rows.items())


CASES = {
    "moco": (lambda: eq.MoCo(rho=0.2), lambda: MoCo(True)),
    "moco as in the paper": (lambda: eq.MoCo(rho=0.2, normalize=False), lambda: MoCo(False)),
    "db-mtl": (lambda: eq.DBMTL(beta=0.7, sigma=0.5), DBMTL),
    "excess-mtl": (lambda: eq.ExcessMTL(step_size=0.3), ExcessMTL),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_formula_task_by_task(name):
    make, paper = CASES[name]
    aggregator, expected = make(), paper()
    aggregator.bind(TASKS)
    for index, (kind, present) in enumerate(STEPS):
        jacobian = sample(kind, 3, seed=index)[[TASKS.index(task) for task in present]] / 10
        losses = torch.tensor([0.5, 2.0, 1.2], dtype=torch.float64)[[TASKS.index(task) for task in present]]
        with aggregator.step([TASKS.index(task) for task in present]) as step:
            found = aggregator(jacobian, losses)
            step.commit()
        rows, values = dict(zip(present, jacobian, strict=True)), dict(zip(present, losses, strict=True))
        torch.testing.assert_close(found, expected(rows, values), rtol=1e-9, atol=1e-11)


def test_excess_mtl_equals_torchjd():
    """Whose weights sum to 1, and whose baseline with one step of warm-up is that of the first step."""
    aggregator, peer = eq.ExcessMTL(step_size=0.3), PeerExcessMTL(robust_step_size=0.3, n_warmup_steps=1)
    aggregator.bind(TASKS)
    for seed in range(4):
        jacobian = sample("conflicting", 3, seed)
        with aggregator.step() as step:
            found = aggregator(jacobian)
            step.commit()
        torch.testing.assert_close(found, 3 * peer(jacobian), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("aggregator", [eq.MoCo, eq.DBMTL, eq.ExcessMTL])
def test_tasks_that_the_device_leaves_out_are_not_there(aggregator):
    """Their rows may be anything, and their state stays."""
    masked, restricted = aggregator(), aggregator()
    usable = torch.tensor([True, False, True])
    for each in (masked, restricted):
        each.bind(TASKS)
    for seed in range(3):
        jacobian, losses = sample("conflicting", 3, seed), torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64)
        with masked.step(usable=usable) as step:
            found = masked(jacobian * usable[:, None], losses)
            step.commit()
        with restricted.step([0, 2]) as step:
            expected = restricted(jacobian[[0, 2]], losses[[0, 2]])
            step.commit()
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert_same(dict(masked.named_buffers()), dict(restricted.named_buffers()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: eq.MoCo(beta=0.0), r"beta must be a finite number > 0 and ≤ 1, found 0\.0"),
        (lambda: eq.MoCo(gamma=-1.0), r"gamma must be a finite number > 0, found -1\.0"),
        (lambda: eq.MoCo(rho=-1.0), r"rho must be a finite number ≥ 0, found -1\.0"),
        (lambda: eq.DBMTL(beta=1.0), r"beta must be a finite number ≥ 0 and < 1, found 1\.0"),
        (lambda: eq.DBMTL(sigma=-1.0), r"sigma must be a finite number ≥ 0, found -1\.0"),
        (lambda: eq.ExcessMTL(step_size=0.0), r"step_size must be a finite number > 0, found 0\.0"),
        (lambda: eq.TrimmedMean(trim=-1), "trim must be an integer ≥ 0, found -1"),
        (lambda: eq.Balancer(TASKS, aggregator=eq.MoCo()), "MoCo keeps state by parameter.*give the Balancer model="),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def trained(name, tasks=TASKS, steps=3):
    torch.manual_seed(0)
    model = Network()
    method = eq.make_method(name, model, tasks, lr=0.01)
    for index in range(steps):
        method.zero_grad()
        method.backward(model.losses(batch(index), tasks))
        method.step()
    return model, method


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_shared_has_state_and_it_has_the_parameters_names(name):
    model, method = trained(name)
    rows = {key: value for key, value in method.balancer.state_dict().items() if "/" in key}
    parameters = dict(model.named_parameters())
    assert rows
    for key, value in rows.items():
        parameter = parameters[key.partition("/")[2].replace("/", ".")]
        assert any(parameter is shared for shared in model.shared())
        assert value.shape == (3, *parameter.shape)
        assert value.dtype == torch.float32
    assert len(rows) == len({id(p) for p in model.shared()})


@pytest.mark.parametrize("aggregator", [eq.MoCo, eq.DBMTL, eq.ExcessMTL])
def test_what_is_given_as_shared_needs_no_model(aggregator):
    model = Network()
    balancer = eq.Balancer(TASKS, aggregator=aggregator(), shared=model.shared())
    balancer.backward(model.losses(batch(0)))
    assert sum("/" in key for key in balancer.state_dict()) == len(model.shared())


@pytest.mark.parametrize("name", NAMES)
def test_taken_over_by_tasks_in_another_order_and_number(name):
    _, method = trained(name)
    saved = copy.deepcopy(method.balancer.state_dict())
    other = Network()
    fewer = eq.make_method(name, other, ["c", "a"], lr=0.01)
    fewer.balancer.load_state_dict(saved, tasks="intersection")
    for key, value in fewer.balancer.state_dict().items():
        if not key.endswith("_extra_state"):
            assert_same(value, saved[key][[2, 0]])
    assert any("/" in key for key in fewer.balancer.state_dict())


def test_targets_of_pairs_are_taken_over_by_task():
    _, method = trained("gradvac")
    target = method.balancer.aggregator.target.clone()
    assert target.count_nonzero() == 6
    fewer = eq.make_method("gradvac", Network(), ["c", "d", "a"], lr=0.01)
    fewer.balancer.load_state_dict(method.balancer.state_dict(), tasks="intersection")
    found = fewer.balancer.aggregator.target
    assert_same(found[[0, 2]][:, [0, 2]], target[[2, 0]][:, [2, 0]])
    assert not found[1].any()
    assert not found[:, 1].any()


def test_a_state_of_another_models_shapes_is_refused():
    model, method = trained("moco")
    method.zero_grad()
    before = snapshot(model)
    method.balancer.aggregator._buffers["tracked/trunk/weight"] = torch.zeros(3, 2, 2)
    with pytest.raises(ValueError, match=r"shape \(3, 2, 2\) as 'tracked/trunk/weight', expected \(3, 6, 4\)"):
        method.backward(model.losses(batch(3)))
    assert all(p.grad is None for p in model.parameters())
    assert_same(snapshot(model), before)


def test_sparse_tables_are_refused():
    table = nn.Embedding(5, 3, sparse=True)
    balancer = eq.Balancer(["a", "b"], aggregator=eq.MoCo(), model=table)
    z = table(torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"MoCo keeps state.*sparse=False"):
        balancer.backward({"a": z.sum(), "b": z.square().sum()})
    assert table.weight.grad is None


@pytest.mark.parametrize("name", NAMES)
def test_goes_on_in_another_precision(name):
    model, method = trained(name)
    model.double()
    method.zero_grad()
    method.backward(model.losses(batch(3)))
    assert all(p.grad is None or p.grad.dtype == torch.float64 for p in model.parameters())


def test_the_state_goes_where_the_losses_are():
    """As an objective's; that of a Gramian aggregator stays on the host."""
    for aggregator, device in ((eq.MoCo(), torch.device("cpu")), (eq.GradNorm(), None)):
        assert eq.Balancer(TASKS, aggregator=aggregator, model=Network())._balancing.weigh.device == device
