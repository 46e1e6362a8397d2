"""PyTorch Lightning: what `self.manual_backward` is for one loss, in a module with `automatic_optimization = False`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from equipoise.balancer import Balancer
from equipoise.optim import BalancingOptimizer


def backward(
    module: Any, balancer: Balancer | BalancingOptimizer, losses: Mapping[str, Tensor], **options: Any
) -> dict[str, Tensor]:
    """Does what `balancer.backward(losses)` does under the trainer's precision, its gradient scaler included.

    Manual optimization leaves clipping, accumulation and schedulers to the training step. With automatic optimization,
    a training step that returns `balancer(losses)`, they stay the Trainer's.

    A Balancer that is an attribute of the module is saved in Lightning's checkpoints, and its parameters are among
    `self.parameters()`.

    Args:
        module: the `LightningModule`, in its `training_step`.
        balancer: the Balancer, or MAO or its kin (also as `self.optimizers()` gives it).
        losses: task → scalar loss.
        **options: as for `Balancer.backward`.

    Returns:
        Task → weight, as `Balancer.backward`.
    """
    return balancer.backward(losses, scaler=getattr(module.trainer.precision_plugin, "scaler", None), **options)
