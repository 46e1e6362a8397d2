"""Which leaf's part of the Gramian is computed in which way: found in the graph, and decided by shapes alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, Node

from equipoise.gradients.graph.compiled import compiled_graph
from equipoise.gradients.layers.rules import RULES, VIEWS, Cost, Rule, Sizes, explicit_cost
from equipoise.gradients.shards import is_sharded

CALL = 1 << 18
"""Multiplications in whose time a CPU calls a node with its hooks once."""


class Unsupported(Exception):  # noqa: N818 - an answer rather than an error
    """The Gramian cannot be computed layer by layer. Nothing has changed; rows are the other way."""


@dataclass(frozen=True)
class Use:
    """A leaf is the weight of one node, and has no other use."""

    leaf: Tensor
    node: Node
    rule: Rule

    @property
    def edge(self) -> GradientEdge:
        """Where the node hands on the weight's gradient: to the leaf, or to a view of it."""
        node, number = self.node.next_functions[self.rule.weight]
        assert node is not None
        return GradientEdge(node, number)

    @property
    def sizes(self) -> Sizes:
        """How often the weight is multiplied."""
        return self.rule.sizes(self.node, self.leaf)

    @property
    def packed(self) -> bool:
        """Whether hooks have packed the tensor that the closed form reads, as activation checkpointing does."""
        return getattr(getattr(self.node, f"_raw_saved_{self.rule.saved}"), "unpack_hook", None) is not None

    def prefers_closed(self, tasks: int) -> bool:
        """Whether the closed form can be had, and is not the more costly way."""
        return not self.packed and self.closed_cost(tasks) <= self.explicit_cost(tasks)

    def closed_cost(self, tasks: int) -> Cost:
        """What the closed form takes."""
        return self.rule.form.cost(self.sizes, tasks)

    def explicit_cost(self, tasks: int) -> Cost:
        """What the gradients themselves take."""
        return explicit_cost(self.sizes, tasks)


@dataclass(frozen=True)
class Plan:
    """How each leaf that the graph reaches is done.

    Attributes:
        explicit: those whose gradients `[K, *shape]` are computed, multiplied and dropped.
        passed: those with a closed form, by nodes that a backward pass executes on its way to others.
        ends: those with a closed form, by nodes where a backward pass can end.
    """

    explicit: list[Tensor]
    passed: list[Use]
    ends: list[Use]


class Graph:
    """The autograd graph below some edges.

    Attributes:
        roots: the nodes that the edges lead to.
        nodes: all nodes, each after those that it hands gradients on to.
        uses: for every node where its gradient comes from: (node, which of that node's inputs it is).
        leaves: leaf → its node, of the leaves asked for that the graph reaches.

    Raises:
        Unsupported: the tasks cannot go through this graph together.
    """

    def __init__(self, roots: Sequence[GradientEdge], leaves: Collection[Tensor]) -> None:
        self.roots = frozenset(edge.node for edge in roots)
        self.nodes: list[Node] = []
        self.uses: dict[Node, list[tuple[Node, int]]] = defaultdict(list)
        visited: set[Node] = set()
        stack = [(node, False) for node in self.roots]
        while stack:
            node, finished = stack.pop()
            if finished:
                self.nodes.append(node)
            elif node not in visited:
                visited.add(node)
                stack.append((node, True))
                for index, (child, _) in enumerate(node.next_functions):
                    if child is not None:
                        self.uses[child].append((node, index))
                        stack.append((child, False))
        wanted = set(leaves)
        variables = {getattr(node, "variable", None): node for node in self.nodes}
        self.leaves: dict[Tensor, Node] = {leaf: node for leaf, node in variables.items() if leaf in wanted}
        if any(isinstance(node, BackwardCFunction) and compiled_graph(node) is not None for node in self.nodes):
            raise Unsupported("The model is compiled, and a compiled graph takes one task at a time.")
        if any(is_sharded(leaf) for leaf in self.leaves):
            raise Unsupported("The parameters are sharded, and DTensors cannot be batched over the tasks.")

    def weights(self) -> list[Use]:
        """Finds the real leaves that are the weight of one node that there is a rule for, and nothing else."""
        found = [self._use(leaf, node) for leaf, node in self.leaves.items() if not leaf.is_complex()]
        return [use for use in found if use is not None]

    def _use(self, leaf: Tensor, node: Node) -> Use | None:
        """Goes up from a leaf, through views of it, as long as there is one way."""
        while node not in self.roots and len(self.uses[node]) == 1:
            ((user, index),) = self.uses[node]
            for rule in RULES.get(user.name(), ()):
                if rule.weight == index and rule.applies(user):
                    return Use(leaf, user, rule)
            if user.name() not in VIEWS:
                return None
            node = user
        return None


def plan(graph: Graph, tasks: int) -> Plan:
    """Decides for every leaf that the graph reaches how it is done with so many tasks.

    Hooks can change gradients, which a closed form would not see; it is taken only where there are none.
    """
    closed = [use for use in graph.weights() if use.prefers_closed(tasks)]
    closed = _handed_on_unchanged([use for use in closed if not _has_hooks(use)])
    users, weights = {use.node for use in closed}, {use.leaf for use in closed}
    explicit = {leaf: node for leaf, node in graph.leaves.items() if leaf not in weights}
    targets, executed = set(explicit.values()), set()
    for node in graph.nodes:
        if any(child in executed or child in targets for child, _ in node.next_functions):
            executed.add(node)
        elif node in users:
            targets.add(node)
    return Plan(
        explicit=list(explicit),
        passed=[use for use in closed if use.node in executed],
        ends=[use for use in closed if use.node not in executed],
    )


def has_node_hooks(node: Node) -> bool:
    """Whether hooks are registered on the node itself."""
    for register in (node.register_prehook, node.register_hook):
        handle = register(lambda *_: None)  # the only way to get at the node's other hooks
        hooks = handle.hooks_dict_ref()
        handle.remove()
        if hooks:
            return True
    return False


def _has_hooks(use: Use) -> bool:
    """Whether there are hooks on the leaf or around the node."""
    return bool(use.leaf._backward_hooks) or has_node_hooks(use.node)


def _handed_on_unchanged(uses: Sequence[Use]) -> list[Use]:
    """Leaves out the uses where a hook on a view of the leaf changes the gradient.

    A view hands on the memory of its gradient, a hook that changes it cannot: so one is sent through, which is a
    single zero in memory.
    """
    if not uses:
        return []
    edges = [use.edge for use in uses]
    shapes = [edge.node._input_metadata[edge.output_nr].shape for edge in edges]
    probes = [use.leaf.new_zeros(()).expand(shape) for use, shape in zip(uses, shapes, strict=True)]
    found = torch.autograd.grad(edges, [use.leaf for use in uses], probes, retain_graph=True, allow_unused=True)
    return [
        use
        for use, probe, gradient in zip(uses, probes, found, strict=True)
        if gradient is not None and gradient.data_ptr() == probe.data_ptr()
    ]


def layers_save(roots: Sequence[GradientEdge], leaves: Collection[Tensor], tasks: int) -> bool:
    """Decides from shapes alone whether `gramian_by_layers` is the better way to a weighted gradient than rows.

    Layers hold what the most costly leaf takes, and K tasks' cotangents at once; six times those of the largest output
    is what convolutions with batch normalisation were measured to hold, the most of all. Rows hold K gradients of all
    leaves. Layers take one more backward pass, with the weights, and save the gradients that have closed forms. They
    are taken where they hold at most half the numbers, with no more multiplications. Only the leaves' own are counted,
    those of nodes without a rule (see `rules.RULES`) as if there were one position, and what it takes to come by a leaf
    at all, as measured on a CPU: `CALL` a task by rows, and ten of them by layers.

    Args:
        roots: as in `gramian_by_layers`.
        leaves: as there.
        tasks: K.

    Returns:
        Whether they save; False where layers are not possible.
    """
    try:
        graph = Graph(roots, leaves)
    except Unsupported:
        return False
    uses = {use.leaf: use for use in graph.weights()}
    size = sum(leaf.numel() for leaf in graph.leaves)
    layers = [node for node in graph.nodes if not (hasattr(node, "variable") or node.name() in VIEWS)]
    outputs = max((math.prod(data.shape) for node in layers for data in node._input_metadata), default=0)
    largest = by_layers = by_rows = 0
    for leaf in graph.leaves:
        sizes = uses[leaf].sizes if leaf in uses else Sizes(1, leaf.numel(), 1)
        explicit = cost = explicit_cost(sizes, tasks)
        if leaf in uses and uses[leaf].prefers_closed(tasks):
            cost = uses[leaf].closed_cost(tasks)
        one_pass = sizes.positions * leaf.numel()  # to the layer's inputs; and as much to the weight
        largest = max(largest, cost.numbers)
        by_layers += cost.operations + (tasks + 2) * one_pass + 10 * CALL
        by_rows += explicit.operations + tasks * one_pass + tasks * leaf.numel() + tasks * CALL
    held = largest + 6 * tasks * outputs
    return 2 * held <= tasks * size + 6 * outputs and by_layers <= by_rows
