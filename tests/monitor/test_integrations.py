"""Under what PyTorch Lightning, Fabric and Accelerate wrap around an optimizer."""

import warnings

import pytest
import torch
from integrations.loops import TASKS, Model, loader, losses_of, parts

import equipoise as eq
from equipoise.integrations.lightning import backward

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
METHODS = ["ema", "imtl", "mao"]


def plain(name):
    """The samples of a plain loop of one epoch, and the trained weights."""
    model = Model()
    balancer, optimizer = parts(name, model)
    monitor = attach(balancer, optimizer, model)
    for (x,) in loader():
        (balancer or optimizer).backward(losses_of(model(x), x))
        optimizer.step()
        optimizer.zero_grad()
    assert len(monitor.records) == 3
    return monitor.records, model.state_dict()


def attach(balancer, optimizer, model):
    if balancer is None:
        return eq.BalanceMonitor(optimizer, model, every=2)
    return eq.BalanceMonitor(balancer, model, every=2, optimizer=optimizer)


def check(name, monitor, model):
    records, state = plain(name)
    assert monitor.records == records
    for key, value in state.items():
        assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize("name", METHODS)
def test_lightning(name, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.model = Model()
            self.balancer, self.optimizer = parts(name, self.model)

        def configure_optimizers(self):
            return self.optimizer

        def on_train_start(self):
            self.monitor = attach(self.balancer, self.optimizers(), self.model)

        def training_step(self, batch, index):
            optimizer = self.optimizers()
            backward(self, self.balancer or optimizer, losses_of(self.model(batch[0]), batch[0]))
            optimizer.step()
            optimizer.zero_grad()

    module = Module()
    shown = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    quiet = dict.fromkeys(shown, False)
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, **quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, loader())
    check(name, module.monitor, module.model)


@pytest.mark.parametrize("name", METHODS)
def test_fabric(name):
    fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", devices=1)
    model = Model()
    balancer, optimizer = parts(name, model)
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    monitor = attach(balancer, wrapped_optimizer, model)
    for (x,) in loader():
        (balancer or optimizer).backward(losses_of(wrapped(x), x))
        wrapped_optimizer.step()
        wrapped_optimizer.zero_grad()
    check(name, monitor, model)


@pytest.mark.parametrize("name", METHODS)
def test_accelerate(name):
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True)
    model = Model()
    balancer, optimizer = parts(name, model)
    wrapped, wrapped_optimizer = accelerator.prepare(model, optimizer)
    monitor = attach(balancer, wrapped_optimizer, wrapped)
    for (x,) in loader():
        (balancer or optimizer).backward(losses_of(wrapped(x), x))
        wrapped_optimizer.step()
        wrapped_optimizer.zero_grad()
    assert monitor.recording.tasks == TASKS
    check(name, monitor, model)
