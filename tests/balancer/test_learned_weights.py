"""Learned weights (UW, IMTL-L) that no optimizer steps: said once, and only then."""

import warnings

import pytest
import torch
from networks import TASKS, Network, batch

import equipoise as eq

LEARNED = {"uw": eq.UW, "imtl-l": eq.IMTLL}
STEPS = 30


@pytest.fixture(autouse=True)
def _no_warning_goes_unseen():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class InPlace(torch.optim.Optimizer):
    """An optimizer that writes `.data`, as some do, and raises no version."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.01})

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data = p.data - group["lr"] * p.grad


class ByHand:
    """What moves parameters without being PyTorch's optimizer."""

    def __init__(self, params):
        self.params = list(params)

    def step(self):
        for p in self.params:
            if p.grad is not None:
                p.data.sub_(0.01 * p.grad)

    def zero_grad(self):
        for p in self.params:
            p.grad = None


def train(model, balancer, optimizer, steps=STEPS, present=TASKS, **keywords):
    for index in range(steps):
        balancer.backward(model.losses(batch(index), present if index % 2 else TASKS), **keywords)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("aggregator", [None, eq.MGDA])
@pytest.mark.parametrize("clear", ["never", "balancer", "balancer, to zero"])
@pytest.mark.parametrize("name", LEARNED)
def test_forgotten_weights_are_said_once(name, clear, aggregator):
    model = Network()
    balancer = eq.Balancer(TASKS, LEARNED[name](), aggregator and aggregator())
    optimizer = torch.optim.AdamW(model.parameters())

    def step(index):
        balancer.backward(model.losses(batch(index)))
        optimizer.step()
        optimizer.zero_grad()
        if clear != "never":
            balancer.zero_grad(set_to_none=clear == "balancer")

    for index in range(5):
        step(index)
    with pytest.warns(UserWarning, match=f"{LEARNED[name].__name__} learns its weights.*in no optimizer") as seen:
        [step(index) for index in range(5, STEPS)]
    assert len(seen) == 1
    for index in range(STEPS):
        step(index)


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, InPlace, ByHand], ids=lambda o: o.__name__)
def test_weights_that_move_are_no_matter(optimizer, name):
    model, balancer = Network(), eq.Balancer(TASKS, LEARNED[name]())
    given = {"lr": 0.01} if optimizer is torch.optim.SGD else {}
    train(model, balancer, optimizer([*model.parameters(), *balancer.parameters()], **given))


def test_an_optimizer_of_their_own_is_one():
    model, balancer = Network(), eq.Balancer(TASKS, eq.UW())
    own = torch.optim.SGD(balancer.parameters(), lr=0.01)
    for index in range(STEPS):
        balancer.backward(model.losses(batch(index)))
        own.step()
        own.zero_grad()
        model.zero_grad()


def test_frozen_weights_have_no_gradient():
    model, balancer = Network(), eq.Balancer(TASKS, eq.UW())
    balancer.requires_grad_(False)
    train(model, balancer, torch.optim.AdamW(model.parameters()))


def test_weights_that_were_frozen_after_some_steps():
    model, balancer = Network(), eq.Balancer(TASKS, eq.UW())
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, balancer, optimizer, steps=5)
    balancer.requires_grad_(False)
    train(model, balancer, optimizer)


@pytest.mark.parametrize("counts", [None, dict.fromkeys(TASKS, 3)])
@pytest.mark.parametrize("flag", [True, False])
def test_many_micro_batches_are_one_step(flag, counts):
    """Nothing moves for longer than it takes to be suspicious, with `accumulate=True` and by adding up in `.grad`."""
    model, balancer = Network(), eq.Balancer(TASKS, eq.UW())
    optimizer = torch.optim.SGD([*model.parameters(), *balancer.parameters()], lr=0.01)
    for _ in range(2):
        for index in range(STEPS):
            losses = {task: loss / STEPS for task, loss in model.losses(batch(index)).items()}
            balancer.backward(losses, accumulate=flag and index < STEPS - 1, counts=counts)
        optimizer.step()
        optimizer.zero_grad()


def test_a_learning_rate_that_begins_at_zero():
    model, balancer = Network(), eq.Balancer(TASKS, eq.IMTLL())
    train(model, balancer, torch.optim.AdamW([*model.parameters(), *balancer.parameters()], lr=0.0))


def test_steps_that_a_scaler_drops():
    model, balancer = Network(), eq.Balancer(TASKS, eq.UW())
    optimizer = torch.optim.SGD([*model.parameters(), *balancer.parameters()], lr=0.01)
    scaler = torch.amp.GradScaler("cpu")
    for index in range(STEPS):
        losses = model.losses(batch(index))
        losses["a"] = losses["a"] * torch.inf
        balancer.backward(losses, scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


@pytest.mark.parametrize("present", ["a", "ab", "c"])
def test_missing_tasks(present):
    model, balancer = Network(), eq.Balancer(TASKS, eq.UW())
    train(model, balancer, torch.optim.AdamW([*model.parameters(), *balancer.parameters()]), present=present)


def test_forgotten_weights_where_tasks_are_missing():
    model, balancer = Network(), eq.Balancer(TASKS, eq.UW())
    with pytest.warns(UserWarning, match="UW learns its weights"):
        train(model, balancer, torch.optim.AdamW(model.parameters()), present="a")


@pytest.mark.parametrize("name", ["uw", "imtl-l", "imtl"])
def test_make_method_steps_them(name):
    model = Network()
    method = eq.make_method(name, model, TASKS, lr=0.0)
    train(model, method, method)
