"""Checks of what a step on several ranks gives, and of its errors, which are errors on all."""

from __future__ import annotations

import copy

import pytest
import scenarios
import torch
from checking import BOUND, alone, check, gradients, losses_of, mine, one_process
from scenarios import TASKS, Trainer, alike_on_all_ranks, difference, network, samples, wrapped

import equipoise as eq

TORCHJD = {"TrimmedMean": {"trim_number": 1}}


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
def state_as_large_as_the_gradients_is_not_for_fully_shard(rank, size, checkpoints):
    for name in ("moco", "db-mtl", "excess-mtl"):
        trainer = Trainer(name, "fsdp-nested", parts=size, part=rank)
        before = copy.deepcopy(trainer.states())
        with pytest.raises(ValueError, match="where fully_shard spreads parameters over ranks"):
            trainer.train(range(1), "some")
        assert all(map(torch.equal, trainer.states(), before))


@check(2)
def aggregators_of_torchjd(rank, size, checkpoints):
    """One of each kind: by the Gramian, by the Jacobian, neither, and random."""
    for name in ("UPGrad", "IMTLG", "AlignedMTL", "Random", "TrimmedMean", "GradDrop", "ConFIG"):
        expected = one_process(f"torchjd:{name}", range(3), "some", **TORCHJD.get(name, {}))
        for kind in ("plain", "fsdp-nested"):
            trainer = Trainer(f"torchjd:{name}", kind, parts=size, part=rank, **TORCHJD.get(name, {}))
            assert difference(trainer.train(range(3), "some").parameters(), expected.parameters()) < BOUND, (name, kind)


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
def nothing_on_any_rank_changes_nothing(rank, size, checkpoints):
    for name in ("ema", "rlw", "pcgrad", "mao"):
        trainer = Trainer(name, parts=size, part=rank).train(range(2), "missing")
        trainer.method.zero_grad()
        before = copy.deepcopy(trainer.method.state_dict())
        assert trainer.method.backward({}) == {}
        assert str(trainer.method.state_dict()) == str(before)
        assert all(p.grad is None for p in trainer.model.parameters())


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
