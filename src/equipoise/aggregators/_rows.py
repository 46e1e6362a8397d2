"""Aggregators that look at the rows element by element: rows as matrices, and state that is as large as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equipoise._kept import constants
from equipoise.aggregators._base import Aggregator, Gradients
from equipoise.gradients.gramian import as_real
from equipoise.gradients.shards import like, local


def matrix(column: Sequence[Tensor | None]) -> Tensor:
    """Returns one parameter's rows as one tensor `[K', *shape]`, in float32 at least; zeros where there is none.

    A complex parameter's are those of its real and imaginary parts, `[K', *shape, 2]`; of a sharded one this rank's.
    """
    parts = [None if gradient is None else as_real(local(gradient)) for gradient in column]
    some = _first(parts)
    rows = torch.stack([torch.zeros_like(some) if part is None else part for part in parts])
    return rows.to(torch.promote_types(some.dtype, torch.float32))


def as_gradients(values: Sequence[Tensor], gradients: Gradients) -> list[Tensor]:
    """Returns one tensor a parameter, of the shape that `matrix` gives without the K', as the gradients are."""
    result = []
    for value, column in zip(values, zip(*gradients, strict=True), strict=True):
        some = _first(column)
        result.append(like(torch.view_as_complex(value) if some.is_complex() else value.to(some.dtype), some))
    return result


def weighted(rows: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    """Returns `Σ_k w_k` of every tensor `[K', *shape]`."""
    return [torch.mv(part.flatten(1).T, weights.to(part.dtype)).view(part.shape[1:]) for part in rows]


def by_task(values: Tensor, rows: Tensor) -> Tensor:
    """Returns numbers or bools `[K']` that go with the rows of a tensor `[K', *shape]`; numbers in its dtype."""
    wide = values if values.dtype == torch.bool else values.to(rows.dtype)
    return wide.view(-1, *[1] * (rows.dim() - 1))


def squared_norms(rows: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Returns `‖g_k‖²` `[K']` of rows that `matrix` gave, added up in `dtype`."""
    norms = [torch.linalg.vector_norm(part.flatten(1), dim=1, dtype=dtype) for part in rows]
    return torch.stack(norms).square().sum(0)


def _first(column: Sequence[Tensor | None]) -> Tensor:
    return next(gradient for gradient in column if gradient is not None)


class RowsAggregator(Aggregator):
    """An aggregator whose formula is on the rows as tensors `[K', *shape]`, a parameter each."""

    def preferred(self, rows: Tensor) -> Tensor:
        """Returns rows that `matrix` gave, each multiplied by how much its task is wanted."""
        if self.preferences is None:
            return rows
        factors = constants(tuple(self.preferences.tolist()), torch.float64, rows.device)
        return rows * by_task(factors, rows)


class RowStateAggregator(RowsAggregator):
    """An aggregator that keeps a number for every task and element of the shared parameters.

    That is K times the shared parameters in memory and in checkpoints, in float32 (float64 for such parameters), and
    twice as much again while a step is made, beside the tasks' gradients. The state of a parameter begins, at 0, in the
    step in which it is first shared, and is saved under the parameter's name. It is kept on the parameter's device.
    """

    columns: Sequence[str] | None = None
    """The names of the parameters that the next gradients are of; None: they are counted."""

    def __init__(self) -> None:
        super().__init__()
        self._kept_rows: list[str] = []

    def add_row_state(self, name: str) -> None:
        """Declares a number a task and element, for `kept_rows` and `keep_rows`."""
        self._kept_rows.append(name)

    def kept_rows(self, name: str, rows: Sequence[Tensor]) -> list[Tensor]:
        """Returns the state of the tasks present, a tensor a parameter, as `matrix` gave the rows.

        Raises:
            ValueError: a state that was loaded is of a parameter of another shape.
        """
        found = []
        for key, part in zip(self._keys(name, len(rows)), rows, strict=True):
            shape = (len(self.tasks or ()), *part.shape[1:])
            if key not in self._buffers:
                self._register_rows(key, part.new_zeros(shape))
            if self._buffers[key].device != part.device:  # type: ignore[union-attr]
                self._buffers[key] = self.settled(key).to(part.device)
            state = getattr(self.state, key)
            if state.shape != part.shape:
                raise ValueError(
                    f"{type(self).__name__} keeps a state of shape {tuple(self.get_buffer(key).shape)} as {key!r}, "
                    f"expected {shape}: it was loaded from another model."
                )
            found.append(state.to(part.dtype))
        return found

    def keep_rows(self, name: str, values: Sequence[Tensor]) -> None:
        """Writes the state of the tasks present."""
        for key, value in zip(self._keys(name, len(values)), values, strict=True):
            setattr(self.state, key, value)

    def make_room(self, shapes: dict[str, torch.Size]) -> None:
        """Makes place for the state of parameters, by its names in a state dict, where there is none yet."""
        for key, shape in shapes.items():
            if key not in self._buffers and key.partition("/")[0] in self._kept_rows:
                self._register_rows(key, torch.zeros(shape, device="cpu"))

    def _register_rows(self, key: str, values: Tensor) -> None:
        self.register_buffer(key, values)
        self._rows.add(key)

    def _keys(self, name: str, count: int) -> list[str]:
        columns = [str(index) for index in range(count)] if self.columns is None else self.columns
        return [f"{name}/{column.replace('.', '/')}" for column in columns]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        own = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        for key in self._rows - own.keys():  # the state was saved before it began
            self._rows.remove(key)
            del self._buffers[key]
        self.make_room({key: value.shape for key, value in own.items() if isinstance(value, Tensor)})
        for key in self._rows & own.keys():
            if self._buffers[key].dtype != own[key].dtype:  # type: ignore[union-attr]
                self._buffers[key] = self._buffers[key].to(own[key].dtype)  # type: ignore[union-attr]
        super()._load_from_state_dict(state_dict, prefix, *arguments)
