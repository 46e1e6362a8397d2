"""Checks of what a step does: it trains, is finite, takes what loops give it, and depends on nothing else."""

from __future__ import annotations

import copy

import torch
from torch import nn

from equipoise.testing._comparing import assert_near, assert_same, is_finite, snapshot
from equipoise.testing._subject import METRICS, PRESENT, TASKS, Subject, batch, step, train


def check_trains_and_stays_finite(subject: Subject) -> None:
    """Steps with tasks missing give a finite weight a task present, and change what has a gradient, and only that."""
    model, method = subject.make()
    assert method.tasks == TASKS, f"the method's tasks are {list(method.tasks)}, expected {list(TASKS)}"
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
    trained = {key for key in first if not key.startswith(untrained)}
    assert changed >= trained, f"twelve steps did not change {', '.join(sorted(trained - changed))}"
    assert changed <= trained, f"twelve steps changed {', '.join(sorted(changed - trained))}, which has no gradient"


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
    first, last = (sum(float(losses[task].log()) for task in tasks) for losses in (before, after))
    assert last < first, (
        f"forty steps on one batch took the sum of the losses' logarithms from {first:.2g} to {last:.2g}"
    )


def check_is_determined_by_the_seed(subject: Subject) -> None:
    """The same seed gives the same bits; another one gives others exactly where the method draws random numbers."""
    results = []
    for seed in (0, 0, 1):
        model, method = subject.make(seed=seed)
        train(model, method, 0, 4)
        results.append(model.state_dict())
    assert_same(results[1], results[0], "four steps with the same seed, made twice, differ")
    same = all(torch.equal(results[0][k], results[2][k]) for k in results[0])
    if same and subject.draws and not subject.is_instance:
        raise AssertionError("the method has a generator, and another seed changes nothing in four steps")
    if not same and not subject.draws:
        raise AssertionError("the method has no generator, and another seed changes what four steps do")


def check_does_not_disturb_the_default_generator(subject: Subject) -> None:
    """Random numbers come from the method's own generator (`add_generator`)."""
    assert draws_from_its_own(subject), "four steps moved PyTorch's default generator"


def draws_from_its_own(subject: Subject) -> bool:
    """Whether steps leave PyTorch's default generator as it is."""
    model, method = subject.make()
    before = torch.get_rng_state()
    train(model, method, 0, 4)
    return torch.equal(torch.get_rng_state(), before)


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
    assert_same(results[1], results[0], "with the losses in another order, four steps differ")


def check_a_task_that_is_never_there_might_as_well_not_exist(subject: Subject) -> None:
    """With two of three tasks in every step a method for three does what a method for two does."""
    for pair in ("ab", "ac", "bc"):
        if subject.single is not None and subject.single not in pair:
            model, method = subject.make()
            before = snapshot(model, method)
            train(model, method, 0, 4, present=[pair] * 4)
            assert_same(snapshot(model), before[:2], f"steps without task {subject.single!r} changed the model")
            continue
        if subject.always is not None and subject.always not in pair:
            continue
        model, method = subject.make(dtype=torch.float64)
        twin, smaller = subject.make(tasks=tuple(pair), dtype=torch.float64)
        train(model, method, 0, 7, present=[pair] * 7)
        train(twin, smaller, 0, 7, present=[pair] * 7)
        # AdamW's arithmetic on a vector of three learned weights rounds differently from one of two.
        rtol, atol = (1e-5, 1e-6) if subject.learns else (1e-9, 1e-12)
        what = f"steps with tasks {pair[0]!r} and {pair[1]!r} of three are not those of a method for these two"
        assert_near(model.state_dict(), twin.state_dict(), what, rtol, atol)


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
            gradient = parameter if parameter.grad is None else parameter.grad
            for tensor in (parameter, gradient):
                assert tensor.dtype == torch.float64, f"in a model of float64 a gradient or parameter is {tensor.dtype}"
            assert is_finite(gradient), "in a model that became float64 a gradient is not finite"


def check_bfloat16_model(subject: Subject) -> None:
    """A model in bfloat16 trains and stays finite."""
    model, method = subject.make(dtype=torch.bfloat16, lr=1e-3)
    train(model, method, 0, 6)
    assert is_finite(model.state_dict()), "after six steps of a model in bfloat16 a parameter is not finite"
    assert is_finite(method.state_dict()), "after six steps of a model in bfloat16 a state is not finite"


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
    assert_near(results[1], results[0], "with counts, all the same, three steps differ", rtol=1e-6, atol=1e-9)
    model, method = subject.make()
    method.backward(model.losses(batch(0)), accumulate=True)
    method.backward(model.losses(batch(1)), accumulate=True, retain_graph=True)
    method.backward(model.losses(batch(2)))
    method.step()
    assert is_finite(model.state_dict()), "after a step of three micro-batches a parameter is not finite"
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
    assert_near(results[1], results[0], "two halves of a batch are not what the batch is", rtol=1e-6, atol=1e-9)


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
                assert_same(snapshot(model, method)[::2], before, "a step that overflowed changed something")
        results.append(model.state_dict())
    what = "with a GradScaler, one of whose steps overflows, training differs from that without scaler and step"
    assert_near(results[1], results[0], what, rtol=1e-6, atol=1e-9)
