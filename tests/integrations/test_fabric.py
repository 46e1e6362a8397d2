from __future__ import annotations

from pathlib import Path

import pytest
import torch
from integrations.loops import EPOCHS, METHODS, Model, assert_close, loader, losses_of, parts, plain

import equipoise as eq
from equipoise.integrations.fabric import backward

pytest.importorskip("lightning")
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision


def trained(name: str, fabric: Fabric, clip: float | None = None) -> tuple[Model, torch.optim.Optimizer]:
    inner = Model()
    balancer, optimizer = parts(name, inner)
    model, optimizer = fabric.setup(inner, optimizer)
    for _ in range(EPOCHS):
        for (x,) in fabric.setup_dataloaders(loader()):
            backward(fabric, balancer or optimizer, losses_of(model(x), x))
            if clip is not None:
                fabric.clip_gradients(model, optimizer, max_norm=clip)
            optimizer.step()
            optimizer.zero_grad()
    return inner, optimizer


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("precision", "dtype"), [("32-true", None), ("bf16-mixed", torch.bfloat16)])
def test_numbers_of_a_plain_loop(name: str, precision: str, dtype: torch.dtype | None) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    assert_close(trained(name, fabric)[0].state_dict(), plain(name, dtype))


@pytest.mark.parametrize("name", METHODS)
def test_float16_with_their_scaler(name: str) -> None:
    """It starts so high that the first steps overflow and are left out."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-34)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    model, optimizer = trained(name, fabric)
    assert scaler.get_scale() == 2.0**6
    start = Model().state_dict()
    assert all(
        value.isfinite().all() and not torch.equal(value, start[key]) for key, value in model.state_dict().items()
    )
    steps = {float(state["step"].max()) for state in optimizer.state.values()}
    assert steps == {EPOCHS * len(loader()) - 1.0}


def test_clipping() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    found = trained("ema", fabric, clip=1e-2)[0].state_dict()
    assert not torch.allclose(found["trunk.weight"], plain("ema")["trunk.weight"])


def test_state_in_their_checkpoints(tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    (x,) = next(iter(loader()))
    balancer, other = (eq.Balancer(["low", "high"], eq.EMA()) for _ in range(2))
    backward(fabric, balancer, losses_of(Model()(x), x))
    fabric.save(tmp_path / "checkpoint", {"balancer": balancer})
    fabric.load(tmp_path / "checkpoint", {"balancer": other}, weights_only=True)
    for one, two in zip(balancer.buffers(), other.buffers(), strict=True):
        assert torch.equal(one, two)
    assert any(buffer.any() for buffer in other.buffers())
