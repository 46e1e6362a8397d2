"""Hugging Face Accelerate: what `accelerator.backward` is for one loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from equipoise.balancer import Balancer
from equipoise.optim import BalancingOptimizer


def backward(accelerator: Any, balancer: Any, losses: Mapping[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Does what `balancer.backward(losses)` does under the accelerator's precision and gradient accumulation.

    In `with accelerator.accumulate(model):` the task gradients of the micro-batches are kept and balanced together at
    the last one. Losses are divided by the number of micro-batches, as `accelerator.backward` does it, unless `counts`
    are passed. For checkpoints: `accelerator.register_for_checkpointing(balancer)`.

    Args:
        accelerator: the `Accelerator`.
        balancer: the `Balancer`, or `MAO` or its kin (also as `accelerator.prepare` gives it back).
        losses: task → scalar loss.
        **options: as for `Balancer.backward`.

    Returns:
        Task → weight, as `Balancer.backward`.
    """
    if "counts" not in options:
        losses = {task: loss / accelerator.gradient_accumulation_steps for task, loss in losses.items()}
    options.setdefault("accumulate", not accelerator.sync_gradients)
    inner: Balancer | BalancingOptimizer = balancer if hasattr(balancer, "backward") else balancer.optimizer
    return inner.backward(losses, scaler=accelerator.scaler, **options)
