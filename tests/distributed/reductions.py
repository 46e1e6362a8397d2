"""Checks of what ranks send each other, when, and in which group."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from checking import BOUND, alone, check, losses_of, mine, one_process
from scenarios import STEPS, TASKS, Trainer, difference, network, wrapped

import equipoise as eq
from equipoise.gradients.ranks import communication
from equipoise.gradients.ranks.communication import Ranks, Reduction


class Spy:
    """Records the reductions of gradient size, which all have more elements than the tasks' numbers."""

    def __init__(self, monkeypatch):
        self.events = []
        original = dist.all_reduce

        def all_reduce(tensor, *arguments, **keywords):
            if tensor.numel() > 2 * len(TASKS) and tensor.is_floating_point():
                self.events.append(("reduce", tensor.numel(), keywords.get("async_op", False)))
            return original(tensor, *arguments, **keywords)

        monkeypatch.setattr(dist, "all_reduce", all_reduce)


@check()
def loss_only_methods_keep_the_single_reduction_of_ddp(rank, size, checkpoints):
    for given in (False, True):
        model = wrapped(network(), "ddp")
        buckets = []

        def count(state, bucket, buckets=buckets):
            buckets.append(bucket.buffer().numel())
            return dist.all_reduce(bucket.buffer().div_(size), async_op=True).get_future().then(lambda f: f.value()[0])

        model.register_comm_hook(None, count)
        balancer = eq.Balancer(TASKS, eq.EMA(), model=model if given else None)
        with pytest.MonkeyPatch.context() as monkeypatch:
            balancer.backward(losses_of(model, 0, mine(rank, size)))
            first = sum(buckets)
            spy = Spy(monkeypatch)
            before = len(buckets)
            balancer.backward(losses_of(model, 1, mine(rank, size)))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert first == trained
        assert sum(buckets[before:]) == trained
        assert sum(numel for _, numel, _ in spy.events) == trained  # of the hook above; none of ours


@check()
def rows_are_reduced_while_the_next_task_goes_backward(rank, size, checkpoints):
    for kind in ("plain", "ddp"):
        model = wrapped(network(), kind)
        balancer = eq.Balancer(TASKS, None, eq.PCGrad())
        balancer.backward(losses_of(model, 0, mine(rank, size)))
        with pytest.MonkeyPatch.context() as monkeypatch:
            spy = Spy(monkeypatch)
            losses = losses_of(model, 1, mine(rank, size))
            for task, loss in losses.items():
                loss.register_hook(lambda gradient, task=task, events=spy.events: events.append(task))
            balancer.backward(losses)
        assert [event if isinstance(event, str) else event[0] for event in spy.events] == [
            "a", "reduce", "b", "reduce", "c", "reduce"
        ]  # fmt: skip
        assert all(event[2] for event in spy.events if not isinstance(event, str))


@check()
def micro_batches_are_reduced_once(rank, size, checkpoints):
    for name in ("ema", "pcgrad", "mao"):
        model = wrapped(network(), "ddp")
        method = eq.make_method(name, model, TASKS)
        with pytest.MonkeyPatch.context() as monkeypatch:
            spy = Spy(monkeypatch)
            method.backward(losses_of(model, 0, mine(rank, size)), accumulate=True)
            method.backward(losses_of(model, 1, mine(rank, size)), accumulate=True)
            assert spy.events == []


@check()
def a_group_that_takes_no_cpu_tensors_gets_one_beside_it(rank, size, checkpoints):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(dist, "get_backend_config", lambda group: "cuda:nccl")
        trainer = Trainer("pcgrad", parts=size, part=rank).train(range(STEPS), "missing")
    (beside,) = trainer.method.balancer._company.ranks._host_groups.values()
    assert beside is not dist.group.WORLD
    assert dist.get_process_group_ranks(beside) == list(range(size))
    expected = one_process("pcgrad", range(STEPS), "missing")
    assert difference(trainer.parameters(), expected.parameters()) < BOUND


@check(4)
def groups_of_ranks_train_apart(rank, size, checkpoints):
    pair = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])][rank // 2]
    for name in ("ema", "rlw", "graddrop", "mao"):
        pattern = ("missing", "some")[rank // 2]
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(dist, "get_backend_config", lambda group: "cuda:nccl")
            trainer = Trainer(name, parts=2, part=rank % 2, process_group=pair).train(range(STEPS), pattern)
        assert difference(trainer.parameters(), one_process(name, range(STEPS), pattern).parameters()) < BOUND


@check()
def copies_train_with_the_same_ranks(rank, size, checkpoints):
    for name in ("pcgrad", "mao"):
        method = eq.make_method(name, network(), TASKS, process_group=alone())
        part = method.balancer if name == "pcgrad" else method.optimizer
        assert copy.deepcopy(part)._company.ranks.process_group is alone()


@check()
def buckets_hold_gradients_of_any_layout(rank, size, checkpoints):
    shapes = [(3, 4), (), (2, 3, 4, 5), (0, 3), (7,), (5, 6), (1, 1), (40,)]
    generator = torch.Generator().manual_seed(0)
    every = []
    for _ in range(size):
        row = [torch.randn(shape, generator=generator) for shape in shapes]
        row[2] = row[2].to(memory_format=torch.channels_last)
        row[4] = row[4].double()
        row[5] = torch.randn(6, 5, generator=generator).t()
        every.append(row)
    leaves = [tensor.clone() for tensor in every[0]]
    gaps = torch.randn(8, 4)[:, ::2].requires_grad_()  # strides with gaps
    with pytest.MonkeyPatch.context() as monkeypatch:
        for capacity in (1, 100, 10**6):
            monkeypatch.setattr(communication, "BUCKET_BYTES", capacity)
            reduction = Reduction(Ranks(), 0.5)
            row = dict(zip(leaves, every[rank], strict=True)) | {gaps: torch.ones(8, 2)}
            reduced = reduction.start(row)
            reduction.wait()
            assert list(reduced) == list(row)
            for index, leaf in enumerate(leaves):
                expected = sum(one[index] for one in every) * 0.5
                assert torch.allclose(reduced[leaf], expected)
                assert reduced[leaf].stride() == leaf.stride()
                assert reduced[leaf].dtype == every[0][index].dtype
            assert torch.equal(reduced[gaps], torch.full((8, 2), size * 0.5))
