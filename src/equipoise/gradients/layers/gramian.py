"""The Gramian of the task gradients layer by layer, in one backward pass of all tasks together."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from equipoise.gradients.gramian import gramian, wide_dtype
from equipoise.gradients.layers.plan import Graph, Unsupported, Use, plan

WAITING = 1 << 14
"""Columns of small gradients that wait for each other, so that they are multiplied in one product."""


def gramian_by_layers(
    roots: Sequence[GradientEdge],
    cotangents: Sequence[Tensor],
    leaves: Collection[Tensor],
    also: Mapping[Tensor, Tensor] | None = None,
) -> Tensor:
    """Computes the Gramian `Σ_leaf J_leaf J_leafᵀ` of the K tasks' gradients on shared leaves, which are never held.

    Autograd takes all tasks through the graph in one pass, under `torch.vmap`. A hook on each leaf takes its gradients
    `[K, *shape]`, added up over all its uses, into the Gramian and lets go of them. Of a weight with a closed form
    (see `rules`) autograd is not asked for the gradients at all: a hook on its node takes the products from what goes
    into and comes out of the layer. So no more is held than one leaf's gradients, and the K cotangents of the outputs
    of the layers at work. A leaf whose gradient waits for another part of the graph, as a tied weight's does, is held
    until it is complete.

    All products are taken in float64 (see `gramian`), from gradients, activations and cotangents in the precision of
    the model.

    Nothing in the graph is released, and no leaf's `.grad` is written. Hooks on tensors and nodes below the roots are
    called as in any backward pass, once, with a tensor in `torch.vmap` that stands for all tasks; it must not outlive
    the call, so that `retain_grad()` on a tensor in the graph leaves it with a `.grad` that cannot be used. Randomness
    in a backward pass is the same for all tasks.

    Args:
        roots: where the tasks' graphs merge.
        cotangents: for each root the K gradients there `[K, *shape]`; zeros where a task does not reach it.
        leaves: the trained leaves whose Gramian is wanted. Those that the graph does not reach count as zero.
        also: leaf → gradients `[K, *shape]` that reach it past the roots.

    Returns:
        `[K, K]`, float64 where the device has it.

    Raises:
        Unsupported: the tasks cannot go through the graph together. Nothing has changed.
        RuntimeError: the graph was released, or a tensor that it needs was changed in place.
    """
    also = also or {}
    edges = [*roots, *(get_gradient_edge(leaf) for leaf in also)]
    outer = [*cotangents, *also.values()]
    graph = Graph(edges, leaves)
    tasks = len(outer[0])
    ways = plan(graph, tasks)
    products = _Products(tasks, outer[0].device)
    handles: list[RemovableHandle] = [
        leaf.register_hook(products.take_rows)  # type: ignore[no-untyped-call]
        for leaf in ways.explicit
    ]
    handles += [use.node.register_prehook(products.taking(use)) for use in ways.passed]
    inputs: list[Any] = [*ways.explicit, *(GradientEdge(use.node, 0) for use in ways.ends)]

    def backward(outer: Sequence[Tensor]) -> Tensor:
        found = torch.autograd.grad(edges, inputs, outer, retain_graph=True, allow_unused=True)
        for use, cotangents in zip(ways.ends, found[len(ways.explicit) :], strict=True):
            products.taking(use)([cotangents])
        return torch.zeros((), device="cpu")  # it has to return something

    try:
        if inputs:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop")  # a node's formula goes task by task
                torch.vmap(backward, randomness="same")(outer)
    except Exception as error:
        for handle in handles:
            handle.remove()
        one = [rows[0] for rows in outer]  # one task alone shows what is autograd's own error
        torch.autograd.grad(edges, list(graph.leaves), one, retain_graph=True, allow_unused=True)
        raise Unsupported(f"The tasks cannot go through the graph together: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    return products.total()


class _Products:
    """The Gramian so far: products that are summed up at the end, and small gradients that wait for others.

    By device, of which each has its own thread in a backward pass.
    """

    def __init__(self, tasks: int, device: torch.device) -> None:
        self.tasks = tasks
        self.parts = [torch.zeros(tasks, tasks, dtype=wide_dtype(device), device=device)]
        self.waiting: dict[torch.device, list[Tensor]] = defaultdict(list)

    def take_rows(self, gradient: Tensor | None) -> Tensor | None:
        """Takes a leaf's gradients and puts zeros in their place, which hold no memory. A tensor's hook."""
        if gradient is None:
            return None
        zeros: Tensor = _AllTasks.apply(gradient, self.tasks, self._add_rows)
        return zeros

    def taking(self, use: Use) -> Callable[[Sequence[Tensor | None]], None]:
        """Returns the hook on the node that takes its weight's products."""

        def add(cotangents: Tensor) -> None:
            self.parts.append(use.rule.gramian(use.node, cotangents))

        def hook(gradients: Sequence[Tensor | None]) -> None:
            if gradients[0] is not None:
                _AllTasks.apply(gradients[0], self.tasks, add)

        return hook

    def total(self) -> Tensor:
        """Returns the Gramian of all that was taken."""
        for device in list(self.waiting):
            self._multiply(device)
        first, *others = self.parts
        return sum((part.to(first.device) for part in others), first)

    def _add_rows(self, rows: Tensor) -> None:
        waiting = self.waiting[rows.device]
        waiting.append(rows)
        if sum(some[0].numel() for some in waiting) >= WAITING:
            self._multiply(rows.device)

    def _multiply(self, device: torch.device) -> None:
        rows = [some.unbind() for some in self.waiting.pop(device)]
        self.parts.append(gramian(list(zip(*rows, strict=True))))


class _AllTasks(torch.autograd.Function):
    """Shows a tensor that stands for K tasks under `torch.vmap` as what it is, `[K, *shape]`; gives back zeros."""

    @staticmethod
    def forward(tensor: Tensor, tasks: int, show: Callable[[Tensor], None]) -> Tensor:
        """Is called where a user's hook has put one tensor in all tasks' place."""
        show(tensor.expand(tasks, *tensor.shape))
        return tensor.new_zeros(()).expand(tensor.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: there is no second derivative."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int, None, None], tensor: Tensor, tasks: int, show: Callable[[Tensor], None]
    ) -> tuple[Tensor, None]:
        """Is called with the tasks in one of the dimensions."""
        rows = tensor.movedim(in_dims[0], 0)
        show(rows)
        return rows.new_zeros(()).expand(rows.shape[1:]), None
