from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from integrations.loops import EPOCHS, METHODS, Model, assert_close, loader, losses_of, parts, plain, plain_scalars
from networks import assert_same

from equipoise.integrations.accelerate import backward

pytest.importorskip("accelerate")
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

AVERAGE = "objective.weighting.average.value"


@pytest.fixture(autouse=True)
def fresh() -> None:
    """The library keeps one state for the process."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def trained(name: str, accelerator: Accelerator) -> dict[str, torch.Tensor]:
    inner = Model()
    balancer, optimizer = parts(name, inner)
    model, optimizer, data = accelerator.prepare(inner, optimizer, loader())
    for _ in range(EPOCHS):
        for (x,) in data:
            with accelerator.accumulate(model):
                backward(accelerator, balancer or optimizer, losses_of(model(x), x))
                optimizer.step()
                optimizer.zero_grad()
    return accelerator.unwrap_model(model).state_dict()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("precision", "dtype"), [("no", None), ("bf16", torch.bfloat16)])
def test_numbers_of_a_plain_loop(name: str, precision: str, dtype: torch.dtype | None) -> None:
    assert_close(trained(name, Accelerator(cpu=True, mixed_precision=precision)), plain(name, dtype))


@pytest.mark.parametrize("name", METHODS)
def test_their_gradient_accumulation(name: str) -> None:
    assert_close(trained(name, Accelerator(cpu=True, gradient_accumulation_steps=2)), plain(name, micro_batches=2))


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_by_a_scalar(name: str, precision: str) -> None:
    """`accelerator.backward(loss)`, which divides by the number of micro-batches."""
    micro_batches, dtype = (2, None) if precision == "no" else (1, torch.bfloat16)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=micro_batches, mixed_precision=precision)
    inner = Model()
    balancer, mao = parts(name, inner)
    model, optimizer, data = accelerator.prepare(inner, mao, loader())
    for _ in range(EPOCHS):
        for (x,) in data:
            with accelerator.accumulate(model):
                accelerator.backward((balancer or mao.loss)(losses_of(model(x), x)))
                optimizer.step()
                optimizer.zero_grad()
    assert_close(inner.state_dict(), plain(name, dtype) if dtype else plain_scalars(name, micro_batches))


@pytest.mark.parametrize("inside", [False, True])
def test_state_in_their_checkpoints(tmp_path: Path, inside: bool) -> None:
    """Beside the model, registered, or as a part of it."""
    accelerator = Accelerator(cpu=True)
    model = Model()
    balancer, optimizer = parts("ema", model)
    if inside:
        model.balancer = balancer
    model, optimizer = accelerator.prepare(model, optimizer)
    if not inside:
        accelerator.register_for_checkpointing(balancer)
    (x,) = next(iter(loader()))
    backward(accelerator, balancer, losses_of(model(x), x))
    optimizer.step()
    expected = copy.deepcopy(balancer.state_dict())
    accelerator.save_state(str(tmp_path))
    accelerator.backward(balancer(losses_of(model(x), x)))
    assert not torch.equal(balancer.state_dict()[AVERAGE], expected[AVERAGE])
    accelerator.load_state(str(tmp_path))
    assert_same(balancer.state_dict(), expected)
