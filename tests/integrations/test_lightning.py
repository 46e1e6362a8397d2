from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from integrations.loops import (
    EPOCHS,
    METHODS,
    Model,
    assert_close,
    decay,
    loader,
    losses_of,
    parts,
    plain,
    plain_scalars,
)
from networks import assert_same
from torch import Tensor

from equipoise.integrations.lightning import backward

pytest.importorskip("lightning")
import lightning
from lightning.pytorch.plugins import MixedPrecision

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


class Module(lightning.LightningModule):
    """The person's module: manual optimization, with one line of equipoise's."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = Model()
        self.balancer, self.optimizer = parts(name, self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer

    def training_step(self, batch: list[Tensor], index: int) -> None:
        optimizer = self.optimizers()
        losses = losses_of(self.model(batch[0]), batch[0])
        backward(self, self.balancer or optimizer, losses)
        optimizer.step()
        optimizer.zero_grad()


class Automatic(lightning.LightningModule):
    """The person's module in automatic optimization: its training step returns the scalar."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.model = Model()
        self.balancer, self.optimizer = parts(name, self.model)
        self.validated: list[Tensor] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer

    def loss(self, x: Tensor) -> Tensor:
        return (self.balancer or self.optimizer.loss)(losses_of(self.model(x), x))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.loss(batch[0])

    def val_dataloader(self) -> Any:
        return loader()

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.validated.append(self.loss(batch[0]))


class Decaying(Automatic):
    """With a learning rate that falls at every step of the optimizer."""

    def configure_optimizers(self) -> Any:
        return {"optimizer": self.optimizer, "lr_scheduler": {"scheduler": decay(self.optimizer), "interval": "step"}}


def fit(
    module: lightning.LightningModule, path: Path, epochs: int = EPOCHS, resume: Path | None = None, **options: Any
) -> Path:
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": False, **options},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, loader(), ckpt_path=resume)
    trainer.save_checkpoint(path / f"{epochs}.ckpt")
    return path / f"{epochs}.ckpt"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("precision", "dtype"), [("32-true", None), ("bf16-mixed", torch.bfloat16)])
def test_numbers_of_a_plain_loop(name: str, precision: Any, dtype: torch.dtype | None, tmp_path: Path) -> None:
    module = Module(name)
    fit(module, tmp_path, precision=precision)
    assert_close(module.model.state_dict(), plain(name, dtype))


@pytest.mark.parametrize("name", METHODS)
def test_float16_with_their_scaler(name: str, tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-34)
    module = Module(name)
    fit(module, tmp_path, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert scaler.get_scale() == 2.0**6
    start = Model().state_dict()
    for key, value in module.model.state_dict().items():
        assert value.isfinite().all()
        assert not torch.equal(value, start[key])


@pytest.mark.parametrize("name", METHODS)
def test_their_checkpoints_hold_everything(name: str, tmp_path: Path) -> None:
    whole = Module(name)
    fit(whole, tmp_path)
    checkpoint = fit(Module(name), tmp_path, epochs=1)
    resumed = Module(name)
    fit(resumed, tmp_path, resume=checkpoint)
    assert_same(dict(resumed.state_dict()), dict(whole.state_dict()))
    assert_same(resumed.optimizer.state_dict()["state"], whole.optimizer.state_dict()["state"])


@pytest.mark.parametrize(("name", "micro_batches"), [*((name, 2) for name in METHODS), ("uw", 1), ("mao", 1)])
def test_automatic_optimization(name: str, micro_batches: int, tmp_path: Path) -> None:
    """With a validation, that learns nothing, before the training and after each epoch."""
    module = Automatic(name)
    fit(module, tmp_path, accumulate_grad_batches=micro_batches, num_sanity_val_steps=-1)
    assert len(module.validated) == (EPOCHS + 1) * len(loader())
    assert not any(value.requires_grad for value in module.validated)
    assert_close(module.model.state_dict(), plain_scalars(name, micro_batches))


@pytest.mark.parametrize("name", METHODS)
def test_clipping_accumulation_and_schedulers_of_automatic_optimization(name: str, tmp_path: Path) -> None:
    module = Decaying(name)
    clip = None if name == "mao" else 0.5  # MAO does not use `.grad`
    fit(module, tmp_path, accumulate_grad_batches=2, gradient_clip_val=clip)
    steps = EPOCHS * len(loader()) // 2
    assert module.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.7**steps)
    expected = plain_scalars(name, 2, clip or torch.inf, decays=True)
    assert_close(module.model.state_dict(), expected)
    without = [plain_scalars(name, 2, decays=True)] if clip else []
    for other in [*without, plain_scalars(name, 2, clip or torch.inf), plain_scalars(name, 1, clip or torch.inf, True)]:
        with pytest.raises(AssertionError):
            assert_close(other, expected)


@pytest.mark.parametrize("name", ["ema", "imtl", "mao"])
def test_automatic_optimization_in_bfloat16(name: str, tmp_path: Path) -> None:
    module = Automatic(name)
    fit(module, tmp_path, precision="bf16-mixed")
    assert_close(module.model.state_dict(), plain(name, torch.bfloat16))


@pytest.mark.parametrize("name", ["ema", "pcgrad", "mao"])
def test_checkpoints_of_automatic_optimization(name: str, tmp_path: Path) -> None:
    whole, resumed = Automatic(name), Automatic(name)
    fit(whole, tmp_path)
    fit(resumed, tmp_path, resume=fit(Automatic(name), tmp_path, epochs=1))
    assert_same(dict(resumed.state_dict()), dict(whole.state_dict()))
