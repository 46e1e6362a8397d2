"""The callback records what a BalanceMonitor in a plain loop does, and changes nothing."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from integrations.loops import EPOCHS, TASKS, Model, loader, losses_of, parts
from networks import assert_same
from torch import Tensor

import equipoise as eq
from equipoise.monitor import Recording, read_monitor

pytest.importorskip("lightning")
from integrations.test_lightning import Automatic, Module, fit
from lightning.pytorch.loggers import CSVLogger

from equipoise.integrations.lightning_monitor import BalanceMonitorCallback

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
MICRO_BATCHES, CLIP = 2, 0.5
EXAMPLE = Path(__file__).parents[2] / "examples" / "lightning_module.py"


def plain(name: str, automatic: bool) -> Recording:
    """What a monitor records in a plain loop; `automatic`: of scalars, with accumulation and clipping."""
    model = Model()
    balancer, optimizer = parts(name, model)
    own = {} if balancer is None else {"optimizer": optimizer}
    monitor = eq.BalanceMonitor(balancer or optimizer, model, every=2, **own)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(EPOCHS):
        for index, (x,) in enumerate(loader()):
            losses = losses_of(model(x), x)
            if automatic:
                ((balancer or optimizer.loss)(losses) / MICRO_BATCHES).backward()
                if (index + 1) % MICRO_BATCHES:
                    continue
                if balancer is not None:
                    torch.nn.utils.clip_grad_norm_(trained, CLIP)
            else:
                (balancer or optimizer).backward(losses)
            optimizer.step()
            optimizer.zero_grad()
    return monitor.recording


@pytest.mark.parametrize("automatic", [True, False], ids=["automatic", "manual"])
@pytest.mark.parametrize("name", ["ema", "imtl", "mao"])
def test_records_of_a_plain_loop_and_the_training_of_none(name: str, automatic: bool, tmp_path: Path) -> None:
    callback = BalanceMonitorCallback(every=2)
    options: dict[str, Any] = {"accumulate_grad_batches": MICRO_BATCHES} if automatic else {}
    if automatic and name != "mao":
        options["gradient_clip_val"] = CLIP
    modules = [Automatic(name) if automatic else Module(name) for _ in range(2)]
    for module, callbacks in zip(modules, ([callback], []), strict=True):
        fit(module, tmp_path, callbacks=callbacks, **options)
    recording, expected = callback.monitor.recording, plain(name, automatic)
    assert recording.records == expected.records
    assert len(recording.records) == EPOCHS * len(loader()) // (MICRO_BATCHES if automatic else 1) / 2
    assert recording.layers == [f"model.{layer}" for layer in expected.layers]
    watched, unwatched = modules
    assert_same(dict(watched.state_dict()), dict(unwatched.state_dict()))
    assert_same(watched.optimizer.state_dict(), unwatched.optimizer.state_dict())


@pytest.mark.parametrize("name", ["imtl", "mao"])
def test_a_run_that_is_resumed_goes_on_in_the_same_file(name: str, tmp_path: Path) -> None:
    whole = BalanceMonitorCallback(5, tmp_path / "whole.jsonl")
    fit(Automatic(name), tmp_path, callbacks=[whole])
    resumed = tmp_path / "resumed.jsonl"
    checkpoint = fit(Automatic(name), tmp_path, epochs=1, callbacks=[BalanceMonitorCallback(5, resumed)])
    fit(Automatic(name), tmp_path, resume=checkpoint, callbacks=[BalanceMonitorCallback(5, resumed)])
    assert read_monitor(resumed) == read_monitor(tmp_path / "whole.jsonl")
    assert whole.monitor.recording.steps == [0, 5, 10]


def test_it_writes_to_the_trainers_logger(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, name, "") for name in ("with", "without")]
    for logger, log in zip(loggers, (True, False), strict=True):
        callback = BalanceMonitorCallback(5, log=log)
        fit(Automatic("ema"), tmp_path, callbacks=[callback], logger=logger)
    with (tmp_path / "with" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["weight/low"]]
    weights = [record["weights"]["low"] for record in callback.monitor.records]
    assert [(int(row["step"]), float(row["weight/low"])) for row in rows] == list(zip([0, 5, 10], weights, strict=True))
    assert not (tmp_path / "without" / "metrics.csv").exists()


class Failing(Automatic):
    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        if self.trainer.max_epochs == 1 and index == 3:
            raise ArithmeticError("in the person's code")
        return super().training_step(batch, index)


def test_another_fit_goes_on_after_an_error(tmp_path: Path) -> None:
    module, callback = Failing("ema"), BalanceMonitorCallback(2, tmp_path / "monitor.jsonl")
    with pytest.raises(ArithmeticError):
        fit(module, tmp_path, epochs=1, callbacks=[callback])
    fit(module, tmp_path, epochs=2, callbacks=[callback])
    assert callback.monitor.recording.steps == [4, 6, 8, 10, 12, 14]
    assert read_monitor(tmp_path / "monitor.jsonl").steps == [0, 2, *callback.monitor.recording.steps]


def test_what_it_cannot_watch_is_said(tmp_path: Path) -> None:
    def refused(module: Automatic, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            fit(module, tmp_path, callbacks=[BalanceMonitorCallback()], num_sanity_val_steps=0)

    neither, two, optimizers = (Automatic("ema") for _ in range(3))
    neither.balancer = None
    two.other = eq.Balancer(TASKS)
    optimizers.automatic_optimization = False
    optimizers.configure_optimizers = lambda: [optimizers.optimizer, torch.optim.SGD(optimizers.parameters(), lr=0.1)]
    refused(neither, "found neither")
    refused(two, "found balancer, other")
    refused(optimizers, "one optimizer beside a Balancer, found 2")


@pytest.mark.filterwarnings("ignore")
def test_example(tmp_path: Path) -> None:
    """Without balancing, the task with the large loss moves the trunk alone."""
    shares, errors = runpy.run_path(str(EXAMPLE))["main"](tmp_path)
    assert shares["equal weights"]["area"] > 0.9
    assert 0.3 < shares["EMA"]["area"] < 0.8
    assert errors["EMA"]["shape"] < 0.8 * errors["equal weights"]["shape"]
    assert read_monitor(tmp_path / "EMA.jsonl").steps == list(range(0, 200, 20))
