"""Mixed precision: an overflow anywhere, or a loss that is not finite, drops the step and leaves all state alone."""

import copy

import pytest
import torch
from networks import TASKS, Network, assert_same, batch, gradients

import equipoise as eq

HOW = {
    "one pass": {},
    "rows": {"aggregator": lambda: eq.GradDrop(seed=0)},
    "gramian": {"aggregator": eq.GradNorm},
    "probe": {"aggregator": eq.GradNorm, "probe": "branch"},
    "representation": {"aggregator": eq.GradNorm},
}


class Trained:
    """A network, a Balancer that looks at losses and gradients, an optimizer and a scaler."""

    def __init__(self, how, objective=eq.EMA, **options):
        self.model, self.how = Below(), how
        given = dict(HOW[how])
        aggregator = given.pop("aggregator", None)
        if "probe" in given:
            options["probe"] = self.model.last
        self.balancer = eq.Balancer(TASKS, objective(), aggregator and aggregator(), **options)
        held = [*self.model.parameters(), *self.balancer.parameters()]
        self.optimizer = torch.optim.Adam(held, lr=0.01)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)

    def backward(self, index, change=None, scaler=True, **keywords):
        z = self.model.representation(batch(index))
        losses = self.model.losses(z)
        if change is not None:
            losses = change(losses)
        if self.how == "representation":
            keywords["representation"] = z
        return self.balancer.backward(losses, scaler=self.scaler if scaler else None, **keywords)

    def step(self, index, change=None):
        weights = self.backward(index, change)
        self.update()
        return weights

    def update(self):
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.balancer.zero_grad()

    def state(self):
        kept = (self.model, self.balancer, self.optimizer)
        return copy.deepcopy([dict(thing.state_dict()) for thing in kept])


class Below(torch.nn.Module):
    """A trunk of two layers: the last one is the probe, and the first one can overflow in the backward pass alone."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = torch.nn.Linear(4, 6), torch.nn.Linear(6, 5)
            self.heads = torch.nn.ModuleDict({task: torch.nn.Linear(5, 1) for task in TASKS})
        self.overflow = None

    def representation(self, x):
        z = self.first(x).tanh()
        if self.overflow == "below":
            z.register_hook(lambda g: g * torch.inf)
        z = self.last(z).tanh()
        if self.overflow == "at":
            z.register_hook(lambda g: g * torch.inf)
        return z * 1

    def losses(self, z):
        heads = {task: head(z) for task, head in self.heads.items()}
        if self.overflow == "above":
            heads["c"].register_hook(lambda g: g * torch.inf)
        return {task: (y - index).square().mean() for index, (task, y) in enumerate(heads.items())}


@pytest.mark.parametrize("overflow", ["below", "at", "above"])
@pytest.mark.parametrize("how", HOW)
def test_an_overflow_drops_the_step_wherever_it_is(how, overflow):
    run, undisturbed = Trained(how), Trained(how)
    for each in (run, undisturbed):
        each.step(0)
    before = run.state()
    run.model.overflow = overflow
    run.step(1)
    run.model.overflow = None
    assert_same(run.state(), before)
    assert run.scaler.get_scale() == 2.0**3
    for index in (2, 3):
        for each in (run, undisturbed):
            each.step(index)
    for one, other in zip(run.model.parameters(), undisturbed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def only(task, value):
    return lambda losses: {**losses, task: losses[task] * value}


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("objective", [eq.EMA, eq.UW, eq.FAMO, eq.DWA], ids=lambda o: o.__name__)
@pytest.mark.parametrize("how", HOW)
def test_a_loss_that_is_not_finite_is_an_overflow(how, objective, value):
    run = Trained(how, objective)
    run.step(0)
    before = run.state()
    run.step(1, only("b", value))
    assert_same(run.state(), before)
    assert run.scaler.get_scale() == 2.0**3
    run.step(2)
    assert all(p.isfinite().all() for p in run.model.parameters())


@pytest.mark.parametrize("check_finite", [None, False])
def test_after_a_dropped_step_famo_learns_nothing(check_finite):
    """The loop does not know that the step was dropped, and hands in the losses of the same batch."""
    run = Trained("one pass", eq.FAMO, check_finite=check_finite)
    for index in range(2):
        run.step(index)
        run.balancer.after_step(run.model.losses(run.model.representation(batch(index))))
    before = run.state()
    run.step(2, only("b", torch.inf))
    run.balancer.after_step(only("b", torch.inf)(run.model.losses(run.model.representation(batch(2)))))
    assert_same(run.state(), before)
    run.step(3)
    run.balancer.after_step(run.model.losses(run.model.representation(batch(3))))
    assert all(p.isfinite().all() for p in run.model.parameters())
    assert not torch.equal(run.balancer.state_dict()["objective.logits"], before[1]["objective.logits"])
    run.scaler = torch.amp.GradScaler("cpu", enabled=False)
    run.step(4)
    if check_finite is None:
        with pytest.raises(ValueError, match="'b' is inf"):
            run.balancer.after_step(only("b", torch.inf)(run.model.losses(run.model.representation(batch(4)))))


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("counts", [None, dict.fromkeys(TASKS, 2)])
@pytest.mark.parametrize("how", ["one pass", "rows", "gramian", "probe"])
def test_a_micro_batch_that_is_not_finite_drops_the_whole_step(how, counts, place):
    run = Trained(how)
    run.step(0)
    before = run.state()
    changes = [only("b", torch.inf), None] if place == "first" else [None, only("b", torch.inf)]
    run.backward(1, changes[0], accumulate=True, counts=counts)
    run.backward(2, changes[1], counts=counts)
    run.update()
    assert_same(run.state(), before)
    assert run.scaler.get_scale() == 2.0**3
    run.step(3)
    assert all(p.isfinite().all() for p in run.model.parameters())


@pytest.mark.parametrize("how", HOW)
def test_without_a_scaler_and_where_asked_it_is_an_error(how):
    for options, scaler in [({}, False), ({"check_finite": True}, False), ({"check_finite": True}, True)]:
        run = Trained(how, **options)
        run.step(0)
        before = run.state()
        with pytest.raises(ValueError, match="The loss of task 'b' is inf: a NaN or infinite loss"):
            run.backward(1, only("b", torch.inf), scaler=scaler)
        assert_same(run.state(), before)
        assert all(g is None for g in gradients(run.model).values())


def test_a_disabled_scaler_does_not_take_a_loss_that_is_not_finite():
    run = Trained("probe")
    run.scaler = torch.amp.GradScaler("cpu", enabled=False)
    with pytest.raises(ValueError, match="'b' is inf"):
        run.backward(1, only("b", torch.inf))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_probe_where_no_task_has_parameters_of_its_own(scaled):
    """All that the losses reach is shared, and the probe is part of it."""
    run = Trained("probe", objective=eq.EMA)
    for p in run.model.heads.parameters():
        p.requires_grad_(False)
    for index in range(2):
        run.backward(index, scaler=scaled)
        assert all(p.grad is not None for part in (run.model.first, run.model.last) for p in part.parameters())
        run.update() if scaled else run.model.zero_grad()
    before = run.state()
    run.model.overflow = "below"
    run.backward(2, scaler=True)
    run.update()
    assert_same(run.state(), before)


MAO = {
    "plain": {},
    "groups": {"groups": {"one": ["a", "c"], "other": ["b"]}},
    "clipped": {"max_norm": 1.0},
    "capable of devices": {"check_finite": False},
}


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("accumulate", [None, "first", "last"])
@pytest.mark.parametrize("options", MAO)
def test_mao_drops_a_step_whose_loss_is_not_finite(options, accumulate, value):
    model = Network()
    optimizer = eq.MAO(model.parameters(), TASKS, **MAO[options])
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)

    def step(changes):
        for index, change in enumerate(changes):
            losses = model.losses(batch(index))
            last = index == len(changes) - 1
            optimizer.backward(change(losses) if change else losses, accumulate=not last, scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    step([None])
    before = copy.deepcopy([dict(model.state_dict()), optimizer.state_dict()])
    broken = only("b", value)
    step({None: [broken], "first": [broken, None], "last": [None, broken]}[accumulate])
    assert_same([dict(model.state_dict()), optimizer.state_dict()], before)
    assert scaler.get_scale() == 8.0
    step([None])
    assert all(p.isfinite().all() for p in model.parameters())


def test_mao_raises_without_a_scaler_and_where_asked():
    for check_finite, scaler in [(None, None), (True, None), (True, torch.amp.GradScaler("cpu"))]:
        model = Network()
        optimizer = eq.MAO(model.parameters(), TASKS, check_finite=check_finite)
        with pytest.raises(ValueError, match="'b' is nan"):
            optimizer.backward(only("b", torch.nan)(model.losses(batch(0))), scaler=scaler)
        assert all(g is None for g in gradients(model).values())


def test_mao_streaming_refuses_a_scaler():
    model = Network()
    optimizer = eq.MAO(model.parameters(), TASKS, streaming=True)
    with pytest.raises(ValueError, match="without accumulate= and scaler="):
        optimizer.backward(model.losses(batch(0)), scaler=torch.amp.GradScaler("cpu"))
    optimizer.backward(model.losses(batch(0)))
