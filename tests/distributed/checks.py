"""What the workers assert beside the comparison with one process; each check runs on all ranks."""

from __future__ import annotations

import copy
import functools

import pytest
import scenarios
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from scenarios import STEPS, TASKS, Trainer, alike_on_all_ranks, difference, network, samples, wrapped
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.torch_version import TorchVersion

import equipoise as eq
from equipoise.gradients.ranks import communication
from equipoise.gradients.ranks.communication import Ranks, Reduction

BOUND = 1e-12
SAVED = ("ema", "uw", "imtl", "pcgrad", "mao")
TORCHJD = {"TrimmedMean": {"trim_number": 1}}
CHECKS = {}


def check(*sizes):
    """Registers a check for launches of these sizes."""

    def register(function):
        @functools.wraps(function)
        def run(rank, size, checkpoints):
            function(rank, size, checkpoints)
            return "held"

        run.sizes = set(sizes or (2, 4))
        CHECKS[function.__name__] = run
        return run

    return register


@functools.cache
def alone():
    """A group of this rank only: what uses it is one process."""
    return [dist.new_group([rank]) for rank in range(dist.get_world_size())][dist.get_rank()]


def one_process(name, steps, pattern, **settings):
    return Trainer(name, process_group=alone(), **settings).train(steps, pattern)


def losses_of(model, step=0, rows=slice(None)):
    x, targets = samples(step)
    outputs = model(x[rows])
    return {task: (outputs[task] - targets[task][rows]).square().mean() for task in TASKS}


def mine(rank, size):
    width = scenarios.SAMPLES // size
    return slice(rank * width, (rank + 1) * width)


def gradients(model):
    found = [p.grad for p in model.parameters() if p.grad is not None]
    return [g.full_tensor() if isinstance(g, DTensor) else g for g in found]


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
def an_error_on_one_rank_is_an_error_on_all(rank, size, checkpoints):
    for name in ("ema", "pcgrad", "mao"):
        model = network()
        method = eq.make_method(name, model, TASKS)
        losses = losses_of(model)
        bad = [
            ({**losses, "b": losses["b"] * torch.nan}, "b"),
            ({**losses, "d": losses["b"]}, "unknown task 'd'"),
            ({**losses, "c": losses["c"].detach()}, "no graph"),
        ]
        for given, message in bad:
            before = copy.deepcopy([model.state_dict(), method.state_dict()])
            with pytest.raises(ValueError, match=message) as caught:
                method.backward(given if rank == size - 1 else losses, retain_graph=True)
            assert str(caught.value).startswith(f"On rank {size - 1}: ") == (rank != size - 1)
            assert all(p.grad is None for p in model.parameters())
            assert str(before) == str([model.state_dict(), method.state_dict()])
        method.backward(losses)


@check()
def accuracies_are_checked_on_every_rank(rank, size, checkpoints):
    balancer = eq.Balancer(TASKS, eq.DTP())
    with pytest.raises(ValueError, match="The accuracy of task 'a'"):
        balancer.end_epoch({"a": 2.0 if rank == 0 else 0.5})
    with pytest.raises((TypeError, ValueError), match="mapping"):
        balancer.end_epoch([0.5] if rank == 1 else None)
    balancer.end_epoch({"a": 0.2 + 0.1 * rank} if rank < 2 else None)
    assert torch.equal(balancer.objective.weighting.accuracy.value, torch.tensor([0.25, 0.0, 0.0], dtype=torch.float64))


@check()
def different_calls_are_an_error(rank, size, checkpoints):
    model = network()
    balancer = eq.Balancer(TASKS)
    counts = dict.fromkeys(TASKS, 4)
    for here, there in (({"accumulate": True}, {}), ({"counts": counts}, {})):
        with pytest.raises(ValueError, match="called differently"):
            balancer.backward(losses_of(model), **(here if rank == 0 else there))
    assert all(p.grad is None for p in model.parameters())


@check()
def without_a_model_ranks_need_one_full_step_first(rank, size, checkpoints):
    for aggregator in (None, eq.PCGrad):
        model, twin = network(), network()
        made = [eq.Balancer(TASKS, eq.EMA(), None if aggregator is None else aggregator(seed=1)) for _ in range(2)]
        balancer = made[0]
        one = eq.Balancer(TASKS, eq.EMA(), None if aggregator is None else aggregator(seed=1), process_group=alone())
        rows = mine(rank, size)
        partly = {t: loss for t, loss in losses_of(model, 0, rows).items() if t != "a" or rank}
        with pytest.raises(ValueError, match="model="):
            balancer.backward(partly)
        assert all(p.grad is None for p in model.parameters())
        for step in (1, 2):
            losses = losses_of(model, step, rows)
            masked = losses_of(twin, step)
            if step == 2:  # from the second rank on
                losses = {t: loss for t, loss in losses.items() if t != "a" or rank}
                masked["a"] = losses_of(twin, step, slice(scenarios.SAMPLES // size, None))["a"]
            balancer.backward(losses)
            one.backward(masked)
        assert difference(gradients(model), gradients(twin)) < BOUND


@check()
def wrapped_models_are_found_without_being_given(rank, size, checkpoints):
    for kind in ("ddp", "fsdp", "fsdp-kept"):
        for part in (None, "shared"):
            model, twin = wrapped(network(), kind), network()
            trunk = {} if part is None else {"shared": [*model.parameters()][:4]}
            same = {} if part is None else {"shared": [*twin.parameters()][:4]}
            balancer = eq.Balancer(TASKS, eq.EMA(), eq.CAGrad(), **trunk)
            one = eq.Balancer(TASKS, eq.EMA(), eq.CAGrad(), **same, process_group=alone())
            for step in range(2):
                weights = balancer.backward(losses_of(model, step, mine(rank, size)))
                expected = one.backward(losses_of(twin, step))
            assert difference(gradients(model), gradients(twin)) < BOUND
            assert difference(weights.values(), expected.values()) < BOUND
            assert all(isinstance(p.grad, DTensor) == (kind != "ddp") for p in model.parameters() if p.grad is not None)


@check()
def statistics_on_a_probe(rank, size, checkpoints):
    for kind in ("plain", "ddp", "fsdp"):
        model, twin = wrapped(network(), kind), network()
        inner = model.module if kind == "ddp" else model
        balancer = eq.Balancer(TASKS, None, eq.GradNorm(), probe=inner.trunk[2], model=model)
        one = eq.Balancer(TASKS, None, eq.GradNorm(), probe=twin.trunk[2], process_group=alone())
        for step in range(2):
            balancer.backward(losses_of(model, step, mine(rank, size)))
            one.backward(losses_of(twin, step))
        assert difference(gradients(model), gradients(twin)) < BOUND


def losses_at(model, step, rows, trunk=None):
    """The losses of each task's rows of samples, and the trunk's output for all samples that they start from."""
    x, targets = samples(step)
    first = min(range(scenarios.SAMPLES)[part].start for part in rows.values())
    after = max(range(scenarios.SAMPLES)[part].stop for part in rows.values())
    z = (trunk or model.trunk)(x[first:after])
    ab = model.branch(z).tanh()
    losses = {}
    for task, part in rows.items():
        output = model.heads[task](z if task == "c" else ab).squeeze(1)
        errors = output[part.start - first : part.stop - first] - targets[task][part]
        losses[task] = errors.square().mean()
    return losses, z


@check()
def a_representation_of_each_ranks_own_samples(rank, size, checkpoints):
    """The Gramians at the representation add up: as one process has it on all samples, whoever has the labels."""
    own, width = mine(rank, size), scenarios.SAMPLES // size
    everything = slice(0, scenarios.SAMPLES)
    for kind in ("plain", "ddp"):
        model, twin = network(), network()
        trunk = wrapped(model.trunk, kind)
        balancer = eq.Balancer(TASKS, eq.EMA(), eq.GradNorm(), model=model)
        one = eq.Balancer(TASKS, eq.EMA(), eq.GradNorm(), process_group=alone())
        for step, (held, all_of_it) in enumerate(
            [
                (dict.fromkeys(TASKS, own), dict.fromkeys(TASKS, everything)),
                (  # the first rank has no label of b
                    {task: own for task in TASKS if rank or task != "b"},
                    {"a": everything, "b": slice(width, scenarios.SAMPLES), "c": everything},
                ),
                (  # the last rank has no batch
                    dict.fromkeys(TASKS if rank < size - 1 else (), own),
                    dict.fromkeys(TASKS, slice(0, scenarios.SAMPLES - width)),
                ),
            ]
        ):
            losses, z = losses_at(model, step, held, trunk) if held else ({}, [])
            weights = balancer.backward(losses, counts=dict.fromkeys(held, width), representation=z)
            losses, z = losses_at(twin, step, all_of_it)
            expected = one.backward(losses, representation=z)
            assert difference([*weights.values()], [*expected.values()]) < BOUND, (kind, step)
            assert difference(gradients(model), gradients(twin)) < BOUND, (kind, step)
        assert alike_on_all_ranks(gradients(model))


@check()
def errors_of_a_representation_are_errors_on_all_ranks(rank, size, checkpoints):
    model = network()
    balancer = eq.Balancer(TASKS, None, eq.MGDA(), model=model)
    losses, z = losses_at(model, 0, dict.fromkeys(TASKS, mine(rank, size)))
    for wrong, words in (
        (z.detach(), "with its graph"),
        (z * 1, "No loss depends on representation"),
        ([], "is empty"),
    ):
        with pytest.raises(ValueError, match=words):
            balancer.backward(losses, representation=wrong if rank == 1 else z, retain_graph=True)
    with pytest.raises(ValueError, match="called differently"):
        balancer.backward(losses, representation=None if rank == 1 else z)
    assert not gradients(model)
    sharded = wrapped(network(), "fsdp")
    with pytest.raises(ValueError, match="does not go with fully_shard"):
        eq.Balancer(TASKS, None, eq.MGDA(), model=sharded).backward(losses, representation=z)


@check(2)
def aggregators_of_torchjd(rank, size, checkpoints):
    """One of each kind: by the Gramian, by the Jacobian, neither, and random."""
    for name in ("UPGrad", "IMTLG", "AlignedMTL", "Random", "TrimmedMean", "GradDrop", "ConFIG"):
        expected = one_process(f"torchjd:{name}", range(3), "some", **TORCHJD.get(name, {}))
        for kind in ("plain", "fsdp-nested"):
            trainer = Trainer(f"torchjd:{name}", kind, parts=size, part=rank, **TORCHJD.get(name, {}))
            assert difference(trainer.train(range(3), "some").parameters(), expected.parameters()) < BOUND, (name, kind)


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
def a_last_micro_batch_without_any_label_completes_the_step(rank, size, checkpoints):
    for name in ("ew", "uw", "pcgrad", "mao", "single:b"):
        for counts in (None, dict.fromkeys(TASKS, 3)):
            model, twin = network(), network()
            method = eq.make_method(name, model, TASKS)
            one = eq.make_method(name, twin, TASKS, process_group=alone())
            if one.balancer is not None:
                one.balancer.load_state_dict(method.balancer.state_dict())
            assert method.backward({}) == {}
            method.backward(losses_of(model, 0, mine(rank, size)), accumulate=True, counts=counts)
            assert method.backward({}, counts=None if counts is None else {}) == {}
            one.backward(losses_of(twin, 0), counts=counts)
            method.step()
            one.step()
            assert difference(model.parameters(), twin.parameters()) < BOUND


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
def nothing_on_any_rank_changes_nothing(rank, size, checkpoints):
    for name in ("ema", "rlw", "pcgrad", "mao"):
        trainer = Trainer(name, parts=size, part=rank).train(range(2), "missing")
        trainer.method.zero_grad()
        before = copy.deepcopy(trainer.method.state_dict())
        assert trainer.method.backward({}) == {}
        assert str(trainer.method.state_dict()) == str(before)
        assert all(p.grad is None for p in trainer.model.parameters())


@check()
def fully_shard_needs_every_task_on_every_rank(rank, size, checkpoints):
    for name in ("ema", "pcgrad", "mao"):
        model = wrapped(network(), "fsdp-nested")
        method = eq.make_method(name, model, TASKS)
        losses = losses_of(model, 0, mine(rank, size))
        left = {task: loss for task, loss in losses.items() if task != "c" or rank != 1}
        with pytest.raises(ValueError, match=r"'c' is left out of losses on rank 1.*count 0"):
            method.backward(left)
        method.backward(losses)


@check()
def fully_shard_in_an_old_pytorch(rank, size, checkpoints):
    """It cannot gather parameters twice in one backward pass; one pass is no problem."""
    for name in ("pcgrad", "mao", "ew"):
        model = wrapped(network(), "fsdp")
        method = eq.make_method(name, model, TASKS)
        losses = losses_of(model, 0, mine(rank, size))
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(torch, "__version__", TorchVersion("2.6.0+cu124"))
            if name == "ew":
                method.backward(losses)
                continue
            with pytest.raises(RuntimeError, match=r"PyTorch 2\.7 or later; this is 2\.6\.0"):
                method.backward(losses)
        assert not gradients(model)


@check()
def an_overflow_on_one_rank_stops_the_step_on_all(rank, size, checkpoints):
    for name in ("ema", "uw", "pcgrad", "graddrop", "mao", "famo") if size == 2 else ("uw", "mao"):
        for kind in ("plain", "ddp", "fsdp"):
            for micro in (1, 2) if kind == "plain" else (2,):
                trainer = Trainer(name, kind, parts=size, part=rank)
                scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
                model, method = trainer.model, trainer.method

                def backward(factor, step, model=model, method=method, micro=micro, scaler=scaler):
                    method.zero_grad()
                    for index in range(micro):
                        losses = losses_of(model, step + index, mine(rank, size))
                        for loss in losses.values():
                            scaled = factor if index == 0 else 1.0
                            loss.register_hook(lambda gradient, scaled=scaled: gradient * scaled)
                        method.backward(losses, scaler=scaler, accumulate=index < micro - 1)
                    scaler.step(method.optimizer)
                    scaler.update()

                backward(1.0, 0)
                generator = method.balancer is not None
                before = copy.deepcopy(trainer.parameters()), copy.deepcopy(trainer.states())
                backward(torch.inf if rank == size - 1 else 1.0, 2)
                assert scaler.get_scale() == 2.0
                assert all(map(torch.equal, trainer.parameters(), before[0]))
                if generator and not (name == "ema" and micro == 2):
                    assert all(map(torch.equal, trainer.states(), before[1])), (name, kind, micro)
                backward(1.0, 4)
                assert alike_on_all_ranks([*trainer.parameters(), *trainer.states()])
                assert not all(map(torch.equal, trainer.parameters(), before[0]))


@check()
def task_gradients_are_clipped_by_their_norm_over_all_ranks(rank, size, checkpoints):
    one = one_process("mao", range(3), "all", max_norm=0.3)
    for kind in ("plain", "fsdp"):
        trainer = Trainer("mao", kind, parts=size, part=rank, max_norm=0.3).train(range(3), "all")
        assert difference(trainer.parameters(), one.parameters()) < BOUND


@check()
def moments_are_sharded_like_their_parameters(rank, size, checkpoints):
    trainer = Trainer("mao", "fsdp-nested", parts=size, part=rank).train(range(2), "missing")
    for parameter, state in trainer.method.optimizer.state.items():
        moments = [value for key, value in state.items() if key != "step"]
        assert moments
        assert isinstance(parameter, DTensor)
        assert all(m.placements == parameter.placements and m.shape == parameter.shape for m in moments)
        assert all(m.to_local().shape == parameter.to_local().shape for m in moments)


@check()
def graphs_kept_under_fully_shard_give_the_same_again(rank, size, checkpoints):
    for name in ("ema", "cagrad", "mao"):
        for how in ("fsdp-nested", "fsdp-kept"):
            model, twin = wrapped(network(), how), network()
            method = eq.make_method(name, model, TASKS)
            one = eq.make_method(name, twin, TASKS, process_group=alone())
            losses, whole = losses_of(model, 0, mine(rank, size)), losses_of(twin)
            for keep in (True, True, False):
                method.backward(losses, retain_graph=keep)
                one.backward(whole, retain_graph=keep)
            method.step()
            one.step()
            found = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
            assert difference(found, twin.parameters()) < BOUND


@check()
def a_model_sharded_over_one_rank(rank, size, checkpoints):
    group = alone()
    mesh = DeviceMesh.from_group(group, "cpu")
    for name in ("uw", "graddrop", "pcgrad", "mao"):
        one = one_process(name, range(STEPS), "some", micro=2)
        trainer = Trainer(name, micro=2, process_group=group)
        fully_shard(trainer.model, mesh=mesh)
        torch.manual_seed(7)
        trainer.method = eq.make_method(name, trainer.model, TASKS, lr=0.02, weight_decay=0.01, process_group=group)
        trainer.train(range(STEPS), "some")
        assert difference(trainer.parameters(), one.parameters()) < BOUND


@check()
def parameters_outside_the_wrapper_are_averaged_too(rank, size, checkpoints):
    """A trunk in a wrapper, heads outside."""
    for kind in ("ddp", "fsdp"):
        for aggregator in (None, eq.CAGrad()):
            model, twin = network(), network()
            model.trunk = (
                nn.parallel.DistributedDataParallel(model.trunk) if kind == "ddp" else fully_shard(model.trunk)
            )
            balancer = eq.Balancer(TASKS, None, aggregator, model=model)
            one = eq.Balancer(TASKS, None, copy.deepcopy(aggregator), model=twin, process_group=alone())
            for step in range(2):
                balancer.backward(losses_of(model, step, mine(rank, size)))
                one.backward(losses_of(twin, step))
            assert difference(gradients(model), gradients(twin)) < BOUND


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


@check()
def resuming_is_not_to_have_stopped(rank, size, checkpoints):
    """Bit for bit, in new objects, from files, with labels missing in the first step after."""
    for kind in ("plain", "ddp"):
        for name in [*eq.list_methods(), "single:b"] if size == 2 and kind == "plain" else SAVED:
            straight = Trainer(name, kind, parts=size, part=rank).train(range(5), "missing")
            first = Trainer(name, kind, parts=size, part=rank).train(range(2), "missing")
            path = checkpoints / f"{size}-{rank}-resume.pt"
            torch.save([first.model.state_dict(), first.method.state_dict()], path)
            second = Trainer(name, kind, parts=size, part=rank)
            torch.rand(rank + 1)  # new processes have other random states
            model, method = torch.load(path, weights_only=True)
            second.model.load_state_dict(model)
            second.method.load_state_dict(method)
            second.train(range(2, 5), "missing")
            assert all(map(torch.equal, straight.parameters(), second.parameters())), (kind, name)
            assert all(map(torch.equal, straight.states(), second.states())), (kind, name)


def whole(trainer):
    """What is saved: one module that holds the model and, where there is one, the Balancer."""
    parts = {"model": trainer.model} | (
        {} if trainer.method.balancer is None else {"balancer": trainer.method.balancer}
    )
    return nn.ModuleDict(parts), trainer.method.optimizer


def save(trainer, path):
    model, optimizer = get_state_dict(*whole(trainer))
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=path)


def load(trainer, path):
    model, optimizer = get_state_dict(*whole(trainer))
    state = {"model": model, "optimizer": optimizer}
    dcp.load(state, checkpoint_id=path, planner=dcp.DefaultLoadPlanner(allow_partial_load=True))
    set_state_dict(*whole(trainer), model_state_dict=state["model"], optim_state_dict=state["optimizer"])


@check(4)
def a_distributed_checkpoint_is_saved(rank, size, checkpoints):
    for name in SAVED:
        for kind in ("fsdp-nested", "ddp"):
            save(Trainer(name, kind, parts=size, part=rank).train(range(2), "missing"), checkpoints / f"{name}-{kind}")


@check(2)
def a_distributed_checkpoint_goes_on_with_fewer_ranks(rank, size, checkpoints):
    for name in SAVED:
        one = one_process(name, range(STEPS), "missing")
        for saved in ("fsdp-nested", "ddp"):
            for kind in ("fsdp", "plain"):
                trainer = Trainer(name, kind, parts=size, part=rank)
                load(trainer, checkpoints / f"{name}-{saved}")
                trainer.train(range(2, STEPS), "missing")
                assert (
                    difference([*trainer.parameters(), *trainer.states()], [*one.parameters(), *one.states()]) < BOUND
                )
                if name == "mao":
                    kept = [set(state) for state in trainer.method.optimizer.state.values()]
                    expected = [set(state) for state in one.method.optimizer.state.values()]
                    assert kept == expected
