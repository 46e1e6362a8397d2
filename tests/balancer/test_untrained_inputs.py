"""Leaves that require a gradient and are not trained: inputs, and, with `model=`, parameters of other models."""

import pytest
import torch
from balancer.by_hand import Recorder
from balancer.test_sharing import AGGREGATORS, CLOSE, GRAMIAN, assert_gradients_close
from networks import assert_same, gradients
from torch import nn

import equipoise as eq

STATIC = {"a": 2.0, "b": 0.5}


class Field(nn.Module):
    """Two tasks on a trunk that reads points; both heads read a prompt, and a's a context of its own as well."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4))
        self.heads = nn.ModuleDict({"a": nn.Linear(10, 1), "b": nn.Linear(7, 1)})
        self.double()

    def losses(self, points, prompt, context, tasks="ab"):
        z = self.trunk(points).tanh()
        prompts, contexts = prompt.expand(len(z), -1), context.expand(len(z), -1)
        every = {
            "a": lambda: self.heads["a"](torch.cat([z, prompts, contexts], 1)).square().mean(),
            "b": lambda: self.heads["b"](torch.cat([z, prompts], 1)).exp().mean(),
        }
        return {task: every[task]() for task in tasks}


def inputs(index, requires_grad):
    generator = torch.Generator().manual_seed(index)
    sizes = [(6, 2), (1, 3), (1, 3)]
    return [
        torch.randn(*size, generator=generator, dtype=torch.float64).requires_grad_(requires_grad) for size in sizes
    ]


def run(balance, model, mode, requires_grad):
    """Two micro-batches, each with inputs of its own; returns what the inputs of each got, and should get."""
    found, expected = [], []
    batches = {"one step": ["ab"], "accumulated": ["ab", "ab"], "apart": ["a", "b"], "counts": ["ab", "ab"]}[mode]
    samples = [3, 5]
    for index, tasks in enumerate(batches):
        given = inputs(index, requires_grad)
        options = {"accumulate": True} if index < len(batches) - 1 else {}
        if mode == "counts":
            options["counts"] = dict.fromkeys(tasks, samples[index])
        if requires_grad:
            share = samples[index] / sum(samples) if mode == "counts" else 1.0
            losses = model.losses(*given, tasks)
            total = sum(balance.coefficients[task] * loss for task, loss in losses.items())
            wanted = torch.autograd.grad(total, given, allow_unused=True)
            expected.append([None if g is None else share * g for g in wanted])
        balance(model.losses(*given, tasks), **options)
        found.append(given)
    return [[x.grad for x in given] for given in found], expected


class Balance:
    """A Balancer or MAO, and the coefficients it gives the losses."""

    def __init__(self, name, model, place):
        self.coefficients = {"a": 1.0, "b": 1.0} if name == "mao" else STATIC
        self.weights = None
        if name == "mao":
            self.method = eq.MAO(model.parameters(), ["a", "b"], lr=0.1)
        else:
            given = {"probe": {"probe": model.trunk[2]}, "layers": {"engine": "layers"}, "all": {}}[place]
            aggregator = AGGREGATORS[name]() if name in AGGREGATORS else None
            self.method = eq.Balancer(["a", "b"], eq.Static(STATIC), aggregator, **given)

    def __call__(self, losses, **options):
        self.weights = self.method.backward(losses, **options)

    def finish(self, model):
        """What the parameters got; MAO's move by what it took."""
        if isinstance(self.method, eq.MAO):
            self.method.step()
            return {name: p.detach().clone() for name, p in model.named_parameters()}
        return gradients(model)


@pytest.mark.parametrize("mode", ["one step", "accumulated", "apart", "counts"])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        *((name, "all") for name in [*AGGREGATORS, "none", "mao"]),
        *((name, place) for name in GRAMIAN for place in ("probe", "layers")),
    ],
)
def test_inputs_get_their_plain_gradient_and_change_nothing_else(name, place, mode):
    results = []
    for requires_grad in (True, False):
        model = Field()
        balance = Balance(name, model, place)
        found, expected = run(balance, model, mode, requires_grad)
        for one, other in zip(found, expected, strict=requires_grad):
            torch.testing.assert_close(one, other, **CLOSE)
        results.append((balance.finish(model), balance.weights))
    assert_gradients_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], **CLOSE)


@pytest.mark.parametrize("tied", [False, True], ids=["apart", "tied"])
def test_inputs_under_and_above_a_representation(tied):
    """Tied: a weight is used on both sides of it, so that the pass of all tasks starts at the losses."""
    results = []
    for requires_grad in (True, False):
        model = Field()
        recorder = Recorder([3.0, -2.0])
        balancer = eq.Balancer(["a", "b"], eq.Static(STATIC), recorder)
        points, prompt, context = inputs(0, requires_grad)

        def losses(model=model, points=points, prompt=prompt, context=context):
            z = model.trunk(points).tanh()
            above = model.trunk[2].bias.sum() if tied else 0.0
            prompts, contexts = prompt.expand(len(z), -1), context.expand(len(z), -1)
            a = (model.heads["a"](torch.cat([z, prompts, contexts], 1)) + above).square().mean()
            return z, {"a": a, "b": model.heads["b"](torch.cat([z, prompts], 1)).exp().mean()}

        if requires_grad:
            _, values = losses()
            wanted = torch.autograd.grad(sum(STATIC[t] * loss for t, loss in values.items()), [points, prompt, context])
        z, values = losses()
        balancer.backward(values, representation=z)
        if requires_grad:
            torch.testing.assert_close([points.grad, prompt.grad, context.grad], list(wanted), **CLOSE)
        results.append((gradients(model), recorder.gramians[0]))
    assert_gradients_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


class Networks(nn.Module):
    """Two networks that have nothing in common."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(2, 1), nn.Linear(2, 1)


@pytest.mark.parametrize("way", ["one step", "accumulated", "model"])
@pytest.mark.parametrize("name", AGGREGATORS)
def test_two_networks_on_the_same_points_have_nothing_shared(name, way):
    model = Networks()
    points = torch.randn(7, 2).requires_grad_()
    balancer = eq.Balancer(["a", "b"], aggregator=AGGREGATORS[name](), model=model if way == "model" else None)
    a, b = model.one(points).square().mean(), model.other(points).exp().mean()
    if way == "accumulated":
        balancer.backward({"a": a}, accumulate=True)
    before = gradients(model)
    with pytest.raises(ValueError, match=r"found none.*an input of shape \(7, 2\).*shared="):
        balancer.backward({"b": b} if way == "accumulated" else {"a": a, "b": b})
    assert points.grad is None
    assert_same(gradients(model), before)


def test_mao_takes_two_networks_on_the_same_points():
    model = Networks()
    points = torch.randn(7, 2).requires_grad_()
    losses = {"a": model.one(points).square().mean(), "b": model.other(points).exp().mean()}
    (wanted,) = torch.autograd.grad(sum(losses.values()), points, retain_graph=True)
    eq.MAO(model.parameters(), ["a", "b"]).backward(losses)
    torch.testing.assert_close(points.grad, wanted)


def test_shared_makes_a_plain_tensor_shared():
    """Named there, the points are balanced and measured, and nothing else is."""
    model, recorder = Networks().double(), Recorder([3.0, -2.0])
    points = torch.randn(7, 2, dtype=torch.float64).requires_grad_()
    losses = {"a": model.one(points).square().mean(), "b": model.other(points).exp().mean()}
    rows = [torch.autograd.grad(loss, points, retain_graph=True)[0] for loss in losses.values()]
    eq.Balancer(["a", "b"], aggregator=recorder, shared=[points]).backward(losses)
    torch.testing.assert_close(points.grad, 3 * rows[0] - 2 * rows[1])
    gramian = torch.tensor([[float((one * other).sum()) for other in rows] for one in rows], dtype=torch.float64)
    torch.testing.assert_close(recorder.gramians[0], gramian)


class Adversarial:
    """A generator's losses, both of which pass through a discriminator."""

    def __init__(self):
        torch.manual_seed(0)
        self.generator, self.discriminator = Field().trunk, nn.Linear(4, 3).double()
        self.x = torch.randn(6, 2, dtype=torch.float64)

    def losses(self, tasks="ab", detached=False):
        z = self.generator(self.x)
        judged = self.discriminator(z.detach() if detached else z)
        both = {"a": judged.square().mean() + z.square().mean(), "b": judged.exp().mean()}
        return {task: both[task] for task in tasks}


@pytest.mark.parametrize("accumulated", [False, True], ids=["at once", "accumulated"])
@pytest.mark.parametrize(("name", "probed"), [*((n, False) for n in AGGREGATORS), *((n, True) for n in GRAMIAN)])
def test_with_model_parameters_of_another_model_are_as_inputs(name, probed, accumulated):
    results = []
    for frozen in (False, True):
        nets = Adversarial()
        theirs = list(nets.discriminator.parameters())
        nets.discriminator.requires_grad_(not frozen)
        balancer = eq.Balancer(
            ["a", "b"],
            eq.Static(STATIC),
            AGGREGATORS[name](),
            model=nets.generator,
            probe=nets.generator[2] if probed else None,
        )
        if not frozen:
            wanted = torch.autograd.grad(sum(STATIC[t] * loss for t, loss in nets.losses().items()), theirs)
        for tasks in ("a", "b") if accumulated else ("ab",):
            balancer.backward(nets.losses(tasks), accumulate=tasks == "a")
        if not frozen:
            torch.testing.assert_close([p.grad for p in theirs], list(wanted), **CLOSE)
        results.append(gradients(nets.generator))
    assert_gradients_close(*results)


@pytest.mark.parametrize("named", ["nothing", "shared"])
def test_without_model_or_named_as_shared_they_are_shared(named):
    nets, recorder = Adversarial(), Recorder([3.0, -2.0])
    theirs = list(nets.discriminator.parameters())
    if named == "shared":
        balancer = eq.Balancer(["a", "b"], aggregator=recorder, model=nets.generator, shared=nets.discriminator)
    else:
        balancer = eq.Balancer(["a", "b"], aggregator=recorder)
    rows = [torch.autograd.grad(nets.losses(task)[task], theirs) for task in "ab"]
    balancer.backward(nets.losses())
    for p, a, b in zip(theirs, *rows, strict=True):
        torch.testing.assert_close(p.grad, 3 * a - 2 * b)


def test_losses_that_have_another_model_in_common_alone():
    nets = Adversarial()
    balancer = eq.Balancer(["a", "b"], aggregator=eq.PCGrad(), model=nets.generator)
    with pytest.raises(ValueError, match=r"a parameter of another model of shape \(3, 4\)"):
        balancer.backward(nets.losses(detached=True))


@pytest.mark.parametrize("probed", [False, True], ids=["all shared", "probe"])
def test_collocation_points_of_a_physics_informed_network(probed):
    """The residual is made of derivatives in the points, which the boundary condition shares."""
    trunk = Field().trunk
    points = torch.randn(6, 2, dtype=torch.float64).requires_grad_()
    parameters = list(trunk.parameters())

    def losses():
        u = trunk(points)
        (slope,) = torch.autograd.grad(u.sum(), points, create_graph=True)
        return {"a": (slope.sum(1) - u[:, 0]).square().mean(), "b": (u[:, 1] - points[:, 0]).square().mean()}

    rows = [torch.autograd.grad(losses()[task], [*parameters, points], allow_unused=True) for task in "ab"]
    recorder = Recorder([3.0, -2.0])
    balancer = eq.Balancer(["a", "b"], eq.Static(STATIC), recorder, probe=trunk[2] if probed else None)
    balancer.backward(losses())
    for leaf, a, b in zip([*parameters, points], *rows, strict=True):
        factors = (1, 1) if leaf is points else (3, -2)
        expected = [f * c * g for f, c, g in zip(factors, STATIC.values(), (a, b), strict=True) if g is not None]
        torch.testing.assert_close(leaf.grad, sum(expected), **CLOSE)
