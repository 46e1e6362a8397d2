from __future__ import annotations

from pathlib import Path

import pytest
import torch
from integrations.loops import EPOCHS, METHODS, Model, assert_close, loader, losses_of, parts, plain
from networks import assert_same

from equipoise.integrations.accelerate import backward

pytest.importorskip("accelerate")
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState


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


def test_state_in_their_checkpoints(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    model = Model()
    balancer, optimizer = parts("ema", model)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(balancer)
    (x,) = next(iter(loader()))
    backward(accelerator, balancer, losses_of(model(x), x))
    optimizer.step()
    expected = {key: value.clone() for key, value in balancer.state_dict().items() if torch.is_tensor(value)}
    accelerator.save_state(str(tmp_path))
    backward(accelerator, balancer, losses_of(model(x), x))
    accelerator.load_state(str(tmp_path))
    assert_same({key: value for key, value in balancer.state_dict().items() if torch.is_tensor(value)}, expected)
