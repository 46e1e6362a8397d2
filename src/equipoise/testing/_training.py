"""Checks of what a step does: it trains, is finite, takes what loops give it, and depends on nothing else."""

from __future__ import annotations

import copy

import torch
from torch import nn

from equipoise.testing._subject import (
    METRICS,
    PRESENT,
    TASKS,
    Subject,
    assert_same,
    batch,
    is_finite,
    snapshot,
    step,
    train,
)


def check_trains_and_stays_finite(subject: Subject) -> None:
    """Steps with tasks missing give a finite weight a task present, and change what has a gradient, and only that."""
    model, method = subject.make()
    assert method.tasks == TASKS
    first = copy.deepcopy(model.state_dict())
    for index, tasks in enumerate(PRESENT):
        weights = step(model, method, index, tasks)
        expected = [t for t in tasks if subject.single in (None, t)]
        assert list(weights) == expected, f"weights of {list(weights)}, expected of {expected}"
        for task, weight in weights.items():
            assert weight.dim() == 0, f"the weight of {task!r} has shape {tuple(weight.shape)}"
            assert not weight.requires_grad, f"the weight of {task!r} requires a gradient"
            assert weight.isfinite(), f"the weight of {task!r} is {weight}"
        assert is_finite(model.state_dict()), f"a parameter is not finite after step {index}"
        assert is_finite(method.state_dict()), f"a state is not finite after step {index}"
        if index % 4 == 3:
            method.end_epoch(METRICS[index // 4])
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, first[key])}
    untrained: tuple[str, ...] = ("frozen", "unused")
    if subject.single is not None:
        others = tuple(f"heads.{task}" for task in TASKS if task != subject.single)
        untrained = (*untrained, *others, "branch" if subject.single == "c" else "own")
    assert changed == {key for key in first if not key.startswith(untrained)}


def check_loss_falls_on_one_batch(subject: Subject) -> None:
    """Forty steps on one batch lower the sum of the losses' logarithms."""
    model, method = subject.make(lr=0.01, weight_decay=0.0)
    tasks = TASKS if subject.single is None else [subject.single]
    with torch.no_grad():
        before = model.losses(batch(0))
    for _ in range(40):
        method.zero_grad()
        method.backward(model.losses(batch(0)))
        method.step()
        if method.needs_after_step:
            method.after_step(model.losses(batch(0)))
    with torch.no_grad():
        after = model.losses(batch(0))
    assert sum(float(after[t].log()) for t in tasks) < sum(float(before[t].log()) for t in tasks)


def check_is_determined_by_the_seed(subject: Subject) -> None:
    """The same seed gives the same bits; another one gives others exactly where the method draws random numbers."""
    results = []
    for seed in (0, 0, 1):
        model, method = subject.make(seed=seed)
        train(model, method, 0, 4)
        results.append(model.state_dict())
    assert_same(results[0], results[1])
    same = all(torch.equal(results[0][k], results[2][k]) for k in results[0])
    assert subject.is_instance or same != subject.draws, (
        "another seed must matter to a method with a generator, and to no other"
    )


def check_does_not_disturb_the_default_generator(subject: Subject) -> None:
    """Random numbers come from the method's own generator (`add_generator`)."""
    model, method = subject.make()
    before = torch.get_rng_state()
    train(model, method, 0, 4)
    assert torch.equal(torch.get_rng_state(), before)


def check_order_of_the_mapping_does_not_matter(subject: Subject) -> None:
    """Losses in another order give the same bits."""
    results = []
    for reverse in (False, True):
        model, method = subject.make()
        for index in range(4):
            method.zero_grad()
            losses = model.losses(batch(index))
            method.backward(dict(reversed(losses.items())) if reverse else losses)
            method.step()
        results.append(snapshot(model, method))
    assert_same(results[0], results[1])


def check_a_task_that_is_never_there_might_as_well_not_exist(subject: Subject) -> None:
    """With two of three tasks in every step a method for three does what a method for two does."""
    for pair in ("ab", "ac", "bc"):
        if subject.single is not None and subject.single not in pair:
            model, method = subject.make()
            before = snapshot(model, method)
            train(model, method, 0, 4, present=[pair] * 4)
            assert_same(snapshot(model), before[:2])
            continue
        if subject.always is not None and subject.always not in pair:
            continue
        model, method = subject.make(dtype=torch.float64)
        twin, smaller = subject.make(tasks=tuple(pair), dtype=torch.float64)
        train(model, method, 0, 7, present=[pair] * 7)
        train(twin, smaller, 0, 7, present=[pair] * 7)
        # AdamW's arithmetic on a vector of three learned weights rounds differently from one of two.
        rtol, atol = (1e-5, 1e-6) if subject.learns else (1e-9, 1e-12)
        for (key, found), expected in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
            torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, msg=f"{pair}: {key}")


def check_double(subject: Subject) -> None:
    """A model that becomes float64 gets float64 gradients."""
    if subject.is_optimizer:  # whose state is of the parameters' kind when it is made
        return
    model, method = subject.make()
    assert method.balancer is not None
    train(model, method, 0, 4)
    model.double()
    method.balancer.double()
    for index in range(4, 8):
        method.zero_grad()
        method.backward(model.losses(batch(index), PRESENT[index]))
        parameters: list[nn.Parameter] = [*model.parameters(), *method.balancer.parameters()]
        for parameter in parameters:
            assert parameter.dtype == torch.float64
            assert parameter.grad is None or (parameter.grad.dtype == torch.float64 and is_finite(parameter.grad))


def check_bfloat16_model(subject: Subject) -> None:
    """A model in bfloat16 trains and stays finite."""
    model, method = subject.make(dtype=torch.bfloat16, lr=1e-3)
    train(model, method, 0, 6)
    assert is_finite(model.state_dict())
    assert is_finite(method.state_dict())


def check_micro_batches_and_counts(subject: Subject) -> None:
    """Every keyword is taken; one micro-batch with counts does what it does without."""
    results = []
    for counts in (None, dict.fromkeys(TASKS, 4)):
        model, method = subject.make(dtype=torch.float64)
        for index in range(3):
            method.zero_grad()
            method.backward(model.losses(batch(index)), counts=counts)
            method.step()
        results.append(model.state_dict())
    for key, found in results[0].items():
        torch.testing.assert_close(found, results[1][key], rtol=1e-6, atol=1e-9, msg=key)
    model, method = subject.make()
    method.backward(model.losses(batch(0)), accumulate=True)
    method.backward(model.losses(batch(1)), accumulate=True, retain_graph=True)
    method.backward(model.losses(batch(2)))
    method.step()
    assert is_finite(model.state_dict())
    if not subject.adds_up:
        return
    results = []
    for halves in (False, True):
        model, method = subject.make(dtype=torch.float64)
        for index in range(3):
            method.zero_grad()
            x = batch(index)
            if halves:
                method.backward({task: loss / 2 for task, loss in model.losses(x[:3]).items()}, accumulate=True)
                method.backward({task: loss / 2 for task, loss in model.losses(x[3:]).items()})
            else:
                method.backward(model.losses(x))
            method.step()
        results.append(model.state_dict())
    for key, found in results[0].items():
        torch.testing.assert_close(found, results[1][key], rtol=1e-6, atol=1e-9, msg=f"two halves of a batch: {key}")


def check_grad_scaler(subject: Subject) -> None:
    """What is learned with a scaler is what is learned without, and an overflow leaves everything as it was."""
    results = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**12)):
        model, method = subject.make(dtype=torch.float64)
        for index in range(5):
            method.zero_grad()
            losses = model.losses(batch(index))
            if index == 3:
                if scaler is None:
                    continue
                broken = (model.trunk.weight - model.trunk.weight.detach())[0, 0].sqrt()
                losses = {task: loss + broken for task, loss in losses.items()}
                before = snapshot(model, method)[::2]
            method.backward(losses, scaler=scaler)
            if scaler is None:
                method.step()
            else:
                scaler.step(method.optimizer)
                scaler.update()
            if index == 3:
                assert_same(snapshot(model, method)[::2], before)
        results.append(model.state_dict())
    for key, found in results[0].items():
        torch.testing.assert_close(found, results[1][key], rtol=1e-6, atol=1e-9, msg=key)
