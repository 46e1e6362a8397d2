"""Checks of what a step can be given: inputs with gradients, tasks here and there, gradients cleared, odd losses."""

from __future__ import annotations

import warnings

import pytest
import scenarios
import torch
import torch.distributed as dist
from checking import BOUND, alone, check, gradients, losses_of, mine
from scenarios import TASKS, alike_on_all_ranks, difference, network, samples, wrapped
from torch import nn

import equipoise as eq
from equipoise.gradients import step as step_module
from equipoise.gradients.batching import Batching
from equipoise.gradients.ranks.communication import Ranks

WAYS = ("ew", "uw", "pcgrad", "graddrop", "mao")
"""A method of each family; the last is an optimizer."""


def pair(name, kind="plain", **options):
    """A model on these ranks, and one in this process alone, with a method each."""
    model, twin = wrapped(network(), kind), network()
    methods = []
    for trained, group in ((model, None), (twin, alone())):
        torch.manual_seed(11)
        methods.append(eq.make_method(name, trained, TASKS, lr=0.1, process_group=group, **options))
    return model, methods[0], twin, methods[1]


def whole(model):
    return [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]


def losses_by(model, step, rows):
    """The losses of each task's own rows of the samples."""
    x, targets = samples(step)
    outputs = model(x)
    return {t: (outputs[t][part] - targets[t][part]).square().mean() for t, part in rows.items()}


@check()
def inputs_keep_each_ranks_own_gradients(rank, size, checkpoints):
    """Collocation points, of which each rank has a number of its own: the gradients of one process's points."""
    everything, _ = samples(0)
    bounds = [0, 3, 16] if size == 2 else [0, 3, 5, 10, 16]  # ranks differ in how many they have
    own = slice(bounds[rank], bounds[rank + 1])

    def losses_at(model, x):
        outputs = model(x)
        return {task: (outputs[task] + x[:, 0]).square().mean() for task in TASKS}

    def compared(model, backward, twin, backward_alone, kind):
        for micro in (1, 2):
            x, every = everything[own].clone().requires_grad_(), everything.clone().requires_grad_()
            counts = dict.fromkeys(TASKS, len(x))
            for index in range(micro):
                further = {} if micro == 1 else {"accumulate": index == 0}
                backward(losses_at(model, x), counts=counts, **further)
                backward_alone(losses_at(twin, every), counts=dict.fromkeys(TASKS, len(every)), **further)
            assert difference([x.grad], [every.grad[own]]) < BOUND, (kind, micro)

    for kind in ("plain", "ddp", "fsdp"):
        for name in WAYS if kind == "plain" else ("uw", "pcgrad", "mao"):
            model, method, twin, one = pair(name, kind)
            compared(model, method.backward, twin, one.backward, (name, kind))
            method.step()
            one.step()
            assert difference(whole(model), whole(twin)) < BOUND, (name, kind)
        model, twin = wrapped(network(), kind), network()
        inner = model.module if kind == "ddp" else model
        balancer = eq.Balancer(TASKS, None, eq.MGDA(), probe=inner.trunk[2], model=model)
        one = eq.Balancer(TASKS, None, eq.MGDA(), probe=twin.trunk[2], process_group=alone())
        compared(model, balancer.backward, twin, one.backward, ("probe", kind))
        assert difference(gradients(model), gradients(twin)) < BOUND


@check()
def inputs_that_differ_need_no_model(rank, size, checkpoints):
    """Without a model, too: an input is no parameter that ranks have to name to each other."""
    for aggregator in (None, eq.CAGrad):
        model = network()
        balancer = eq.Balancer(TASKS, None, aggregator and aggregator())
        x = samples(0)[0][: 2 + rank].clone().requires_grad_()
        z = model.trunk(x)
        losses = {"a": z.square().mean(), "b": (z * x.sum()).mean() if rank else z.exp().mean(), "c": z.sum()}
        balancer.backward(losses)
        assert x.grad.abs().sum() > 0
        assert alike_on_all_ranks(gradients(model))


@check()
def tasks_in_different_micro_batches(rank, size, checkpoints):
    """Shared is what tasks reach in the whole step, on any rank and in any micro-batch."""
    every, own = slice(0, scenarios.SAMPLES), mine(rank, size)
    first = slice(0, scenarios.SAMPLES // size)
    for kind in ("plain", "ddp"):
        for name in WAYS if kind == "plain" else ("uw", "pcgrad"):
            for counted in (False, True) if size == 2 else (True,):
                model, method, twin, one = pair(name, kind)
                for held, alike in (
                    (({"a": own}, {"b": own, "c": own}), ({"a": every}, {"b": every, "c": every})),
                    (  # the first rank alone has a, and alone does not have c
                        ({"a": first} if rank == 0 else {}, {"b": own} if rank == 0 else {"b": own, "c": own}),
                        ({"a": first}, {"b": every, "c": slice(first.stop, scenarios.SAMPLES)}),
                    ),
                ):
                    method.zero_grad()
                    one.zero_grad()
                    for index in range(2):
                        for m, model_, parts in ((method, model, held[index]), (one, twin, alike[index])):
                            counts = {t: part.stop - part.start for t, part in parts.items()} if counted else None
                            m.backward(losses_by(model_, 0, parts), accumulate=index == 0, counts=counts)
                    method.step()
                    one.step()
                    assert difference(whole(model), whole(twin)) < BOUND, (name, kind, counted)


@check(2)
def gradients_cleared_between_micro_batches(rank, size, checkpoints):
    """On all ranks: the step starts anew. On one only: an error on all, that says so."""
    for kind in ("plain", "fsdp"):
        for name in WAYS if kind == "plain" else ("uw", "pcgrad"):
            model, method, twin, one = pair(name, kind)
            own = mine(rank, size)
            missing = kind == "plain"
            for step, clear in enumerate((method.optimizer.zero_grad, model.zero_grad)):
                held = {} if missing and rank == 0 else dict.fromkeys(TASKS, own)
                x = samples(step)[0].clone().requires_grad_()  # is cleared by nobody
                losses = losses_by(model, step, held)
                method.backward({t: loss + 0 * x.sum() for t, loss in losses.items()}, accumulate=True)
                clear()
                method.backward(losses_by(model, step + 5, dict.fromkeys(TASKS, own)))
                one.backward(losses_of(twin, step + 5))
                method.step()
                one.step()
                method.zero_grad()
                one.zero_grad()
            assert difference(whole(model), whole(twin)) < BOUND, (name, kind)
            before = [p.clone() for p in whole(model)]
            method.backward(losses_by(model, 0, dict.fromkeys(TASKS, own)), accumulate=True)
            if rank == size - 1:
                model.zero_grad()
            with pytest.raises(ValueError, match=r"called differently: .*when gradients are cleared"):
                method.backward(losses_by(model, 1, dict.fromkeys(TASKS, own)))
            method.zero_grad()
            assert not gradients(model)
            assert all(map(torch.equal, whole(model), before))


@check()
def losses_that_a_method_cannot_use_are_left_out_by_their_mean(rank, size, checkpoints):
    """What counts is the mean over the ranks: it can be positive where a rank's own loss is not, and the other way."""
    makes = (
        lambda: (eq.GeometricMean(eq.Equal()), None),
        lambda: (eq.REMA(), None),
        lambda: (None, eq.GradNorm()),
        lambda: (eq.GeometricMean(eq.Equal()), eq.PCGrad(seed=3)),
    )
    for kind in ("plain", "fsdp"):
        for make in makes:
            model, twin = wrapped(network(), kind), network()
            balancer = eq.Balancer(TASKS, *make(), model=model)
            one = eq.Balancer(TASKS, *make(), model=twin, process_group=alone())
            for step in range(2):
                below = -2.0 if step else 0.0
                shift = {"a": 9.0 * size if rank == 0 else -8.0, "b": below}  # a: a mean above 0, from below 0
                alike = {"a": (9.0 * size - 8.0 * (size - 1)) / size, "b": below}
                losses, same = losses_of(model, step, mine(rank, size)), losses_of(twin, step)
                losses = {t: loss * 0.01 + shift.get(t, 0.0) for t, loss in losses.items()}
                same = {t: loss * 0.01 + alike.get(t, 0.0) for t, loss in same.items()}
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    weights = balancer.backward(losses)
                    expected = one.backward(same)
                assert list(weights) == list(expected) == (["a", "c"] if step else [*TASKS])
                assert sum("task 'b' is 0 or below" in str(w.message) for w in caught) == (2 if step else 0)
                assert difference([*weights.values()], [*expected.values()]) < BOUND
            assert difference(gradients(model), gradients(twin)) < BOUND
            assert alike_on_all_ranks(list(balancer.buffers()))


@check(2)
def an_infinite_loss_on_one_rank_is_an_overflow_on_all(rank, size, checkpoints):
    """With a scaler, be its gradient finite or not, and be it of a task that other ranks have or not."""
    for name in ("ema", "uw", "pcgrad", "mao", "famo"):
        model, method, *_ = pair(name)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for step, (infinite, partly) in enumerate([(False, False), (True, False), (True, True), (False, True)]):
            method.zero_grad()
            before = [[p.clone() for p in whole(model)], str(method.state_dict()), scaler.get_scale()]
            held = dict.fromkeys(TASKS, mine(rank, size))
            if partly and rank:
                del held["b"]
            losses = losses_by(model, step, held)
            if infinite and rank == 0:
                losses["b"] = losses["b"] + torch.inf
            method.backward(losses, scaler=scaler)
            scaler.step(method.optimizer)
            scaler.update()
            stays = all(map(torch.equal, whole(model), before[0]))
            assert stays == infinite, (name, step)
            assert scaler.get_scale() == before[2] / (2 if infinite else 1)
            if infinite and method.balancer is not None:
                assert str(method.state_dict()) == before[1], (name, step)
            assert alike_on_all_ranks(whole(model))


class Table(nn.Module):
    """Each task reads its own rows of a table, by way of a linear layer."""

    def __init__(self, sparse):
        super().__init__()
        self.table = nn.Embedding(9, 4, sparse=sparse)
        self.linear = nn.Linear(4, 1)

    def losses(self, rows):
        return {t: (self.linear(self.table(part)).squeeze(1) - part).square().mean() for t, part in rows.items()}


@check(2)
def tables_with_sparse_gradients(rank, size, checkpoints):
    """They become dense, with the same numbers, also where a rank has no sparse gradient to give."""
    looked_up = [[0, 1, 1, 2], [3, 3, 3, 0], [1, 0, 5, 5], [2, 7, 7, 7]]
    for name in WAYS:
        for micro in (1, 2):
            models = []
            for group in (None, alone()):
                torch.manual_seed(5)
                model = Table(sparse=group is None).double()
                method = eq.make_method(name, model, TASKS, lr=0.1, process_group=group)
                method.optimizer = method.optimizer if name == "mao" else torch.optim.SGD(model.parameters(), 0.1)
                models.append((model, method))
            for step in range(2):
                for (model, method), parts in zip(models, ([rank], range(size)), strict=True):
                    method.zero_grad()
                    for index in range(micro):
                        entries = torch.tensor([(i + index) % 9 for part in parts for i in looked_up[part]])
                        rows = {"a": entries, "b": (entries + 1) % 9, "c": (entries * 2) % 9}
                        if step:  # the first rank has no label of b, and, in the last micro-batch, none at all
                            without = torch.tensor([i for part in parts if part for i in looked_up[part]])
                            rows["b"] = without + 1
                            rows = {t: part for t, part in rows.items() if len(part)}
                        if step and index:
                            rows = dict.fromkeys(TASKS, without) if len(without) else {}
                        counts = {t: len(part) for t, part in rows.items()}
                        method.backward(model.losses(rows), accumulate=index < micro - 1, counts=counts)
                    method.step()
            (model, _), (twin, _) = models
            assert difference(whole(model), whole(twin)) < BOUND, (name, micro)
            assert alike_on_all_ranks(whole(model))


@check(2)
def a_penalty_beside_the_tasks_of_mao(rank, size, checkpoints):
    """What other code puts into `.grad` is each rank's own: alike where it is, and averaged where that code does it."""
    for kind, from_samples in (("plain", False), ("ddp", False), ("ddp", True)):
        model, method, twin, one = pair("mao", kind)
        for step in range(3):
            for m, model_, rows in ((method, model, mine(rank, size)), (one, twin, slice(None))):
                m.zero_grad()
                m.backward(losses_of(model_, step, rows))
                x = samples(step)[0][rows]
                if from_samples:
                    penalty = torch.stack(list(model_(x).values())).square().mean()
                else:
                    penalty = torch.stack([p.square().sum() for p in model_.parameters() if p.requires_grad]).sum()
                penalty.backward()
                m.step()
        assert difference(whole(model), whole(twin)) < BOUND, (kind, from_samples)
        assert alike_on_all_ranks(whole(model))


@check()
def state_that_is_undecided_is_settled_before_it_is_shared(rank, size, checkpoints):
    """State on the CPU beside losses on an accelerator: whether a step counts is known later."""
    weighting = eq.EMA()
    weighting.bind(TASKS)
    part = next(part for part in weighting.task_modules() if part._states)
    name = next(iter(part._states))
    good = part.get_buffer(name).clone()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("equipoise._state._is_elsewhere", lambda flag, state: True)
        part.revert({name: good}, unless=torch.tensor(False))
    part._buffers[name].fill_(rank + 7)
    Ranks().share_state(weighting)
    assert torch.equal(part._buffers[name], good)
    assert not part._undecided


@check()
def weights_that_are_kept_follow_a_state_that_is_shared(rank, size, checkpoints):
    weighting = eq.DTP()
    weighting.bind(TASKS)

    def weights():
        with weighting.step():
            return weighting(torch.ones(len(TASKS), dtype=torch.float64))

    with weighting.step() as step:
        weighting.observe(torch.full((len(TASKS),), 0.1 * (rank + 1), dtype=torch.float64))
        step.commit()
    kept = [torch.zeros_like(weights()) for _ in range(size)]
    dist.all_gather(kept, weights())
    assert not torch.equal(kept[0], kept[1])
    Ranks().share_state(weighting)
    assert torch.equal(weights(), kept[0])


@check(2)
def counts_that_only_the_device_knows(rank, size, checkpoints):
    """A count of 0 that the host does not look at, beside a rank without any label."""
    for name in ("ew", "uw", "ema", "famo", "cagrad", "imtl", "mao"):
        model, method, twin, one = pair(name, check_finite=False)
        if name != "mao":  # gradients of zero, as a task's that turns out to have no label, move nothing
            for m, trained in ((method, model), (one, twin)):
                m.optimizer = torch.optim.SGD([*trained.parameters(), *m.balancer.parameters()], 0.1)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(step_module, "host_has", lambda count: not isinstance(count, torch.Tensor))
            for step in range(3):
                method.zero_grad()
                one.zero_grad()
                own = mine(rank, size)
                losses = losses_of(model, step, own)
                counts = {t: torch.tensor(own.stop - own.start) for t in TASKS}
                if step == 1:  # nobody has a label of c, and the last rank has none at all
                    counts["c"] = torch.tensor(0)
                    if rank == size - 1:
                        losses, counts = {}, {}
                elif step == 2:  # the first rank has none of a
                    counts["a"] *= rank > 0
                method.backward(losses, counts=counts)
                width = scenarios.SAMPLES // size
                rows = dict.fromkeys(TASKS, slice(0, scenarios.SAMPLES))
                if step == 1:
                    rows = dict.fromkeys(TASKS[:2], slice(0, scenarios.SAMPLES - width))
                elif step == 2:
                    rows["a"] = slice(width, scenarios.SAMPLES)
                same = {t: part.stop - part.start for t, part in rows.items()}
                one.backward(losses_by(twin, step, rows), counts=same)
                method.step()
                one.step()
        assert difference(whole(model), whole(twin)) < BOUND, name
        if method.balancer is not None:
            found, expected = ([b.double() for b in m.balancer.buffers()] for m in (method, one))
            assert not found or difference(found, expected) < BOUND, name
        assert alike_on_all_ranks(whole(model))


@check(2)
def a_rank_whose_batch_skips_a_layer(rank, size, checkpoints):
    """DistributedDataParallel does not average what a rank has not reached: then all ranks average themselves."""
    for kind in ("plain", "ddp-unused"):
        for aggregator in (None, eq.CAGrad()):
            model = wrapped(network(), kind)
            balancer = eq.Balancer(TASKS, None, aggregator, model=model)
            for step in range(2):
                x, _ = samples(step)
                outputs = model(x[mine(rank, size)])
                losses = {task: outputs[task].square().mean() for task in TASKS}
                if rank == 0:
                    losses["c"] = outputs["a"].square().mean()  # the head of c has no part in it
                balancer.backward(losses)
            assert alike_on_all_ranks(gradients(model))


@check(2)
def one_rank_decides_how_many_tasks_go_at_once(rank, size, checkpoints):
    """Ranks without two tasks in a step have timed nothing yet, and need not."""
    for kind in ("plain", "fsdp"):
        for name in ("cagrad", "ew"):
            model, method, *_ = pair(name, kind)
            with pytest.MonkeyPatch.context() as monkeypatch:
                monkeypatch.setattr(Batching, "vote", property(lambda batching: 2 if rank else 0))
                losses = losses_of(model, 0, mine(rank, size))
                method.backward({t: losses[t] for t in losses if kind == "fsdp" or t == "c" or rank})
                assert method.balancer._balancing.batching.chosen == 2
                method.backward(losses_of(model, 1, mine(rank, size)))
            assert alike_on_all_ranks(whole(model))


@check(2)
def scalers_have_to_be_given_on_all_ranks(rank, size, checkpoints):
    for name in ("ew", "mao"):
        model, method, *_ = pair(name)
        scaler = torch.amp.GradScaler("cpu") if rank == 0 else None
        with pytest.raises(ValueError, match=r"called differently: .*scaler"):
            method.backward(losses_of(model, 0, mine(rank, size)), scaler=scaler)


@check(2)
def another_default_device_is_nothing_to_the_ranks(rank, size, checkpoints):
    """Anything made without a device would lie on the meta device, and hold no numbers."""
    for name in ("ema", "pcgrad", "mao", "dtp"):
        for micro in (1, 2):
            model, method, twin, one = pair(name)
            held = dict.fromkeys(TASKS if rank else TASKS[1:], mine(rank, size))
            alike = dict.fromkeys(TASKS, slice(0, scenarios.SAMPLES)) | {
                "a": slice(scenarios.SAMPLES // size, scenarios.SAMPLES)
            }
            for index in range(micro):
                losses, counts = losses_by(model, index, held), {t: part.stop - part.start for t, part in held.items()}
                with torch.device("meta"):
                    method.backward(losses, counts=counts, accumulate=index < micro - 1)
                same = {t: part.stop - part.start for t, part in alike.items()}
                one.backward(losses_by(twin, index, alike), counts=same, accumulate=index < micro - 1)
            with torch.device("meta"):
                method.end_epoch({"a": 0.5})
            one.end_epoch({"a": 0.5})
            if method.balancer is not None:
                assert difference(gradients(model), gradients(twin)) < BOUND, (name, micro)
            method.step()
            one.step()
            assert difference(whole(model), whole(twin)) < BOUND, (name, micro)
