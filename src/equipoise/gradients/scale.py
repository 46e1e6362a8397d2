"""The arithmetic of a gradient scaler: the identity without one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from equipoise.gradients.shards import like, local

if TYPE_CHECKING:
    from equipoise.gradients.jacobian import Row, TaskRows


class Scale:
    """No scaler: nothing is scaled, and nothing can overflow that autograd would not show."""

    checked = False
    """Whether a step counts only if its gradients are finite."""

    def coefficients(self, coefficients: Tensor) -> Tensor:
        """Returns what to weigh the losses with for gradients that are scaled."""
        return coefficients

    def gradients(self, gradients: Row) -> Row:
        """Returns the gradients scaled, as `.grad` has to be."""
        return gradients

    def unscaled(self, rows: TaskRows) -> TaskRows:
        """Returns the rows of losses that were scaled, unscaled."""
        return rows

    def unscaled_products(self, products: Tensor) -> Tensor:
        """Returns the products of scaled gradients with one another, unscaled."""
        return products


class ScalerScale(Scale):
    """The scale of a `torch.amp.GradScaler`.

    Args:
        factor: the scale, 0-dim.
    """

    checked = True

    def __init__(self, factor: Tensor) -> None:
        self._factor = factor

    def coefficients(self, coefficients: Tensor) -> Tensor:
        """See `Scale`."""
        return coefficients * self._factor

    def gradients(self, gradients: Row) -> Row:
        """See `Scale`."""
        return times(gradients, self._factor)

    def unscaled(self, rows: TaskRows) -> TaskRows:
        """See `Scale`."""
        inverse = (self._factor if self._factor.device.type == "mps" else self._factor.double()).reciprocal()
        return {task: times(row, inverse) for task, row in rows.items()}

    def unscaled_products(self, products: Tensor) -> Tensor:
        """See `Scale`."""
        return products / self._factor.to(products.dtype).square()


class Factor(Scale):
    """A factor that stays in the gradients, of which nobody knows what it is made of.

    Args:
        factor: 0-dim.
    """

    checked = True

    def __init__(self, factor: Tensor) -> None:
        self.factor = factor

    def coefficients(self, coefficients: Tensor) -> Tensor:
        """See `Scale`."""
        return coefficients * self.factor


UNSCALED = Scale()


def scale_of(scaler: Any, device: torch.device) -> Scale:
    """Returns the scale of the scaler, if there is one that is enabled."""
    if scaler is None or not scaler.is_enabled():
        return UNSCALED
    return ScalerScale(scaler.scale(torch.ones((), device=device)))


def times(gradients: Mapping[Tensor, Tensor], factor: Tensor) -> dict[Tensor, Tensor]:
    """Returns the gradients times a 0-dim factor, in their dtypes; changes none in place."""
    if not gradients:
        return {}
    shards = [local(gradient) for gradient in gradients.values()]
    dense = [shard for shard in shards if shard.layout == torch.strided]
    products = iter(torch._foreach_mul(dense, factor) if dense else [])
    scaled = [next(products) if shard.layout == torch.strided else shard * factor.to(shard.dtype) for shard in shards]
    return {
        leaf: like(part.to(gradient.dtype), gradient)
        for (leaf, gradient), part in zip(gradients.items(), scaled, strict=True)
    }
