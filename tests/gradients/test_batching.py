"""How many tasks go at once: given, chosen by timing that nobody waits for, saved, and the same on all ranks."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from architectures import TASKS, make

import equipoise as eq
from equipoise._saved import unpacked
from equipoise.gradients import batching as module
from equipoise.gradients.batching import TIMED, WARM_UP, Batching, Together
from equipoise.gradients.ranks.several import Several
from equipoise.gradients.step import Step

CUDA = torch.device("cuda")
TRIALS = 2 * (WARM_UP + TIMED)


class Accelerator:
    """A clock that launched work moves on, and events that have come to pass once it is told so."""

    def __init__(self):
        self.now, self.idle, self.events = 0.0, True, 0

    def event(self, device, enable_timing=False):
        assert enable_timing
        self.events += 1
        return Event(self)


class Event:
    def __init__(self, accelerator):
        self.accelerator, self.at = accelerator, None

    def record(self):
        self.at = self.accelerator.now

    def query(self):
        return self.accelerator.idle

    def elapsed_time(self, end):
        assert self.accelerator.idle, "the host would wait"
        return end.at - self.at

    def synchronize(self):
        raise AssertionError("the host waits")


@pytest.fixture
def accelerator(monkeypatch):
    """Has the CPU taken for an accelerator."""
    accelerator = Accelerator()
    monkeypatch.setattr(module.torch, "Event", accelerator.event)
    monkeypatch.setattr(module, "NO_GAIN", ())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 40, 1 << 40))
    return accelerator


def begin(batching, count=4, row_bytes=8, device=CUDA, against=None, hooked=False):
    return batching.begin(device, lambda: Together(count, row_bytes, against, hooked))


def steps(batching, accelerator, costs, number=TRIALS, count=4, **options):
    """Takes steps that cost so much at each size; returns the sizes."""
    sizes = []
    for _ in range(number):
        batching.settle([batching.vote])
        size, trial = begin(batching, count, **options)
        accelerator.now += costs(size)
        if trial is not None:
            trial.end()
        sizes.append(size)
    return sizes


@pytest.mark.parametrize("size", [0, -1, 1.5, 2.0, True, "two", float("nan"), torch.tensor([1, 2])])
def test_a_chunk_size_that_is_none(size):
    for make_one in (Batching, lambda size: eq.Balancer(TASKS, chunk_size=size)):
        with pytest.raises(ValueError, match="chunk_size must be"):
            make_one(size)
    with pytest.raises(ValueError, match="chunk_size must be"):
        eq.MAO(make("mlp").parameters(), TASKS, chunk_size=size)


def test_a_number_is_taken_as_far_as_there_are_tasks():
    batching = Batching(3)
    assert [begin(batching, count)[0] for count in (4, 3, 2)] == [3, 3, 2]
    assert batching.reason == "chunk_size=3"
    assert begin(batching, device=torch.device("cpu"), hooked=True) == (3, None)
    assert begin(batching, against="of a good reason") == (1, None)
    assert batching.reason == "one after the other: of a good reason"
    assert begin(Batching(np.int64(3)))[0] == 3
    assert begin(Batching(1)) == (1, None)


def test_one_on_a_cpu_whatever_has_been_chosen_elsewhere():
    batching = Batching(None)
    batching.choose(4)
    assert begin(batching, device=torch.device("cpu")) == (1, None)
    assert batching.reason == "one after the other: on a CPU more gain nothing"
    assert begin(batching) == (4, None)
    assert batching.reason == "4 at once: the quicker in the first steps"


@pytest.mark.parametrize("chosen", [None, 4])
def test_one_where_algorithms_have_to_be_deterministic(chosen):
    batching = Batching(None)
    batching.choose(chosen)
    torch.use_deterministic_algorithms(True)
    try:
        assert begin(batching) == (1, None)
        assert "deterministic" in batching.reason
    finally:
        torch.use_deterministic_algorithms(False)


def test_one_where_parameters_have_hooks(accelerator):
    batching = Batching(None)
    assert begin(batching, hooked=True) == (1, None)
    assert batching.reason == "one after the other: there are hooks on parameters"


@pytest.mark.parametrize(("together", "kept"), [(3.0, 4), (5.0, 1)])
def test_the_quicker_is_kept(accelerator, together, kept):
    batching = Batching(None)

    def costs(size):
        return 4.0 if size == 1 else together

    assert steps(batching, accelerator, costs) == [1, 4] * (WARM_UP + TIMED)
    assert batching.reason == "both ways are being timed"
    events = accelerator.events
    assert steps(batching, accelerator, costs, 5) == [kept] * 5
    assert accelerator.events == events == 2 * TRIALS
    assert batching.chosen == kept
    assert batching.reason.endswith("the quicker in the first steps")


def test_warming_up_does_not_count(accelerator):
    batching, number = Batching(None), 0

    def costs(size):
        nonlocal number
        number += 1
        return 100.0 if size > 1 and number <= 2 * WARM_UP else float(size == 1) + 1

    steps(batching, accelerator, costs, TRIALS + 1)
    assert batching.chosen == 4


def test_nobody_waits_for_the_times(accelerator):
    batching, accelerator.idle = Batching(None), False
    steps(batching, accelerator, lambda size: 1.0 / size)
    assert steps(batching, accelerator, lambda size: 1.0 / size, 7) == [1] * 7
    accelerator.idle = True
    assert steps(batching, accelerator, lambda size: 1.0 / size, 1) == [4]


def test_steps_with_fewer_tasks_are_measured_by_task(accelerator):
    """Both ways take as long; but at once it is four tasks, and two where they go one after the other."""
    batching = Batching(None)
    for turn in range(TRIALS):
        steps(batching, accelerator, lambda size: 2.0, 1, count=4 if turn % 2 else 2)
    batching.settle([batching.vote])
    assert batching.chosen == 4


def test_steps_in_which_nothing_can_be_timed_do_not_count(accelerator):
    batching = Batching(None)
    for _ in range(TRIALS):
        steps(batching, accelerator, lambda size: 1.0, 1, count=1, against="one task")
        assert accelerator.events == 0
    assert steps(batching, accelerator, lambda size: 1.0 / size, TRIALS + 1)[-1] == 4


@pytest.mark.parametrize(("free", "size"), [(1 << 40, 4), (600, 3), (401, 2), (200, 1), (0, 1)])
def test_a_chunks_rows_take_half_of_the_free_memory(accelerator, monkeypatch, free, size):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 1 << 40))
    batching = Batching(None)
    assert steps(batching, accelerator, lambda size: 1.0 / size, 2, row_bytes=100) == [1, size]
    steps(batching, accelerator, lambda size: 1.0 / size, TRIALS - 1, row_bytes=100)
    assert batching.chosen == size


def test_a_device_that_does_not_tell_its_free_memory(accelerator, monkeypatch):
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace())
    assert steps(Batching(None), accelerator, lambda size: 1.0, 2) == [1, 4]


def test_copies_and_pickles_are_without_events(accelerator):
    batching = Batching(None)
    steps(batching, accelerator, lambda size: 1.0 / size, 3)
    for again in (copy.deepcopy(batching), pickle.loads(pickle.dumps(batching))):
        assert steps(again, accelerator, lambda size: 1.0 / size, TRIALS + 1)[-1] == 4


CALLED = [1, 0]
VOTE = len(CALLED) + 1
"""Where a rank's vote stands among what it says."""


class Company:
    """Other ranks, that say what this one does but for their votes."""

    active, size = True, 3

    def __init__(self, *others):
        self.others = others

    def agree(self, error, numbers):
        return [list(numbers), *([*numbers[:VOTE], vote, *numbers[VOTE + 1 :]] for vote in self.others)]

    def sum_(self, tensor):
        return tensor


def test_ranks_keep_the_first_choice(accelerator):
    values = torch.ones(2)
    losses = tuple(torch.ones(2, requires_grad=True).unbind())
    batching = Batching(None)

    def read(*others):
        Several(None, Company(*others), None).read(
            lambda: Step(("a", "b"), losses, values), ("a", "b"), CALLED, batching
        )
        return batching.chosen

    steps(batching, accelerator, lambda size: 1.0 / size, TRIALS - 1)
    assert read(0, 0) is None
    accelerator.idle = False
    steps(batching, accelerator, lambda size: 1.0 / size, 1)
    assert read(0, 0) is None
    accelerator.idle = True
    assert batching.vote == 4
    assert read(1, 3) == 4
    assert read(1, 1) == 4  # from here on


def test_a_rank_that_has_timed_nothing_takes_the_others_choice():
    batching = Batching(None)
    ranks = Several(None, Company(0, 3), None)
    loss = torch.ones((), requires_grad=True)
    ranks.read(lambda: Step(("a",), (loss,), torch.ones(1)), ("a", "b"), CALLED, batching)
    assert batching.chosen == 3
    given = Batching(2)
    ranks.read(lambda: Step(("a",), (loss,), torch.ones(1)), ("a", "b"), CALLED, given)
    assert begin(given)[0] == 2


def balancer_of(model):
    balancer = eq.Balancer(TASKS, aggregator=eq.MGDA(), engine="rows")
    return balancer, balancer._balancing.batching


def mao_of(model):
    optimizer = eq.MAO(model.parameters(), TASKS)
    return optimizer, optimizer._batching


@pytest.fixture
def quick_at_once(accelerator, monkeypatch):
    """One pass through what tasks share takes as long as another, of however many tasks."""
    one = torch.autograd.grad

    def grad(*arguments, **options):
        accelerator.now += 1
        return one(*arguments, **options)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    return accelerator


@pytest.mark.parametrize("kind", [balancer_of, mao_of])
def test_what_is_chosen_is_saved_and_taken_from_the_first_step(kind, quick_at_once):
    model = make("mlp")
    one, batching = kind(model)
    before = copy.deepcopy(one.state_dict())
    for step in range(TRIALS + 1):
        one.backward(model.losses(step))
        one.zero_grad()
    assert batching.chosen == 4
    assert batching.reason == "4 at once: the quicker in the first steps"
    state = pickle.loads(pickle.dumps(one.state_dict()))
    other, resumed = kind(model)
    other.load_state_dict(state)
    events = quick_at_once.events
    other.backward(model.losses(0))
    assert resumed.reason == "4 at once: the quicker in the first steps"
    assert quick_at_once.events == events
    assert other.state_dict().keys() == state.keys()
    other.load_state_dict(before)  # of before the choice: what is known is kept
    assert resumed.chosen == 4


def test_the_state_of_mao_is_an_ordinary_one(quick_at_once):
    model = make("mlp")
    optimizer, batching = mao_of(model)
    batching.choose(4)
    for one in (optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        state = one.state_dict()
        assert set(state) == {"state", "param_groups"}
        assert [group["chunk_size"] for group in state["param_groups"]] == [4]
    older = optimizer.state_dict()
    for group in older["param_groups"]:
        del group["chunk_size"]
    other, resumed = mao_of(model)
    other.load_state_dict(older)
    assert resumed.chosen is None
    assert other.state_dict()["param_groups"][0]["chunk_size"] is None
    given = eq.MAO(model.parameters(), TASKS, chunk_size=2)
    given.load_state_dict(optimizer.state_dict())
    given.backward(model.losses(0))
    assert given._batching.reason == "chunk_size=2"


def test_a_step_that_cannot_be_batched_ends_the_timing(accelerator, monkeypatch):
    def refuse(*arguments, **options):
        raise RuntimeError("no rule\nfor this")

    monkeypatch.setattr(torch, "vmap", refuse)
    model = make("mlp")
    balancer, batching = balancer_of(model)
    for step in range(3):
        balancer.backward(model.losses(step))
    assert balancer.way == "rows: one after the other: no rule"
    assert accelerator.events == 4
    assert unpacked(balancer.state_dict()["_extra_state"])["chunk_size"] == batching.chosen == 1


def test_streaming_takes_one(quick_at_once):
    model = make("mlp")
    optimizer = eq.MAO(model.parameters(), TASKS, streaming=True)
    optimizer.backward(model.losses(0))
    assert optimizer._batching.reason == "chunk_size=1"
    assert quick_at_once.events == 0


def test_losses_that_are_outputs_of_one_node_go_together():
    """As those of `losses.unbind()`: nothing is a task's alone."""
    torch.manual_seed(0)
    trunk = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 5)).double()
    x = torch.randn(7, 4, dtype=torch.float64)
    tasks = [str(index) for index in range(5)]
    gradients = []
    for chunk_size, way in ((1, "chunk_size=1"), (5, "chunk_size=5"), (2, "chunk_size=2")):
        balancer = eq.Balancer(tasks, aggregator=eq.IMTLG(), chunk_size=chunk_size)
        balancer.backward(dict(zip(tasks, trunk(x).square().mean(0).unbind(), strict=True)))
        assert balancer.way == f"rows: {way}"
        gradients.append([p.grad for p in trunk.parameters()])
        trunk.zero_grad()
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-12, atol=1e-12)
