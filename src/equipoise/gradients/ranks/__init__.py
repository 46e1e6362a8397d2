"""Going over ranks: one interface, for one process (`Alone`), for several ranks, and for ranks with shards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from equipoise.gradients.graph.wrappers import Wrapped
from equipoise.gradients.ranks.alone import Alone
from equipoise.gradients.ranks.communication import Ranks
from equipoise.gradients.ranks.order import Order
from equipoise.gradients.ranks.several import Several
from equipoise.gradients.ranks.sharded import Sharded

__all__ = ["Alone", "Company", "Order", "Ranks", "Several", "Sharded"]


_AVAILABLE = dist.is_available()


class Company:
    """Finds how to go over ranks, anew when torch.distributed has been started or a model has been sharded.

    Args:
        parameters: what is trained, in an order that is the same on all ranks, as far as it is known.
        model: the model that is trained.
        process_group: the ranks; None: the default group.
    """

    def __init__(
        self, parameters: Iterable[Tensor] = (), model: nn.Module | None = None, process_group: Any = None
    ) -> None:
        self.order = Order(parameters, model)
        self.ranks = Ranks(process_group)
        self._wrapped: Wrapped | None = None
        self._found: Alone = Alone(self.order)

    def __getstate__(self) -> dict[str, Any]:
        return {"order": self.order, "ranks": self.ranks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _wrapped=None, _found=Alone(state["order"]))

    def now(self) -> Alone:
        """Returns what goes over the ranks as they are now."""
        running = _AVAILABLE and dist.is_initialized()
        if not running and type(self._found) is Alone and not self.order.sharded:
            return self._found
        if running and self._wrapped is None:
            self._wrapped = Wrapped(sharded=not len(self.order))
            if not len(self.order):
                self.order.know([*self._wrapped.sharded, *(p for group in self._wrapped.averaged for p in group)])
        several = running and self.ranks.active
        kind: Any = Sharded if self.order.sharded else Several if several else Alone
        if type(self._found) is not kind:
            wrapped = self._wrapped or Wrapped(sharded=False)
            self._found = Alone(self.order) if kind is Alone else kind(self.order, self.ranks, wrapped)
        return self._found
