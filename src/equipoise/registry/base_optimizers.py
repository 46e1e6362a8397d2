"""The optimizers that a method's name can ask for behind an @, as in `ema@sgd`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.optimizer import Optimizer

from equipoise.optim._fused import can_fuse
from equipoise.optim.muon import MuonAndAdamW

Groups = list[dict[str, Any]]

SEPARATOR = "@"
DEFAULT_OPTIMIZER = "adamw"


@dataclass(frozen=True)
class BaseOptimizer:
    """What is known of an optimizer that methods are combined with.

    Attributes:
        description: one line.
        source: the paper.
        takes: the class; its arguments that are not in `options` keep their defaults, `lr` and `weight_decay` aside.
        grid: learning rates to try when they are tuned, ascending.
        options: arguments of the class.
        groups: a model's parameters, frozen ones too, as the class takes them.
    """

    description: str
    source: str
    takes: type[Optimizer]
    grid: tuple[float, ...]
    options: dict[str, Any] = field(default_factory=dict)
    groups: Callable[[nn.Module], Groups] = lambda model: [{"params": list(model.parameters())}]

    def make(self, groups: Groups, lr: float, weight_decay: float) -> Optimizer:
        """Makes the optimizer for groups of parameters, AdamW with its fused kernel where the devices have it."""
        options = {**self.options, "lr": lr, "weight_decay": weight_decay}
        if self.takes is AdamW:
            options["fused"] = can_fuse(p for group in groups for p in group["params"])
        return self.takes(groups, **options)


def _embeddings_apart(model: nn.Module) -> Groups:
    """A model's parameters, embeddings' tables in a group of AdamW's."""
    tables = {
        id(module.weight): module.weight
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }
    groups: Groups = [{"params": [p for p in model.parameters() if id(p) not in tables]}]
    return [*groups, {"params": list(tables.values()), "use_muon": False}] if tables else groups


BASE_OPTIMIZERS: dict[str, BaseOptimizer] = {
    "adamw": BaseOptimizer(
        "Adam with decoupled weight decay; betas 0.9 and 0.999", "Loshchilov & Hutter 2019", AdamW, (1e-5, 1e-4, 1e-3)
    ),
    "sgd": BaseOptimizer(
        "gradient descent with momentum 0.9; weight decay is part of the gradient",
        "Sutskever et al. 2013",
        SGD,
        (1e-3, 1e-2, 1e-1),
        {"momentum": 0.9},
    ),
    "muon": BaseOptimizer(
        "orthogonalised momentum 0.95 for matrices, updates of AdamW's size; AdamW for the rest",
        "Jordan et al. 2024; Liu et al. 2025, by whom learning rates are AdamW's",
        MuonAndAdamW,
        (1e-5, 1e-4, 1e-3),
        groups=_embeddings_apart,
    ),
}
"""Name → optimizer; `adamw` where a method's name has none."""


def split_optimizer(name: str, tasks: Collection[str] = ()) -> tuple[str, str]:
    """Takes `METHOD@OPTIMIZER` apart; the optimizer is `adamw` where the name has none.

    Args:
        name: a method's, or a baseline's as in `single:left@sgd`.
        tasks: names of tasks, which may have an @ in them.

    Raises:
        ValueError: there is no such optimizer.

    Example:
        >>> from equipoise.registry import split_optimizer
        >>> split_optimizer("ema@sgd"), split_optimizer("ema")
        (('ema', 'sgd'), ('ema', 'adamw'))
    """
    method, separator, optimizer = name.rpartition(SEPARATOR)
    in_a_path = any(sign in optimizer for sign in (":", "/", "\\"))
    if not separator or in_a_path or name.partition(":")[2] in tasks:
        return name, DEFAULT_OPTIMIZER
    if optimizer not in BASE_OPTIMIZERS:
        raise ValueError(
            f"Unknown optimizer {optimizer!r} in {name!r}; the optimizers are {', '.join(BASE_OPTIMIZERS)}."
        )
    return method, optimizer
