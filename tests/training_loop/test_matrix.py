"""Every method of the registry, crossed with what a training loop may do around it."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import TASKS, assert_same
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from training_loop.loops import Model, distance, inputs, losses_of, make, train

import equipoise as eq
from equipoise.registry.optimizers import OPTIMIZERS

METHODS = [*eq.list_methods(), "single:b"]
BACKEND = "inductor" if shutil.which("g++") else "aot_eager"

every_method = pytest.mark.parametrize("name", METHODS)


def trained(name: str, wrap: Callable[[Model], Any] | None = None, **ways: Any) -> Model:
    model = Model().double()
    method = make(name, model)
    train(method, model, None if wrap is None else wrap(model), **ways)
    return model


@every_method
def test_compiled_with_default_settings(name: str) -> None:
    """With a task missing in some steps and batches of changing size, so that graphs are made anew."""
    compiled = trained(name, lambda model: torch.compile(model, backend=BACKEND))
    assert distance(trained(name), compiled) < 1e-9


@every_method
def test_activation_checkpointing(name: str) -> None:
    def wrap(model: Model) -> Callable[[Tensor], dict[str, Tensor]]:
        return lambda x: checkpoint(model, x, use_reentrant=False)

    assert distance(trained(name), trained(name, wrap)) < 1e-12


@every_method
def test_functional_call(name: str) -> None:
    def wrap(model: Model) -> Callable[[Tensor], dict[str, Tensor]]:
        return lambda x: torch.func.functional_call(model, dict(model.named_parameters()), (x,))

    assert distance(trained(name), trained(name, wrap)) < 1e-12


@every_method
def test_a_scaler_changes_nothing(name: str) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)

    def backward(method: Any, losses: dict[str, Tensor], x: Tensor) -> None:
        method.backward(losses, scaler=scaler)

    def step(method: Any) -> None:
        if not (name == "single:b" and method.optimizer.param_groups[0]["params"][0].grad is None):  # b is missing
            scaler.step(method.optimizer)
            scaler.update()

    plain, scaled = Model(), Model()
    train(make(name, plain), plain)
    train(make(name, scaled), scaled, backward=backward, step=step)
    assert scaler.get_scale() > 2.0**12, "it has grown: every step was taken"
    assert distance(plain, scaled) < 1e-5


@every_method
def test_overflow_in_float16_changes_nothing_and_training_goes_on(name: str) -> None:
    model = Model()
    method = make(name, model)
    train(method, model, steps=range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-36)
    states = [copy.deepcopy(part.state_dict()) for part in (model, method)]
    for taken in (False, True):
        x = inputs(2, model)
        with torch.autocast("cpu", torch.float16):
            outputs = model(x)
        method.backward(losses_of({task: y.float() for task, y in outputs.items()}, x), scaler=scaler)
        scaler.step(method.optimizer)
        scaler.update()
        method.zero_grad()
        if not taken:
            assert scaler.get_scale() == 2.0**4
            for part, state in zip((model, method), states, strict=True):
                assert_same(dict(part.state_dict()), dict(state))
    before = states[0]
    assert any(not torch.equal(p, before[key]) for key, p in model.state_dict().items())
    assert all(p.isfinite().all() for p in model.parameters())


@every_method
def test_bfloat16_autocast(name: str) -> None:
    """The weights are those of the losses and gradients that bfloat16 gives, computed in float32 or better."""
    model, other = Model(), Model()
    method, reference = make(name, model), make(name, other)
    for _ in range(2):
        x = inputs(0, model)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(x)
        assert outputs["a"].dtype == torch.bfloat16
        found = method.backward(losses_of({task: y.float() for task, y in outputs.items()}, x))
        expected = reference.backward(losses_of(other(x), x))
        for task in expected:
            torch.testing.assert_close(found[task], expected[task], rtol=0.1, atol=0.02)
        assert all(
            p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all()) for p in model.parameters()
        )
        for each in (method, reference):
            each.step()
            each.zero_grad()


FROM_EACH_MICRO_BATCH = {
    *("rlw", "ema", "rema", "dwema", "gls", "dwa-g", "rlw-g", "dtp-g", "amtl", "famo"),
    *("stch", "uw-so", "go4align", "ldc-mtl", "cov", "softadapt", "relobralo", "pbi", "cosmos"),
}
"""Weights that each micro-batch's losses (or draws) decide: two micro-batches are not one batch, by definition."""


@pytest.mark.parametrize(
    ("name", "counted"),
    [
        (name, counted)
        for name in METHODS
        for counted in (False, True)
        if name not in FROM_EACH_MICRO_BATCH and not (name == "dwa" and counted)  # its history has each micro-batch
    ],
)
def test_micro_batches_add_up_to_one_step(name: str, counted: bool) -> None:
    model = Model().double()
    method = make(name, model)

    def backward(method: Any, losses: dict[str, Tensor], x: Tensor) -> None:
        cut = 1 if counted else len(x) // 2
        for last, part in enumerate((x[:cut], x[cut:])):
            parts = {task: loss for task, loss in losses_of(model(part), part).items() if task in losses}
            if counted:
                method.backward(parts, accumulate=not last, counts=dict.fromkeys(parts, len(part)))
            else:
                method.backward({task: loss / 2 for task, loss in parts.items()}, accumulate=not last)

    train(method, model, backward=backward)
    assert distance(trained(name), model) < 1e-6


@every_method
def test_clipping(name: str) -> None:
    """Of `.grad`, after `backward`; MAO and its kin work with task gradients, and clip each of those by itself."""
    model = Model()
    by_task = name in OPTIMIZERS
    method = make(name, model, **({"max_norm": 1e-3} if by_task else {}))
    x = inputs(0, model)
    method.backward(losses_of(model(x), x))
    if not by_task:
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        assert norm > 1e-3
        torch.testing.assert_close(
            torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]),
            torch.tensor(1e-3),
        )
    method.step()
    if by_task:
        for task in TASKS[:1] if name == "mtadam" else TASKS:  # MTAdam scales the others' to the first one's
            firsts = [s[f"exp_avg.{task}"] for s in method.optimizer.state.values() if f"exp_avg.{task}" in s]
            torch.testing.assert_close(
                torch.nn.utils.get_total_norm(firsts), torch.tensor(0.1 * 1e-3), rtol=1e-3, atol=0
            )


@every_method
def test_layers_unfrozen_in_the_middle(name: str) -> None:
    model = Model().double()
    model.trunk.requires_grad_(False)
    method = make(name, model)
    start = copy.deepcopy(model.trunk.state_dict())
    train(method, model, steps=range(2))
    assert_same(dict(model.trunk.state_dict()), dict(start))
    model.trunk.requires_grad_(True)
    twin = copy.deepcopy(model.state_dict())
    train(method, model, steps=range(2, 4))
    assert all(not torch.equal(p, start[key]) for key, p in model.trunk.state_dict().items())

    if name in ("imtl-g", "cagrad", "mgda", "nash-mtl"):  # no state: the step is that of a new balancer
        other = Model().double()
        other.load_state_dict(twin)
        x = inputs(2, other)
        make(name, other).backward(losses_of(other(x), x))
        expected = [p.grad for p in other.trunk.parameters()]
        method = make(name, model)
        model.load_state_dict(twin)
        model.trunk.requires_grad_(False)
        method.backward(losses_of(model(x), x))
        method.zero_grad()
        model.trunk.requires_grad_(True)
        method.backward(losses_of(model(x), x))
        for p, gradient in zip(model.trunk.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, gradient)


@every_method
def test_groups_with_their_own_learning_rate_and_schedulers(name: str) -> None:
    """The optimizer is an ordinary one: a group's own rate of 0 holds its parameters, a scheduler the others."""
    model = Model().double()
    method = make(name, model)
    group = method.optimizer.param_groups[0]
    own = set(model.trunk.parameters())
    group["params"] = [p for p in group["params"] if p not in own]
    method.optimizer.add_param_group({"params": list(model.trunk.parameters()), "lr": 0.0})
    scheduler = torch.optim.lr_scheduler.ConstantLR(method.optimizer, factor=0.5, total_iters=10)
    assert method.optimizer.param_groups[0]["lr"] == 0.005
    start = copy.deepcopy(model.state_dict())
    train(method, model, step=lambda m: (m.step(), scheduler.step()))
    for key, value in model.state_dict().items():
        still = key.startswith(("trunk", "frozen", "unused")) or (
            name == "single:b" and key.startswith(("own", "heads.a", "heads.c"))
        )
        assert torch.equal(value, start[key]) == still, key
