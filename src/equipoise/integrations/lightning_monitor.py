"""PyTorch Lightning: a callback that attaches a BalanceMonitor for the time of `trainer.fit`."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim.optimizer import Optimizer

from equipoise.balancer import Balancer
from equipoise.monitor import BalanceMonitor
from equipoise.optim import BalancingOptimizer


class BalanceMonitorCallback(Callback):
    """Records what balancing does, with automatic and with manual optimization; see `equipoise.BalanceMonitor`.

    It finds what balances by itself: the Balancer that is a part of the module, with the optimizer of
    `configure_optimizers`, or MAO or its kin among these. The training keeps its numbers to the last bit. The count of
    steps is in Lightning's checkpoints, so that a run that is resumed goes on in the same file.

    Args:
        every: steps of the optimizer from one sample to the next; the first step is sampled.
        path: a file for the samples, one JSON line each, for `read_monitor`; None: no file.
        log: whether the samples go to the trainer's loggers, with the number of the optimizer's step.

    Attributes:
        monitor: of the present `fit` or, after it, of the last one; None before. `monitor.recording` has the samples.

    Raises:
        ValueError: when training starts: the module has no Balancer or MAO, several, or a Balancer and several
            optimizers; and as BalanceMonitor.
        TypeError: when training starts, as BalanceMonitor.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> callback = BalanceMonitorCallback(every=100, path="runs/monitor.jsonl")
        >>> trainer = Trainer(callbacks=[callback], accelerator="cpu", logger=False)  # then trainer.fit(module, loader)
    """

    def __init__(self, every: int = 50, path: str | PathLike[str] | None = None, log: bool = True) -> None:
        self.monitor: BalanceMonitor | None = None
        self._every, self._path, self._log = every, path, log
        self._state: Mapping[str, Any] = {"step": 0}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attaches the monitor: the optimizers are there, and their state is restored."""
        method, optimizer = _parts(trainer, pl_module)
        writers = [*([] if self._path is None else [self._path]), *(trainer.loggers if self._log else [])]
        self.monitor = BalanceMonitor(method, pl_module, self._every, writers, optimizer=optimizer)
        self.monitor.load_state_dict(self._state)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detaches it; what has been recorded stays."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Detaches it, so that another `fit` of the module can attach one."""
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of steps so far."""
        return dict(self._state if self.monitor is None else self.monitor.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        self._state = state_dict

    def _detach(self) -> None:
        if self.monitor is not None:
            self._state = self.monitor.state_dict()
            self.monitor.detach()


def _parts(trainer: Trainer, module: LightningModule) -> tuple[Balancer | BalancingOptimizer, Optimizer | None]:
    """Returns what balances, and the optimizer that steps after a Balancer.

    Raises:
        ValueError: there is not one of each.
    """
    balancers = {name: part for name, part in module.named_modules() if isinstance(part, Balancer)}
    balancing = [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, BalancingOptimizer)]
    found = [*balancers, *(type(optimizer).__name__ for optimizer in balancing)]
    if len(found) != 1:
        raise ValueError(
            "BalanceMonitorCallback watches the one Balancer that is an attribute of the LightningModule, or MAO as "
            f"its optimizer; found {', '.join(found) or 'neither'}. Of several, make a BalanceMonitor each in "
            "on_train_start."
        )
    if balancing:
        return balancing[0], None
    if len(trainer.optimizers) != 1:
        raise ValueError(
            f"BalanceMonitorCallback needs one optimizer beside a Balancer, found {len(trainer.optimizers)}: make a "
            "BalanceMonitor(balancer, model, optimizer=...) in the module's on_train_start."
        )
    return balancers[found[0]], trainer.optimizers[0]
