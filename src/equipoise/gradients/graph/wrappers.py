"""What PyTorch wraps around a model to train it on many devices."""

from __future__ import annotations

import gc
import sys
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node
from torch.nn.parallel import DistributedDataParallel
from torch.utils.weak import WeakIdKeyDictionary

UNSUPPORTED = {
    "FullyShardedDataParallel": "torch.distributed.fsdp.fully_shard (FSDP2), which keeps parameters apart, or the "
    "scalar of an objective without an aggregator, balancer(losses), with a Balancer made without model=",
    "DataParallel": "DistributedDataParallel, one process a device",
    "DeepSpeedEngine": "fully_shard (FSDP2) or DistributedDataParallel, or an objective without an aggregator by the "
    "loss that the engine's own backward() takes",
}
"""Wrapper → what to use in its place."""


def refuse_wrappers(model: nn.Module) -> None:
    """Refuses a model in a wrapper that makes of gradients what nobody else can see.

    Raises:
        ValueError: there is one.
    """
    for module in model.modules():
        for base in type(module).__mro__:
            if base.__name__ in UNSUPPORTED and base.__module__.split(".")[0] in ("torch", "deepspeed"):
                _refuse(base.__name__)


def refuse_flat(leaf: Tensor) -> None:
    """Refuses a leaf that FullyShardedDataParallel has made of many parameters.

    Raises:
        ValueError: it is one.
    """
    if vars(leaf).get("_is_flat_param", False):  # quicker than an attribute that is not there
        _refuse("FullyShardedDataParallel")


def refuse_replicas(function: type | None) -> None:
    """Refuses a graph that DataParallel has made.

    Raises:
        ValueError: the `autograd.Function` is one of its.
    """
    if function is not None and function.__module__ == "torch.nn.parallel._functions":
        _refuse("DataParallel")


def _refuse(wrapper: str) -> None:
    raise ValueError(f"The model is in {wrapper}, which equipoise does not work with: use {UNSUPPORTED[wrapper]}.")


def parameter_names(model: nn.Module) -> dict[str, Tensor]:
    """Returns name → parameter, with the names that the model has without DistributedDataParallel or torch.compile."""
    names: dict[str, Tensor] = {}
    prefixes = [name for name, module in model.named_modules() if isinstance(module, DistributedDataParallel)]
    for name, parameter in model.named_parameters():
        for prefix in prefixes:
            start = f"{prefix}." if prefix else ""
            if name.startswith(f"{start}module."):
                name = start + name.removeprefix(f"{start}module.")
        names[name.replace("_orig_mod.", "")] = parameter
    return names


def hands_on(node: Node) -> bool:
    """Whether the node is DistributedDataParallel's own at the model's outputs, which keeps none apart from the others.

    There is one with `find_unused_parameters=True`, and with `static_graph=True` in the first step.
    """
    function = getattr(node, "_forward_cls", None)
    return function is not None and function.__module__ == DistributedDataParallel.__module__


def handed_on(node: Node, output: int) -> tuple[tuple[Node | None, int], ...]:
    """Returns the entry of `node.next_functions` that the output numbered `output` is.

    Outputs that are no tensors are counted, and have no entry; so a gradient is sent through to see where it gets.
    """
    edges = [GradientEdge(child, number) for child, number in node.next_functions if child is not None]
    metadata = node._input_metadata[output]
    gradient = torch.zeros(tuple(metadata.shape), dtype=metadata.dtype, device=metadata.device)
    gradients = torch.autograd.grad(GradientEdge(node, output), edges, gradient, retain_graph=True, allow_unused=True)
    return tuple((edge.node, edge.output_nr) for edge, found in zip(edges, gradients, strict=True) if found is not None)


class Wrapped:
    """The parameters that wrappers in this process take care of, found once.

    A wrapper does not say so on the parameters, and a person need not hand it to us: so this looks through all objects
    that the garbage collector knows. Finding none costs no correctness: gradients that DistributedDataParallel has
    averaged stay what they are when they are averaged again.

    Args:
        sharded: look for sharded models, too.

    Attributes:
        averaged: for each DistributedDataParallel those whose `.grad` it averages in a backward pass.
        sharded: those of modules that `fully_shard` was applied to, in their order.
    """

    def __init__(self, sharded: bool) -> None:
        self.averaged: list[Any] = []
        self.sharded: dict[Tensor, None] = {}
        fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None) if sharded else None
        if fsdp is not None:
            gc.collect()  # models that are no longer used
        kinds = {DistributedDataParallel, fsdp}  # looked up in `__mro__`: isinstance would load some lazy objects
        wrappers = [found for found in gc.get_objects() if not kinds.isdisjoint(type(found).__mro__)]
        for wrapper in _outermost(wrappers):
            if not isinstance(wrapper, DistributedDataParallel):
                for module in wrapper.modules():
                    if fsdp in type(module).__mro__:  # between forward and backward pass it can hold whole parameters
                        module.reshard()  # type: ignore[operator]
                self.sharded |= dict.fromkeys(wrapper.parameters())
            elif not wrapper.static_graph:  # which reduces nothing after steps whose gradients went past it
                trained = {parameter: None for parameter in wrapper.parameters() if parameter.requires_grad}
                self.averaged.append(WeakIdKeyDictionary(trained))

    def averages(self, leaves: Collection[Tensor]) -> bool:
        """Whether DistributedDataParallel averages all these leaves if a backward pass reaches them and no others.

        It averages nothing where a pass reaches a part of its parameters only: it waits for the rest.
        """
        reached = [sum(leaf in group for leaf in leaves) for group in self.averaged]
        complete = all(count in (0, len(group)) for count, group in zip(reached, self.averaged, strict=True))
        return complete and sum(reached) == len(leaves)


def _outermost(modules: list[nn.Module]) -> list[nn.Module]:
    """Leaves out modules inside others, and puts the rest in an order that is the same on all ranks."""
    inner = {child for module in modules for child in module.modules() if child is not module}
    outer = [module for module in modules if module not in inner]
    return sorted(outer, key=lambda module: [(name, *p.shape) for name, p in module.named_parameters()])
