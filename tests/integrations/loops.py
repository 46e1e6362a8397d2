"""One small training, as a plain loop, that the loops of other libraries have to reproduce."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import equipoise as eq

TASKS = ["low", "high"]
METHODS = ["uw", "ema", "pcgrad", "imtl", "mao"]
EPOCHS = 2


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.trunk = nn.Linear(4, 8)
            self.heads = nn.ModuleDict({task: nn.Linear(8, 1) for task in TASKS})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x).tanh()
        return {task: head(z)[:, 0] for task, head in self.heads.items()}


def losses_of(outputs: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    return {
        "low": (outputs["low"].float() - x.sum(1)).square().mean(),
        "high": 20 * (outputs["high"].float() + x[:, 0]).square().mean(),
    }


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(24, 4, generator=torch.Generator().manual_seed(0))), batch_size=4)


def parts(name: str, model: nn.Module) -> tuple[eq.Balancer | None, torch.optim.Optimizer]:
    """The Balancer, if the method has one, and an optimizer of all parameters."""
    if name == "mao":
        return None, eq.MAO(model.parameters(), TASKS, lr=0.01)
    balancer = {
        "uw": lambda: eq.Balancer(TASKS, eq.UW()),
        "ema": lambda: eq.Balancer(TASKS, eq.EMA()),
        "pcgrad": lambda: eq.Balancer(TASKS, aggregator=eq.PCGrad(seed=0)),
        "imtl": lambda: eq.Balancer(TASKS, eq.IMTLL(), eq.IMTLG()),
    }[name]()
    return balancer, torch.optim.AdamW([*model.parameters(), *balancer.parameters()], lr=0.01)


def plain(name: str, autocast: torch.dtype | None = None, micro_batches: int = 1) -> dict[str, Tensor]:
    """Trains in a plain loop; returns the model's state."""
    model = Model()
    balancer, optimizer = parts(name, model)
    for _ in range(EPOCHS):
        for index, (x,) in enumerate(loader()):
            context = torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext()
            with context:
                outputs = model(x)
            losses = {task: loss / micro_batches for task, loss in losses_of(outputs, x).items()}
            last = (index + 1) % micro_batches == 0
            (balancer or optimizer).backward(losses, accumulate=not last)
            if last:
                optimizer.step()
                optimizer.zero_grad()
    return model.state_dict()


def decay(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)


def plain_scalars(
    name: str, micro_batches: int = 1, clip: float = torch.inf, decays: bool = False
) -> dict[str, Tensor]:
    """The same, each micro-batch balanced by itself: what frameworks do that are given a scalar and divide it."""
    model = Model()
    balancer, optimizer = parts(name, model)
    scheduler = decay(optimizer) if decays else None
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(EPOCHS):
        for index, (x,) in enumerate(loader()):
            losses = losses_of(model(x), x)
            if balancer is None:
                optimizer.backward({task: loss / micro_batches for task, loss in losses.items()})
            else:
                balancer.backward(losses)
            if (index + 1) % micro_batches == 0:
                if balancer is not None:
                    for p in trained:
                        p.grad /= micro_batches
                    nn.utils.clip_grad_norm_(trained, clip)
                optimizer.step()
                optimizer.zero_grad()
                if scheduler is not None:
                    scheduler.step()
    return model.state_dict()


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    start = Model().state_dict()
    for key, value in expected.items():
        assert not torch.equal(value, start[key])
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")
