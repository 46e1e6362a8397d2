"""What checks compare: states, bit for bit or within rounding; each difference is told in words."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    """Returns a copy of every `.grad`."""
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def snapshot(*things: Any) -> list[Any]:
    """Returns a deep copy of states: of modules, optimizers and methods with their `.grad`."""
    taken = []
    for thing in things:
        taken.append(copy.deepcopy(thing.state_dict()))
        if isinstance(thing, nn.Module):
            taken.append(gradients(thing))
    return taken


def assert_same(found: Any, expected: Any, what: str = "two states differ", path: tuple[Any, ...] = ()) -> None:
    """Asserts equality bit for bit, through mappings and sequences; `what` says what it means if there is none."""
    if type(found) is not type(expected):
        _differs(what, path, f"{type(found).__name__}, expected {type(expected).__name__}")
    if isinstance(expected, dict):
        if list(found) != list(expected):
            _differs(what, path, f"entries {list(found)}, expected {list(expected)}")
        for key in expected:
            assert_same(found[key], expected[key], what, (*path, key))
    elif isinstance(expected, (list, tuple)):
        if len(found) != len(expected):
            _differs(what, path, f"{len(found)} entries, expected {len(expected)}")
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, what, (*path, index) if path else ())
    elif isinstance(expected, Tensor):
        if found.dtype != expected.dtype or found.shape != expected.shape:
            _differs(what, path, f"{_kind(found)}, expected {_kind(expected)}")
        if not torch.equal(found, expected):
            _differs(what, path, _amount(found, expected))
    elif found != expected:
        _differs(what, path, f"{found!r}, expected {expected!r}")


def assert_near(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str, rtol: float, atol: float
) -> None:
    """Asserts equality of tensors within rounding, as `torch.testing.assert_close` has it."""
    for name, value in expected.items():
        try:
            torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol)
        except AssertionError:
            _differs(what, (name,), _amount(found[name], value))


def is_finite(state: Any) -> bool:
    """Whether every number in a state is finite."""
    return all(bool(t.isfinite().all()) for t in _tensors(state) if t.is_floating_point())


def frozen(value: Any) -> Any:
    """Returns plain values as they are now, tensors and containers copied; None of any other object."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: frozen(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | deque):
        return [frozen(inner) for inner in value]
    return value if isinstance(value, bool | int | float | str | set | frozenset) else None


def is_same(found: Any, expected: Any) -> bool:
    """Whether `assert_same` passes."""
    try:
        assert_same(found, expected)
    except AssertionError:
        return False
    return True


def _differs(what: str, path: tuple[Any, ...], how: str) -> None:
    where = ".".join(map(str, path))
    raise AssertionError(f"{what} ({where}{' ' if where else ''}{how})")


def _amount(found: Tensor, expected: Tensor) -> str:
    if found.shape != expected.shape or found.is_complex():
        return f"is {_kind(found)}, expected {_kind(expected)}"
    return f"by up to {float((found.double() - expected.double()).abs().max()):.1g}" if found.numel() else "is empty"


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from _tensors(value)
