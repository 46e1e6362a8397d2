"""State per task: what is kept, taken back, and decided later."""

import copy
import pickle

import pytest
import torch
from catalogue import METHODS
from conftest import TASKS
from default_device import default_device

from equipoise import _state
from equipoise._adam import Adam
from equipoise._kept import constants
from equipoise.aggregators import GradNorm
from equipoise.objectives import EMA, RLW, UW, WeightedSum

LOSSES = [torch.tensor(row, dtype=torch.float64) for row in ([1.0, 2.0, 3.0], [4.0, 1.0, 0.5], [0.1, 9.0, 2.0])]
YES, NO = torch.tensor(True), torch.tensor(False)


@pytest.fixture
def elsewhere(monkeypatch):
    """Every flag counts as one of another device."""
    monkeypatch.setattr(_state, "_is_elsewhere", lambda flag, state: True)


@pytest.fixture
def looks(monkeypatch):
    """The flags that the host has looked at."""
    found = []
    valid = _state.Undecided.valid

    def look(undecided):
        found.append(valid.fget(undecided))
        return found[-1]

    monkeypatch.setattr(_state.Undecided, "valid", property(look))
    return found


def ema(beta=0.5):
    method = EMA(beta)
    method.bind(TASKS)
    return method


def take(method, losses, valid=None, present=None, usable=None):
    with method.step(present, usable=usable) as step:
        method(losses if present is None else losses[present])
        step.commit(valid)


def written(method):
    """The buffers as they are, decided or not."""
    return {name: buffer.clone() for name, buffer in method.named_buffers()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


LOOKS = {
    "state_dict": lambda method: {name: value for name, value in method.state_dict().items() if "extra" not in name},
    "next step": lambda method: _read(method),
    "attribute": lambda method: {f"average.{name}": getattr(method.average, name) for name in ("value", "count")},
    "snapshot": lambda method: {f"average.{name}": value for name, value in method.snapshot()[1][0].items()},
    "to": lambda method: written(method.to(torch.float64)),
    "deepcopy": lambda method: written(copy.deepcopy(method)),
    "pickle": lambda method: written(pickle.loads(pickle.dumps(method))),
}


def _read(method):
    with method.average.step() as step:
        state = method.average.state
        found = {"average.value": state.value, "average.count": state.count}
        step.commit()
    return found


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("present", [None, [0, 2]])
@pytest.mark.parametrize("valid", [YES, NO])
def test_a_flag_of_another_device_decides_when_the_state_is_looked_at(elsewhere, looks, look, present, valid):
    method, plain = ema(), ema()
    for each in (method, plain):
        take(each, LOSSES[0])
    before = written(plain)
    take(plain, LOSSES[1], present=present)
    take(method, LOSSES[1], valid, present)
    assert looks == []
    assert same(written(method), written(plain))  # the new values, at once
    expected = written(plain) if valid else before
    assert same(LOOKS[look](method), expected)
    assert looks == [bool(valid)]
    assert same(written(method), expected)
    take(plain if valid else method, LOSSES[2])  # later steps go on from there, and look no more
    assert looks == [bool(valid)]


def test_a_flag_decides_together_with_the_tasks_that_take_part(elsewhere):
    method, plain = ema(), ema()
    take(method, LOSSES[0])
    take(method, LOSSES[1], YES, usable=torch.tensor([True, False, True]))
    take(method, LOSSES[2], NO, usable=torch.tensor([True, True, False]))
    take(plain, LOSSES[0])
    take(plain, LOSSES[1], present=[0, 2])
    assert same(LOOKS["state_dict"](method), written(plain))


def test_a_loaded_state_is_not_taken_back(elsewhere):
    method, source = ema(), ema()
    take(source, LOSSES[2])
    take(method, LOSSES[0], NO)
    method.load_state_dict(source.state_dict())
    assert same(LOOKS["state_dict"](method), written(source))


def test_flags_on_the_states_device_decide_at_once(looks):
    method, plain = ema(), ema()
    for each in (method, plain):
        take(each, LOSSES[0])
    take(method, LOSSES[1], NO)
    assert same(written(method), written(plain))
    take(method, LOSSES[1], YES, present=[1])
    take(plain, LOSSES[1], present=[1])
    assert same(written(method), written(plain))
    assert looks == []


def test_the_modules_inside_are_settled_too(elsewhere):
    method = GradNorm()
    method.bind(TASKS)
    before = method.state_dict()
    before = {name: value.clone() for name, value in before.items() if isinstance(value, torch.Tensor)}
    with method.step() as step:
        method(torch.eye(3, dtype=torch.float64) * LOSSES[0], LOSSES[0])
        step.commit(NO)
    assert not same(written(method), before)
    after = method.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("away", [False, True])
@pytest.mark.parametrize("unless", [None, YES, NO])
def test_several_commits_can_be_taken_back(request, looks, away, unless):
    if away:
        request.getfixturevalue("elsewhere")
    method = WeightedSum(RLW(seed=0))
    method.average = ema()
    method.bind(TASKS)

    def both(losses, valid=None):
        with method.step() as step:
            drawn = method(losses)
            method.average(losses)
            step.commit(valid)
        return drawn

    both(LOSSES[0])
    snapshot, before, generator = method.snapshot(), written(method), method.weighting.generator.get_state()
    both(LOSSES[1], YES)
    both(LOSSES[2])
    after, advanced = written(method), method.weighting.generator.get_state()
    del looks[:]
    method.restore(snapshot, unless)
    assert looks == []
    method.settle()
    method.average.average.settle()
    back = unless is None or not unless
    assert same(written(method), before if back else after)
    assert torch.equal(method.weighting.generator.get_state(), generator if back else advanced)
    both(LOSSES[0], NO)
    del looks[:]
    method.restore(snapshot)  # a snapshot can be gone back to more than once, and needs no flag of a step after it
    assert same(written(method), before)
    assert looks == []
    method.state_dict()
    assert same(written(method), before)


def test_what_is_undecided_is_decided_in_order(elsewhere):
    method = ema()
    take(method, LOSSES[0])
    snapshot, before = method.snapshot(), LOOKS["state_dict"](method)
    before = {name: value.clone() for name, value in before.items()}
    take(method, LOSSES[1], NO)
    method.restore(snapshot, NO)
    assert same(LOOKS["state_dict"](method), before)
    take(method, LOSSES[1], YES)
    method.restore(snapshot, NO)
    assert same(LOOKS["state_dict"](method), before)
    take(method, LOSSES[1], NO)
    method.restore(snapshot)
    take(method, LOSSES[1], YES)
    method.restore(snapshot, YES)
    assert not same(LOOKS["state_dict"](method), before)


@pytest.mark.parametrize("name", METHODS)
def test_a_default_device_changes_nothing(drive, batches, name):
    """On meta nothing can be computed: all that is made has to say where it lies."""
    constants.cache_clear()
    generator = torch.default_generator.get_state()
    with default_device("meta"):
        found = drive(METHODS[name]())
        results = [found.step(losses) for losses in batches]
    torch.default_generator.set_state(generator)
    assert all(tensor.device.type == "cpu" for tensor in [*found.objective.buffers(), *found.parameters])
    expected = drive(METHODS[name]())
    assert results == [expected.step(losses) for losses in batches]


def test_parameters_are_made_where_the_state_is():
    method = UW(classification=["a"])
    with default_device("meta"):
        method.bind(TASKS)
    assert {tensor.device.type for tensor in (*method.parameters(), *method.buffers())} == {"cpu"}


def test_adam_is_that_of_pytorch():
    """Task by task, since a task that is left out keeps its moments and its count."""
    adam = Adam(lr=0.3)
    adam.bind(TASKS)
    values = torch.zeros(3, dtype=torch.float64)
    peers = [torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(3)]
    optimizer = torch.optim.Adam(peers, lr=0.3)
    for index in range(40):
        present = [[0, 1, 2], [0, 1], [2]][index % 3]
        gradient = LOSSES[index % 3][present] * (-1.0) ** (index // 5) - 1.5
        optimizer.zero_grad()
        for task, slope in zip(present, gradient, strict=True):
            peers[task].grad = slope.clone()
        optimizer.step()
        with adam.step(present) as step:
            values[present] = adam(values[present], gradient)
            step.commit()
        torch.testing.assert_close(values, torch.stack(peers).detach(), rtol=1e-12, atol=1e-14)
    assert values.abs().min() > 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("valid", [True, False])
def test_state_on_the_host_does_not_wait_for_the_gpu(valid):
    method, plain = ema(), ema()
    for each in (method, plain):
        take(each, LOSSES[0])
    snapshot = method.snapshot()
    flag = torch.tensor(valid, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(200_000_000)
        flag = flag & flag
        take(method, LOSSES[1], flag)
        method.restore(snapshot, flag)
        assert not torch.cuda.current_stream().query()  # the GPU still sleeps
    finally:
        torch.cuda.set_sync_debug_mode("default")
    if valid:
        take(plain, LOSSES[1])
    assert same(LOOKS["state_dict"](method), written(plain))
