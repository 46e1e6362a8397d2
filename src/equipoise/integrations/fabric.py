"""Lightning Fabric: what `fabric.backward` is for one loss."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from equipoise._method import Method
from equipoise.balancer import Balancer
from equipoise.optim import BalancingOptimizer


def backward(
    fabric: Any, balancer: Balancer | BalancingOptimizer | Method, losses: Mapping[str, Tensor], **options: Any
) -> dict[str, Tensor]:
    """Does what `balancer.backward(losses)` does under Fabric's precision, its gradient scaler included.

    Args:
        fabric: the `Fabric`.
        balancer: the Balancer, MAO or its kin (also as `fabric.setup` gives it back), or what `make_method` gives.
        losses: task → scalar loss.
        **options: as for `Balancer.backward`.

    Returns:
        Task → weight, as `Balancer.backward`.
    """
    wrappers = sys.modules[type(fabric).__module__.rpartition(".")[0] + ".wrappers"]
    before = getattr(wrappers, "_in_fabric_backward", False)
    wrappers._in_fabric_backward = True  # type: ignore[attr-defined]  # its models refuse other backward passes
    try:
        return balancer.backward(losses, scaler=getattr(fabric.strategy.precision, "scaler", None), **options)
    finally:
        wrappers._in_fabric_backward = before  # type: ignore[attr-defined]
