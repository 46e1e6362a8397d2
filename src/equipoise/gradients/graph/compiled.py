"""Graphs that `torch.compile` made: which inputs each output reaches, and whether they can be gone through twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx
from torch.autograd.graph import GradientEdge, Node

Dependence = dict[int, tuple[bool, ...]]
"""Output → for every argument of the compiled function whether its gradient depends on the output's."""

_READ: WeakKeyDictionary[type, Dependence | None] = WeakKeyDictionary()
"""Compiled graph → what its FX graph says, None where it does not."""

_PROBED: WeakKeyDictionary[type, dict[int, set[int]]] = WeakKeyDictionary()
"""Compiled graph → output → the entries of `next_functions` that a NaN got to, in whatever step."""

_ASKED: WeakKeyDictionary[Node, set[int]] = WeakKeyDictionary()
"""Node, of one step → the outputs that a NaN was sent from."""


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


def is_certain(graph: Any) -> bool:
    """Whether `reached_inputs` knows what does not depend on what, and not only what depends on what."""
    return _dependence(graph) is not None


def reached_inputs(graph: Any, node: Node, output: int) -> tuple[bool, ...]:
    """Returns for every entry of `node.next_functions` whether the output numbered `output` depends on it.

    A compiled graph has one node for all its outputs, and gives zeros where eager autograd gives None. What depends on
    what is read from the FX graph of its backward pass, where every result of an operator depends on all arguments.

    Where PyTorch does not keep that graph (`is_certain`), NaN is sent backward from the output, and an input that it
    gets to is reached from then on. One that it does not get to may lie behind inactive units or masked samples, and is
    asked for anew in each step: while there are such inputs, and heads of other tasks always are, each step costs a
    backward pass of the compiled graph for each output, and waits for the device. Where that is impossible, say with
    DTensor, all inputs count as reached.
    """
    dependence = _dependence(graph)
    edges = [index for index, (child, _) in enumerate(node.next_functions) if child is not None]
    if dependence is not None:
        # The dependence and needs_input_grad are of all arguments, next_functions has the tensors among them alone.
        needed = node.needs_input_grad  # type: ignore[attr-defined]
        depends = [here for here, needs in zip(dependence[output], needed, strict=True) if needs]
        reached = {edge for edge, here in zip(edges, depends, strict=True) if here}
    elif graph.maybe_subclass_metadata is not None:
        reached = set(edges)
    else:
        reached = _PROBED.setdefault(graph, {}).setdefault(output, set())
        asked = _ASKED.setdefault(node, set())
        if output not in asked:
            asked.add(output)
            reached |= _probed(node, output, [edge for edge in edges if edge not in reached])
    return tuple(index in reached for index in range(len(node.next_functions)))


def _probed(node: Node, output: int, candidates: Sequence[int]) -> set[int]:
    """Returns the entries of `node.next_functions`, out of `candidates`, that a NaN sent from the output gets to."""
    if not candidates:
        return set()
    metadata = node._input_metadata[output]
    nan = torch.full(tuple(metadata.shape), torch.nan, dtype=metadata.dtype, device=metadata.device)
    edges = [GradientEdge(*node.next_functions[index]) for index in candidates]  # type: ignore[arg-type]
    with torch.autograd.set_detect_anomaly(False):
        gradients = torch.autograd.grad(GradientEdge(node, output), edges, nan, retain_graph=True, allow_unused=True)
    return {
        index
        for index, gradient in zip(candidates, gradients, strict=True)
        if gradient is not None and bool(gradient.isnan().any())  # sync: in each step, where there is no FX graph
    }


def _dependence(graph: Any) -> Dependence | None:
    if graph not in _READ:
        try:
            module = _backward_module(graph)
            _READ[graph] = None if module is None else _read(module.graph, graph.metadata)
        except AttributeError:  # these names are PyTorch's own, and a later version may have others
            _READ[graph] = None
    return _READ[graph]


def _backward_module(graph: Any) -> fx.GraphModule | None:
    """Returns the traced backward pass: PyTorch compiles it late, and new versions save it in their cache."""
    info = getattr(graph, "_lazy_backward_info", None)
    if info is None or graph.maybe_subclass_metadata is not None:  # that takes subclasses of Tensor apart
        return None
    module = info.bw_module_fn() if hasattr(info, "bw_module_fn") else info.bw_module
    return module if isinstance(module, fx.GraphModule) else None


def _read(graph: fx.Graph, metadata: Any) -> Dependence | None:
    """Follows the graph from the gradients of the outputs (the tangents) to those of the arguments.

    Returns:
        None where that does not show what depends on what: operators overwrite their arguments, or the tangents and
        gradients are not those that the metadata tells of, as with side effects or random numbers in the graph.
    """
    masks: dict[fx.Node, int] = {}  # bit i: depends on tangent i
    tangents = 0
    gradients: Sequence[Any] = ()
    for node in graph.nodes:
        if node.op == "placeholder":
            tangent = "tangents" in node.name
            masks[node] = int(tangent) << tangents
            tangents += tangent
        elif node.op == "output":
            (gradients,) = node.args
        elif node.op == "call_function" and (_overwrites(node.target) or not node.users):
            return None
        else:
            masks[node] = 0
            for argument in node.all_input_nodes:
                masks[node] |= masks[argument]
    outputs = _outputs_with_tangents(metadata)
    if tangents != len(outputs) or len(gradients) != len(metadata.input_info):
        return None
    reached = [masks[gradient] if isinstance(gradient, fx.Node) else 0 for gradient in gradients]
    return {output: tuple(bool(mask >> bit & 1) for mask in reached) for bit, output in enumerate(outputs)}


def _overwrites(operator: Any) -> bool:
    schema = getattr(operator, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _outputs_with_tangents(metadata: Any) -> list[int]:
    """Numbers the outputs that have a gradient: of mutated inputs, of the function's outputs, of bases of views."""
    mutated = [metadata.input_info[index] for index in metadata.mutated_inp_runtime_indices]
    has_tangent = [info.mutates_data and info.requires_grad for info in mutated]
    has_tangent += [
        info.output_type.name in ("non_alias", "unsafe_view_alias", "custom_function_view")
        and issubclass(info.raw_type, Tensor)
        and getattr(info, "requires_grad_for_backward", info.requires_grad)  # the name in new versions
        for info in metadata.output_info
    ]
    has_tangent += [True] * metadata.num_intermediate_bases
    return [number for number, has in enumerate(has_tangent) if has]
