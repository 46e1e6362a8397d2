"""Gradients that an operator keeps for itself are copied before they wait, change or become `.grad`; others are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.aggregators import Aggregator

TASKS = ("a", "b")
SIZE = 6
HUGE = 100.0


class Given(torch.autograd.Function):
    """`Σ x`, whose gradient of `x` is whatever it was given."""

    @staticmethod
    def forward(ctx, x, gradient):
        ctx.gradient = gradient
        return x.sum()

    @staticmethod
    def backward(ctx, grad):
        return ctx.gradient(), None


class SavedInput(torch.autograd.Function):
    """`x · y`, whose gradient of `x` is the very `y` it saved, as where the incoming gradient is known to be 1."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(y)
        return x @ y

    @staticmethod
    def backward(ctx, grad):
        return ctx.saved_tensors[0], None


class Incoming(torch.autograd.Function):
    """`x + y`, of which both get the incoming gradient, as one tensor."""

    @staticmethod
    def forward(ctx, x, y):
        return x + y

    @staticmethod
    def backward(ctx, grad):
        return grad, grad


def given(gradient):
    return lambda x, other, data: Given.apply(x, gradient(data))


KINDS = {
    "buffer": given(lambda data: lambda: data["kept"]),
    "view": given(lambda data: lambda: data["kept"].view(2, -1).view(-1)),
    "slice": given(lambda data: lambda: data["wide"][0]),
    "kept view": given(lambda data: lambda view=data["wide"][0]: view),
    "detached": given(lambda data: lambda: data["kept"].detach()),
    "expanded": given(lambda data: lambda: data["number"].expand(SIZE)),
    "saved input": lambda x, other, data: SavedInput.apply(x, data["kept"]),
    "same for two": lambda x, other, data: (Incoming.apply(x, other) * data["kept"]).sum(),
    "a node's own": lambda x, other, data: x @ data["kept"] + 0 * other.sum(),
    "same for two, kept": lambda x, other, data: Given.apply(Incoming.apply(x, other), lambda: data["kept"]),
}


class Model(nn.Module):
    """Two tasks share `shared`, and have a parameter each; the first one's loss can have any kind of gradient."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Parameter(torch.ones(SIZE))
        self.own = nn.ParameterDict({task: nn.Parameter(torch.ones(SIZE)) for task in TASKS})

    def losses(self, kind, where, data):
        target, other = (self.shared, self.own["a"]) if where == "shared" else (self.own["a"], self.shared)
        a = KINDS[kind](target, other, data) + 0.1 * other.square().sum()
        return {"a": a, "b": (self.shared * self.own["b"]).square().sum()}


def new_data():
    return {
        "kept": torch.arange(SIZE) + HUGE,
        "wide": torch.arange(2.0 * SIZE).view(2, SIZE) + HUGE,
        "number": torch.tensor(HUGE),
    }


class First(Aggregator):
    """Hands on the first task's gradients as they are."""

    def aggregate(self, gradients, losses):
        return [next(g for g in column if g is not None) for column in zip(*gradients, strict=True)], None


def balancer(model, aggregator=None, **options):
    return eq.Balancer(TASKS, aggregator=aggregator, **options)


def mao(held=lambda model: list(model.parameters()), **options):
    return lambda model: eq.MAO(held(model), TASKS, lr=0.1, **options)


def scaler():
    return torch.amp.GradScaler("cpu", init_scale=4.0)


COUNTS = {"a": 3, "b": 5}
WAYS = {
    "objective": (lambda model: balancer(model), {}),
    "gramian": (lambda model: balancer(model, eq.MGDA()), {}),
    "jacobian": (lambda model: balancer(model, eq.GradDrop()), {}),
    "hands on": (lambda model: balancer(model, First()), {}),
    "counts": (lambda model: balancer(model, eq.MGDA()), {"counts": COUNTS}),
    "accumulate": (lambda model: balancer(model, eq.MGDA()), {"accumulate": True}),
    "accumulate counts": (lambda model: balancer(model), {"accumulate": True, "counts": COUNTS}),
    "probe": (lambda model: balancer(model, eq.MGDA(), probe=[model.shared]), {}),
    "scaler": (lambda model: balancer(model, eq.MGDA()), {"scaler": scaler}),
    "mao": (mao(), {}),
    "mao max_norm": (mao(max_norm=0.5), {}),
    "mao streaming": (mao(streaming=True), {}),
    "mao streaming max_norm": (mao(streaming=True, max_norm=0.5), {}),
    "mao groups": (mao(groups=2, max_norm=0.5), {}),
    "mao scaler": (mao(max_norm=0.5), {"scaler": scaler}),
    "mao accumulate": (mao(max_norm=0.5), {"accumulate": True}),
    "mao of others": (mao(lambda model: [model.own["b"]]), {}),
    "mao of others streaming": (mao(lambda model: [model.own["b"]], streaming=True), {}),
}


def use(options):
    return {name: value() if name == "scaler" else value for name, value in options.items()}


def waiting(method, model):
    """Everything that waits, or is in `.grad`."""
    found = [p.grad for p in model.parameters() if p.grad is not None]
    if isinstance(method, eq.MAO):
        rows = [*method._pending.rows.values(), *method._pending.micro_batches.rows.values()]
    else:
        rows = list(method._balancing.rows.waiting.micro_batches.rows.values())
    return [*found, *(gradient for row in rows for gradient in row.values())]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", ["shared", "own"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_waits_or_is_grad_shares_memory(kind, where, way):
    model, data = Model(), new_data()
    make, options = WAYS[way]
    torch.manual_seed(0)
    method = make(model)
    options = use(options)
    losses = model.losses(kind, where, data)  # alive, and so their graphs
    method.backward(losses, **options)
    if way == "objective":
        return  # autograd's own accumulation
    kept = waiting(method, model)
    assert kept or "streaming" in way
    memory = [gradient.untyped_storage().data_ptr() for gradient in kept]
    assert len(set(memory)) == len(memory)
    assert not {value.untyped_storage().data_ptr() for value in data.values()} & set(memory)
    assert not {p.untyped_storage().data_ptr() for p in model.parameters()} & set(memory)
    assert len(losses) == 2


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", ["shared", "own"])
@pytest.mark.parametrize("kind", KINDS)
def test_neither_the_data_nor_what_waits_is_changed_by_the_other(kind, where, way):
    if way == "objective" and kind in ("view", "slice", "detached", "kept view"):
        pytest.skip("torch.autograd.backward makes of a view the .grad")
    results = []
    for changes in (False, True):
        model, data = Model(), new_data()
        make, options = WAYS[way]
        torch.manual_seed(0)
        method = make(model)
        options = use(options)
        losses = model.losses(kind, where, data)
        method.backward(losses, **options)
        if changes:
            for value in data.values():
                value.fill_(7.0)
        if "accumulate" in options:
            method.backward(model.losses("a node's own", where, new_data()), **{**options, "accumulate": False})
        if isinstance(method, eq.MAO):
            method.step()
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(3.0)
        if not changes:
            for name, value in new_data().items():
                assert torch.equal(data[name], value), name
        results.append([p.detach().clone() for p in model.parameters()] + [p.grad for p in model.parameters()])
    for one, other in zip(*results, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("streaming", [True, False])
def test_mao_takes_gradients_that_are_laid_out_otherwise(streaming, fused):
    """Autograd gives of a sum a single number, expanded; PyTorch's fused kernels take memory as it lies."""
    parameter = nn.Parameter(torch.zeros(500))
    optimizer = eq.MAO([parameter], TASKS, lr=0.1, streaming=streaming, fused=fused)
    optimizer.backward({"a": parameter.sum(), "b": -3 * parameter.view(5, -1).T.sum() + parameter.square().sum()})
    optimizer.step()
    assert torch.allclose(optimizer.state[parameter]["exp_avg.a"], torch.full((500,), 0.1))
    assert torch.allclose(optimizer.state[parameter]["exp_avg.b"], torch.full((500,), -0.3))


@pytest.mark.parametrize("kind", ["buffer", "view", "saved input"])
def test_the_objectives_own_parameters_get_memory_of_their_own(kind):
    class Learned(eq.Objective):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(SIZE))
            self.data = new_data()

        def forward(self, losses):
            return losses.sum() + KINDS[kind](self.weight, None, self.data)

    objective = Learned()
    model = Model()
    eq.Balancer(TASKS, objective).backward(model.losses("a node's own", "own", new_data()))
    objective.weight.grad.zero_()
    assert torch.equal(objective.data["kept"], new_data()["kept"])


@pytest.mark.parametrize("kind", ["buffer", "view", "same for two"])
def test_a_representations_trunk(kind):
    trunk, data = nn.Parameter(torch.ones(SIZE)), new_data()
    heads = [nn.Parameter(torch.ones(SIZE)) for _ in TASKS]
    method = eq.Balancer(TASKS, aggregator=eq.MGDA())
    z = trunk * 2
    losses = {"a": KINDS[kind](heads[0], z, data) + z.sum(), "b": (z * heads[1]).square().sum()}
    method.backward(losses, representation=z)
    for parameter in (trunk, *heads):
        parameter.grad.zero_()
    assert torch.equal(data["kept"], new_data()["kept"])


class Watched(torch.autograd.Function):
    """Sums `x`, and notes where the gradient that it makes lies."""

    @staticmethod
    def forward(ctx, x, note):
        ctx.size, ctx.note = x.shape, note
        return x.sum()

    @staticmethod
    def backward(ctx, grad):
        made = torch.ones(ctx.size) * grad
        ctx.note.append(made.data_ptr())
        return made, None


@pytest.mark.parametrize("way", ["gramian", "accumulate", "probe", "mao", "mao accumulate", "mao of others"])
def test_what_nobody_else_holds_is_not_copied(way):
    """Of the parameters that are one task's own: their gradient stays where it was made."""
    model, noted = Model(), []
    make, options = WAYS[way]
    method = make(model)
    losses = {task: Watched.apply(model.own[task], noted) + model.shared.square().sum() for task in TASKS}
    method.backward(losses, **use(options))
    found = {gradient.data_ptr() for gradient in waiting(method, model)}
    assert len(noted) == 2
    assert set(noted) <= found


@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.Conv2d(3, 4, 3), nn.LayerNorm(4), nn.Embedding(5, 4)])
def test_layers_gradients_are_not_copied(layer, monkeypatch):
    """Also not those that layers give as views, as of a linear layer's bias."""
    copies = []
    owning = eq.gradients.owning
    original = owning._copied
    monkeypatch.setattr(owning, "_copied", lambda *given: copies.append(given[1].shape) or original(*given))
    x = torch.randn(2, 3, 8, 8) if isinstance(layer, nn.Conv2d) else torch.randn(3, 4)
    x = torch.tensor([0, 2]) if isinstance(layer, nn.Embedding) else x
    head = {task: nn.Parameter(torch.ones(())) for task in TASKS}
    for method in (
        eq.Balancer(TASKS, aggregator=eq.MGDA()),
        eq.MAO([*layer.parameters(), *head.values()], TASKS),
        eq.MAO([*head.values()], TASKS),
    ):
        layer.zero_grad()
        z = layer(x)
        method.backward({task: (z * head[task]).square().sum() + index for index, task in enumerate(TASKS)})
    assert copies == []
