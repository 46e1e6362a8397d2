"""Releasing what a backward pass had to leave in the graph."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import NoReturn

from torch import Tensor
from torch.autograd.graph import Node


def release(nodes: Iterable[Node]) -> None:
    """Has nodes let go of the tensors that they saved, as in a backward pass that does not keep the graph.

    Autograd keeps the whole of what a pass goes through, or nothing of it. What hooks on saved tensors have packed
    stays until the graph goes.
    """
    for node in nodes:
        for name in _saved(type(node)):
            with suppress(RuntimeError):  # it is released already
                found = getattr(node, name)
                for saved in found if isinstance(found, tuple) else (found,):
                    with suppress(RuntimeError):  # nothing was saved, or it is packed
                        saved.register_hooks(_drop, _refuse)


@cache
def _saved(kind: type[Node]) -> list[str]:
    return [name for name in dir(kind) if name.startswith("_raw_saved_")]


def _drop(saved: Tensor) -> None:
    """Keeps nothing."""


def _refuse(packed: None) -> NoReturn:
    raise RuntimeError(
        "Trying to backward through the graph a second time: its saved tensors have been released. Specify "
        "retain_graph=True if you need to backward through the graph a second time."
    )
