"""Graphs that `torch.compile` made: which inputs each output reaches, and whether they can be gone through twice."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.autograd.graph import GradientEdge, Node

_REACHED: WeakKeyDictionary[type, dict[int, tuple[bool, ...]]] = WeakKeyDictionary()
"""Compiled graph → output → for every input whether the output depends on it."""


def keep_buffers() -> None:
    """Has models that are compiled from here on keep what a second backward pass needs.

    By default `torch.compile` lets the backward pass overwrite its buffers, and then refuses a second one.
    """
    import torch._functorch.config as config

    if hasattr(config, "donated_buffer"):
        config.donated_buffer = False


def compiled_graph(node: Node) -> Any | None:
    """Returns the class that holds the compiled graph behind a node, None for any other node."""
    function = getattr(node, "_forward_cls", None)
    compiled = function is not None and node.name() == "CompiledFunctionBackward"
    return function if compiled and function.__module__.startswith("torch._functorch") else None


def check_repeatable(graph: Any) -> None:
    """Checks that the backward pass of a compiled graph leaves intact what another one needs.

    Raises:
        RuntimeError: it was compiled, and has run, before `keep_buffers`.
    """
    metadata = getattr(graph, "metadata", None)
    if getattr(metadata, "bw_donated_idxs", None) and getattr(graph, "compiled_bw", None) is not None:
        raise RuntimeError(
            "The model's compiled backward pass overwrites its buffers and can run only once, since it was compiled "
            "before a Balancer or MAO existed. Make the Balancer or MAO before the first training step, or call "
            "torch.compiler.reset() after making it, so that the model is compiled anew."
        )


def reached_inputs(graph: Any, node: Node, output: int) -> tuple[bool, ...]:
    """Returns for every entry of `node.next_functions` whether the output numbered `output` depends on it.

    A compiled graph has one node for all its outputs, gives zeros where eager autograd gives None, and does not say
    what depends on what. So NaN is sent backward from the output, once for every compiled graph and output: inputs
    that it does not get to are not reached. (Nor are those that nothing but inactive units lead to, in this one pass.)
    Waits for the device this once.
    """
    known = _REACHED.setdefault(graph, {})
    if output not in known:
        inputs = [(child, number) for child, number in node.next_functions if child is not None]
        edges = {edge: GradientEdge(*edge) for edge in inputs}
        if getattr(graph, "maybe_subclass_metadata", None) is not None:  # say DTensor: no plain NaN can be sent through
            found = dict.fromkeys(edges, True)
        else:
            metadata = node._input_metadata[output]
            nan = torch.full(tuple(metadata.shape), torch.nan, dtype=metadata.dtype, device=metadata.device)
            with torch.autograd.set_detect_anomaly(False):
                gradients = torch.autograd.grad(
                    GradientEdge(node, output), list(edges.values()), nan, retain_graph=True, allow_unused=True
                )
            found = {
                edge: gradient is not None and bool(gradient.isnan().any())  # sync: once for every compiled graph
                for edge, gradient in zip(edges, gradients, strict=True)
            }
        known[output] = tuple(child is not None and found[child, number] for child, number in node.next_functions)
    return known[output]
