"""Whoever clears `.grad` clears the task gradients that wait beside it, and nobody else does."""

import copy

import pytest
import torch
from networks import TASKS, Network, assert_same, batch, gradients, snapshot
from torch import nn

import equipoise as eq

COUNTS = dict.fromkeys(TASKS, 2)
LARGE = 70  # its square exceeds what is marked as small


class Loop:
    """A model with what waits between calls: a Balancer's or MAO's micro-batches, or MAO's task gradients."""

    def __init__(self, kind, model=None, dtype=torch.float32):
        self.model = (Network() if model is None else model).to(dtype)
        self.counts = COUNTS if kind.endswith("counts") else None
        self.mao = kind.startswith("mao")
        self.at_once = kind in {"mao", "mao streaming"}  # what waits is a whole step
        if self.mao:
            self.method = eq.MAO(self.model.parameters(), TASKS, lr=0.1, streaming=kind == "mao streaming")
            self.optimizer = self.method
        else:
            objective = {"uw": eq.UW, "ema": eq.EMA}.get(kind.split()[0], eq.Equal)()
            aggregator = eq.IMTLG() if "aggregator" in kind else None
            self.method = eq.Balancer(TASKS, objective, aggregator, model=self.model)
            self.optimizer = torch.optim.SGD([*self.model.parameters(), *self.method.parameters()], lr=0.1)

    def wait(self, factor=1.0):
        """Makes something wait."""
        losses = self.model.losses(batch(0))
        options = {} if self.at_once else {"accumulate": True, "counts": self.counts}
        self.method.backward({task: factor * loss for task, loss in losses.items()}, **options)

    def finish(self):
        """Ends the step, or makes the next one."""
        self.method.backward(self.model.losses(batch(1)), counts=self.counts)

    def step(self):
        self.optimizer.step()
        return self

    def taken(self):
        """Parameters and state, those of objectives included."""
        return snapshot(self.optimizer) + [copy.deepcopy(one.state_dict()) for one in (self.model, self.method)]


KINDS = [
    "together",  # .grad itself, and the losses
    "uw together",  # ... and what learned weights come from
    "ema together",  # ... and moving averages to be taken back
    "rows counts",
    "aggregator",
    "ema aggregator counts",
    "mao micro-batches",
    "mao micro-batches counts",
    "mao",
    "mao streaming",
]
PLAIN = [kind for kind in KINDS if kind != "mao streaming"]  # moments, unlike rows, stay when gradients are cleared


def by_hand(loop):
    for p in loop.model.parameters():
        p.grad = None


def zeroed_by_hand(loop):
    with torch.no_grad():
        for p in loop.model.parameters():
            if p.grad is not None:
                p.grad.zero_()


def replaced_by_zeros(loop):
    for p in loop.model.parameters():
        if p.grad is not None:
            p.grad = torch.zeros_like(p)


WAYS = {
    "the method": lambda loop: loop.method.zero_grad() or loop.optimizer.zero_grad(),
    "the optimizer": lambda loop: loop.optimizer.zero_grad(),
    "the optimizer, in place": lambda loop: loop.optimizer.zero_grad(set_to_none=False),
    "the model": lambda loop: loop.model.zero_grad(),
    "the model, in place": lambda loop: loop.model.zero_grad(set_to_none=False),
    "another optimizer": lambda loop: torch.optim.SGD(loop.model.parameters()).zero_grad(),
    "by hand": by_hand,
    "by hand, in place": zeroed_by_hand,
    "by hand, replaced": replaced_by_zeros,
}


def penalty(model):
    return sum(p.square().sum() for p in model.parameters() if p.requires_grad)


def assert_cleared(cleared, kind):
    fresh = Loop(kind)
    fresh.finish()
    found, expected = (gradients(loop.model) for loop in (cleared, fresh))
    for name, gradient in found.items():
        wanted = expected[name]
        if wanted is None or gradient is None:
            assert all(g is None or g.norm() < 1e-20 for g in (gradient, wanted)), name
        else:
            torch.testing.assert_close(
                gradient, wanted, rtol=0, atol=1e-20, msg=lambda text, name=name: f"{name}: {text}"
            )
    assert_same(cleared.step().taken()[1:], fresh.step().taken()[1:])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", PLAIN)
def test_whoever_clears_grad_clears_what_waits(kind, way):
    """So does the next step see its own batch alone, and state is as if the other had not been."""
    loop = Loop(kind)
    loop.wait(factor=1000.0)
    WAYS[way](loop)
    loop.finish()
    assert_cleared(loop, kind)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "the method"])
@pytest.mark.parametrize("kind", ["mao", "mao streaming", "mao micro-batches"])
def test_cleared_before_step_nothing_moves(kind, way):
    loop = Loop(kind)
    before = copy.deepcopy(loop.model.state_dict())
    loop.wait()
    WAYS[way](loop)
    loop.step()
    assert_same(loop.model.state_dict(), before)


@pytest.mark.parametrize("way", [way for way in WAYS if "in place" not in way and "replaced" not in way])
@pytest.mark.parametrize("kind", PLAIN)
def test_a_backward_pass_after_clearing_does_not_hide_it(kind, way):
    """As in a loop that clears, adds a penalty, and then balances."""
    loop, fresh = Loop(kind), Loop(kind)
    loop.wait(factor=1000.0)
    WAYS[way](loop)
    for one in (loop, fresh):
        penalty(one.model).backward()
        one.finish()
        one.step()
    assert_same(loop.taken()[1:], fresh.taken()[1:])


@pytest.mark.parametrize("kind", PLAIN)
def test_clearing_is_remembered_over_a_call_that_fails(kind):
    loop = Loop(kind)
    loop.wait(factor=1000.0)
    loop.model.zero_grad()
    for _ in range(2):
        with pytest.raises(ValueError, match="unknown"):
            loop.method.backward({"unknown": loop.model.losses(batch(1))["a"]}, counts=loop.counts)
    loop.finish()
    assert_cleared(loop, kind)


def test_streaming_remembers_it_too():
    loop = Loop("mao streaming")
    before = copy.deepcopy(loop.model.state_dict())
    loop.wait()
    loop.model.zero_grad()
    with pytest.raises(ValueError, match="unknown"):
        loop.method.backward({"unknown": loop.model.losses(batch(1))["a"]})
    loop.step()
    assert_same(loop.model.state_dict(), before)


# --- what clears nothing --------------------------------------------------------------------------------------------


def zero_penalty(loop):
    """Its gradient is +0 everywhere."""
    sum((p * 0.0).abs().sum() for p in loop.model.parameters() if p.requires_grad).backward()


def add_zeros(loop):
    for p in loop.model.parameters():
        if p.grad is not None:
            p.grad += 0.0


def clip(loop):
    torch.nn.utils.clip_grad_norm_(loop.model.parameters(), 1e4)


def unscale(loop):
    grads = [p.grad for p in loop.model.parameters() if p.grad is not None]
    torch._amp_foreach_non_finite_check_and_unscale_(grads, torch.zeros(1), torch.ones(1))


def forward_and_backward_of_another(loop):
    other = Network(seed=3)
    sum(other.losses(batch(7)).values()).backward()
    other.zero_grad()
    torch.optim.SGD(other.parameters()).zero_grad()


def fail(loop):
    with pytest.raises((TypeError, ValueError)):
        loop.method.backward(3)


NO_CLEARING = {
    "a gradient of zero": zero_penalty,
    "adding zeros": add_zeros,
    "clip_grad_norm_": clip,
    "clipping zeros": lambda loop: zero_penalty(loop) or clip(loop),
    "unscaling": unscale,
    "another model": forward_and_backward_of_another,
    "a failed call": fail,
    "copying the model": lambda loop: copy.deepcopy(loop.model).zero_grad(),
    "saving": lambda loop: (loop.model.state_dict(), loop.optimizer.state_dict()),
    "looking": lambda loop: [p.grad.norm() for p in loop.model.parameters() if p.grad is not None],
}


def leave(model):
    """Nothing in `.grad` to begin with."""


def leave_zeros(model):
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None


def leave_gradients(model):
    penalty(model).backward()


@pytest.mark.parametrize("begin", [leave, leave_zeros, leave_gradients])
@pytest.mark.parametrize("way", NO_CLEARING)
@pytest.mark.parametrize("kind", KINDS)
def test_what_clears_nothing_changes_nothing(kind, way, begin):
    loop, undisturbed = Loop(kind), Loop(kind)
    for one in (loop, undisturbed):
        begin(one.model)
        one.wait()
        if one is loop:
            NO_CLEARING[way](one)
        if not one.at_once:
            one.finish()
        one.step()
    for (name, found), wanted in zip(loop.model.named_parameters(), undisturbed.model.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-15, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("begin", [leave, leave_zeros, leave_gradients])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("mao")])
def test_a_penalty_between_micro_batches_adds_up(kind, begin):
    loop, plain = Loop(kind), Loop(kind)
    for one in (loop, plain):
        begin(one.model)
        one.wait()
        if one is loop:
            penalty(one.model).backward()
        one.finish()
    extra = torch.autograd.grad(penalty(plain.model), [p for p in plain.model.parameters() if p.requires_grad])
    for p, more in zip([p for p in plain.model.parameters() if p.requires_grad], extra, strict=True):
        p.grad = more if p.grad is None else p.grad + more
    for (name, found), wanted in zip(gradients(loop.model).items(), gradients(plain.model).values(), strict=True):
        assert (found is None) == (wanted is None), name
        if wanted is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


def test_marks_leave_no_trace():
    """Where a gradient is exactly 0 it stays 0, in the elements that are marked, too."""
    models = [Network() for _ in range(2)]
    for model in models:
        model.trunk.weight.register_hook(torch.zeros_like)
        model.trunk.bias.register_hook(torch.zeros_like)
    balancers = [eq.Balancer(TASKS) for _ in models]
    for index in range(3):
        balancers[0].backward(models[0].losses(batch(index)), accumulate=index < 2)
        balancers[1].backward(models[1].losses(batch(index)))
    assert_same(gradients(models[0]), gradients(models[1]))
    assert not models[0].trunk.weight.grad.any()

    waits = Loop("aggregator")
    waits.wait()
    waits.method.zero_grad()
    assert all(g is None for g in gradients(waits.model).values())


# --- clearing in part -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_clearing_in_part_is_an_error_that_changes_nothing(kind, in_place):
    loop = Loop(kind)
    loop.wait()
    before, state = gradients(loop.model), loop.taken()
    cleared = dict(loop.model.heads.named_parameters(prefix="heads"))
    for p in cleared.values():
        p.grad = p.grad.zero_() if in_place else None
    for act in [loop.finish] if not loop.at_once else [loop.step] + [loop.finish] * (kind == "mao"):
        for _ in range(2):
            with pytest.raises(ValueError, match=r"cleared for 6 of \d+ marked parameters .* or none"):
                act()
    assert_same(loop.taken(), state)
    now = gradients(loop.model)
    assert_same(
        {n: g for n, g in now.items() if n not in cleared}, {n: g for n, g in before.items() if n not in cleared}
    )
    loop.model.zero_grad()
    loop.finish()
    if kind != "mao streaming":
        assert_cleared(loop, kind)


# --- parameters of all kinds ----------------------------------------------------------------------------------------


class Large(nn.Module):
    """Two layers without biases, of which none is small."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.ParameterList(torch.randn(LARGE, LARGE + i, generator=generator) / 9 for i in range(2))

    def losses(self, x):
        x = x.repeat(1, LARGE)[:, :LARGE].to(self.weights[0])
        z = (x @ self.weights[0]).tanh() @ self.weights[1]
        return {"a": z.square().mean(), "b": z.abs().mean(), "c": (z - 1).square().mean()}


class Looking(nn.Module):
    """A sparse table of embeddings alone, or one under a dense layer."""

    def __init__(self, dense):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Embedding.from_pretrained(torch.randn(9, 3, generator=generator), freeze=False, sparse=True)
        self.layer = nn.Parameter(torch.randn(3, 3, generator=generator)) if dense else None

    def losses(self, x):
        z = self.table((x[:, 0].abs() * 4).long() % 9)
        z = z.tanh() if self.layer is None else z @ self.layer
        return {"a": z.square().mean(), "b": z.exp().mean(), "c": (z - 1).square().mean()}


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(4, 3, generator=generator, dtype=torch.complex64))
        self.factor = nn.Parameter(torch.randn((), generator=generator, dtype=torch.complex64))

    def losses(self, x):
        z = self.factor * (x.to(self.weight.dtype) @ self.weight)
        return {"a": z.abs().mean(), "b": z.real.square().mean(), "c": (z.imag - 1).square().mean()}


class Convolution(nn.Module):
    """Parameters that lie in another order than their shape says, and one of no dimension."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(3, 2, 2, 2, generator=generator).to(memory_format=torch.channels_last)
        self.weight, self.scale = nn.Parameter(weight), nn.Parameter(torch.tensor(1.5))

    def losses(self, x):
        z = self.scale * torch.conv2d(x.view(-1, 1, 2, 2).expand(-1, 2, 2, 2), self.weight)
        return {"a": z.square().mean(), "b": z.exp().mean(), "c": (z - 1).abs().mean()}


MODELS = {
    "large": (Large, torch.float32),
    "bfloat16": (Network, torch.bfloat16),
    "float16": (Network, torch.float16),
    "float64": (Network, torch.float64),
    "sparse": (lambda: Looking(dense=False), torch.float32),
    "sparse and dense": (lambda: Looking(dense=True), torch.float32),
    "complex": (Complex, torch.complex64),
    "channels_last": (Convolution, torch.float32),
}


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("kind", ["together", "aggregator", "mao"])
@pytest.mark.parametrize("which", MODELS)
def test_parameters_of_every_kind(which, kind, in_place):
    make, dtype = MODELS[which]
    loop, fresh, kept, plain = (Loop(kind, make(), dtype) for _ in range(4))
    loop.wait(factor=8.0)
    loop.model.zero_grad(set_to_none=not in_place)
    for one in (loop, fresh):
        one.finish()
    for one in (kept, plain):  # clipping is no clearing
        one.wait()
        if one is kept:
            for p in one.model.parameters():
                if p.grad is not None:
                    p.grad.mul_(1.0)
        if kind != "mao":
            one.finish()
    for one, other in ((loop, fresh), (kept, plain)):
        assert_same(one.step().model.state_dict(), other.step().model.state_dict())
    assert not torch.equal(*(next(iter(one.model.parameters())) for one in (loop, plain)))
