"""What is the same from step to step, and so is computed once."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from operator import is_
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Kept(Generic[T]):
    """The last result of a formula, kept while what it was computed from stays the same.

    That is, while its inputs are the same objects and nobody has written to the tensors among them; the host looks at
    no value. Neither saved nor copied: elsewhere tensors are others.
    """

    def __init__(self) -> None:
        self._inputs: tuple[object, ...] = ()
        self._written: list[object] = []
        self._result: T | None = None

    def __getstate__(self) -> dict[str, object]:
        return vars(Kept[T]())

    def __call__(self, formula: Callable[[], T], *inputs: Tensor | float | str | None) -> T:
        """Returns what `formula` gives, or gave.

        Args:
            formula: takes no argument, and gives the same for the same inputs.
            *inputs: all that it depends on.
        """
        same = self._result is not None and len(inputs) == len(self._inputs) and all(map(is_, inputs, self._inputs))
        if not same or self._written != _written(self._result, *inputs):
            self._result = formula()
            self._inputs, self._written = inputs, _written(self._result, *inputs)
        return self._result  # type: ignore[return-value]


def _written(*values: object) -> list[object]:
    """How often the tensors among the values have been written to; for those of inference mode it is not known."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    return [object() if tensor.is_inference() else tensor._version for tensor in tensors]


@lru_cache(maxsize=1024)
def constants(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers on the device; kept, since copying them in every step would cost on a GPU."""
    return torch.tensor(numbers, dtype=dtype, device="cpu").to(device, non_blocking=True)
