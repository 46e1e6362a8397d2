"""Which tensors are trained, and the order of them that all ranks have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from equipoise.gradients.shards import is_sharded


class Order:
    """The trained leaves: with a model its parameters, without every `nn.Parameter`; and those that are named.

    An input that happens to require a gradient (a collocation point, an adversarial image) is none, nor, with a model,
    a parameter of another one that the losses lead to.

    Args:
        parameters: what is trained in any case.
        model: the model that is trained.
    """

    def __init__(self, parameters: Iterable[Tensor] = (), model: nn.Module | None = None) -> None:
        self.model = model
        self.sharded = False
        self._position: Any = WeakIdKeyDictionary()
        self._foreign: Any = WeakIdKeyDictionary()
        self.know(parameters)
        self.know([] if model is None else model.parameters())

    def __getstate__(self) -> dict[str, Any]:
        return {"parameters": list(self._position), "model": self.model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(vars(Order(state["parameters"], state["model"])))

    def __len__(self) -> int:
        return len(self._position)

    def know(self, parameters: Iterable[Tensor]) -> None:
        """Appends trained leaves to the order; to be called on all ranks alike."""
        for parameter in parameters:
            if parameter not in self._position:
                self._position[parameter] = len(self._position)
                self.sharded = self.sharded or is_sharded(parameter)

    def is_trained(self, leaf: Tensor) -> bool:
        """Whether the leaf is trained. A parameter that the model got since it was last looked at is one."""
        if leaf in self._position:
            return True
        if self.model is None or not isinstance(leaf, nn.Parameter):
            return isinstance(leaf, nn.Parameter)
        if leaf not in self._foreign:
            self.know(self.model.parameters())
            if leaf not in self._position:
                self._foreign[leaf] = True
        return leaf in self._position

    def inputs(self, leaves: Iterable[Tensor]) -> set[Tensor]:
        """Returns those of the leaves that are not trained."""
        known = set(map(hash, self._position.keyrefs()))  # their ids: looking up each leaf would take longer
        return {leaf for leaf in leaves if id(leaf) not in known and not self.is_trained(leaf)}

    def position(self, leaf: Tensor) -> int:
        """The leaf's place in the order, -1 where it has none."""
        place: int = self._position.get(leaf, -1)
        return place

    def parameters(self) -> list[Tensor]:
        """The leaves that have a place, in order."""
        return list(self._position)

    def ordered(self, leaves: Iterable[Tensor]) -> list[Tensor]:
        """Puts the leaves with a place in order, and the others behind."""
        return sorted(leaves, key=lambda leaf: self._position.get(leaf, len(self._position)))
