"""Nodes of the autograd graph whose weight's part of the Gramian has a closed form: node → form → what it costs.

A weight `[O, I]` that is multiplied with activations `a_n` `[I]` at N positions (samples × places) has the gradients
`∂L_k/∂W = Σ_n e_kn a_nᵀ` of rank N at most, with the cotangents `e_kn` `[O]` of its outputs, so that

    ⟨∂L_k/∂W, ∂L_l/∂W⟩ = Σ_{n,m} (a_n·a_m) (e_kn·e_lm).

With few positions that is less work than the K gradients `[K, O, I]`, and less memory. Which of both is a matter of
shapes alone, and so the same in every step. Entries of W may come in any order: their products are the same.

The forms compute in float64 (float32 on a device without it) from factors in the model's precision, so that their
result is closer to the exact Gramian than that of rows, which are rounded to the model's precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import functional as F

from equipoise.gradients.gramian import BLOCK, wide_dtype


class Sizes(NamedTuple):
    """How often a weight `[outputs, inputs]` is multiplied: at so many positions, samples times places."""

    positions: int
    inputs: int
    outputs: int


class Cost(NamedTuple):
    """What it takes to get a weight's part of the Gramian from the cotangents."""

    numbers: int
    """Numbers held at a time; one in float64 counts twice."""

    operations: int
    """Multiplications."""

    def __le__(self, other: object) -> bool:
        """Whether neither is more."""
        assert isinstance(other, Cost)
        return self.numbers <= other.numbers and self.operations <= other.operations


@dataclass(frozen=True)
class Form:
    """A closed form.

    Attributes:
        gramian: takes the activations `[N, I]` (or their indices `[N]`) and the cotangents `[K, N, O]`, both in the
            model's precision; returns `[K, K]`.
        cost: what that takes, with so many tasks.
    """

    gramian: Callable[[Tensor, Tensor], Tensor]
    cost: Callable[[Sizes, int], Cost]


@dataclass(frozen=True)
class Rule:
    """How a node multiplies by its weight.

    Attributes:
        weight: which of the node's inputs the weight is.
        saved: the saved tensor that `activations` reads; one that hooks have packed is left alone.
        outputs: the dimension of the node's output that counts the weight's outputs.
        activations: gives what the weight is multiplied with: `[N, I]`, or for INDEXED `[N]`.
        form: what the products follow from.
        applies: whether the node is one of those that the form holds for.
    """

    weight: int
    saved: str
    outputs: int
    activations: Callable[[Any], Tensor]
    form: Form
    applies: Callable[[Any], bool] = lambda node: True

    def sizes(self, node: Node, weight: Tensor) -> Sizes:
        """Reads the sizes off the output's shape and the weight's."""
        shape = node._input_metadata[0].shape
        outputs = max(shape[self.outputs], 1)
        return Sizes(math.prod(shape) // outputs, weight.numel() // outputs, outputs)

    def gramian(self, node: Node, cotangents: Tensor) -> Tensor:
        """Computes the weight's part of the Gramian `[K, K]`.

        Args:
            node: the node; its saved tensors are there.
            cotangents: `[K, *shape of its output]`.

        Raises:
            RuntimeError: the saved tensor was released, or changed in place since the forward pass.
        """
        dimension = self.outputs + 1 if self.outputs >= 0 else self.outputs
        return self.form.gramian(self.activations(node), cotangents.movedim(dimension, -1).flatten(1, -2))


def explicit_cost(sizes: Sizes, tasks: int) -> Cost:
    """What the gradients `[K, O, I]` themselves and their products, block by block, take."""
    positions, inputs, outputs = sizes
    weights = inputs * outputs
    return Cost(
        numbers=tasks * weights + 2 * tasks * min(weights, BLOCK),
        operations=tasks * positions * weights + tasks**2 * weights,
    )


def _outer_gramian(activations: Tensor, cotangents: Tensor) -> Tensor:
    """`Σ_{n,m} (a_n·a_m) (e_kn·e_lm)`, by blocks of outputs: the sum over n for all l at once, then as for K rows."""
    a = activations.to(wide_dtype(activations.device))
    products = a @ a.T
    total = a.new_zeros(len(cotangents), len(cotangents))
    for some in torch.split(cotangents, max(BLOCK // max(len(a), 1), 1), dim=2):
        e = some.to(a.dtype)
        total.addmm_((products @ e).flatten(1), e.flatten(1).T)
    return total


def _outer_cost(sizes: Sizes, tasks: int) -> Cost:
    positions, inputs, outputs = sizes
    rows = tasks * positions * outputs
    return Cost(
        numbers=2 * positions * (positions + inputs) + 2 * 2 * min(rows, tasks * max(BLOCK, positions)),
        operations=positions**2 * inputs + positions * rows + tasks * rows,
    )


def _indexed_gramian(indices: Tensor, cotangents: Tensor) -> Tensor:
    """The same where the activations are one-hot: the at most N rows of W that have a gradient, then their products.

    Numbering the rows by sorting keeps the host from waiting for how many they are.
    """
    ordered, order = indices.sort()
    number = torch.zeros_like(ordered)
    number[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
    e = cotangents.to(wide_dtype(cotangents.device))
    e = torch.where((indices >= 0).unsqueeze(-1), e, 0)  # padding has no gradient
    rows = torch.zeros_like(e).index_add_(1, number, e.index_select(1, order)).flatten(1)
    return rows @ rows.T


def _indexed_cost(sizes: Sizes, tasks: int) -> Cost:
    rows = tasks * sizes.positions * sizes.outputs
    return Cost(numbers=2 * 3 * rows, operations=tasks * rows)


def _patches(node: Any) -> Tensor:
    """What each place of a convolution's output was computed from: `[N, I·kernel]`, one- or two-dimensional."""
    weight, number = node.next_functions[1]
    kernel = weight._input_metadata[number].shape[2:]
    inputs = node._saved_input
    missing = 2 - len(kernel)
    sizes = [
        (neutral,) * missing + tuple(size)
        for neutral, size in (
            (1, kernel),
            (1, node._saved_dilation),
            (0, node._saved_padding),
            (1, node._saved_stride),
        )
    ]
    patches = F.unfold(inputs.reshape(*inputs.shape[:2], *(1,) * missing, *inputs.shape[2:]), *sizes)
    return patches.transpose(1, 2).flatten(0, 1)


def _plain_convolution(node: Any) -> bool:
    return not node._saved_transposed and node._saved_groups == 1 and len(node._saved_stride) <= 2


def _looked_up(node: Any) -> Tensor:
    """The rows of the embedding that were looked up `[N]`; -1 for padding."""
    indices: Tensor = node._saved_indices.flatten()
    padding = node._saved_padding_idx  # without any it is no row's number
    return indices.masked_fill(indices == padding, -1) if 0 <= padding < node._saved_weight_sym_argsize_0 else indices


OUTER = Form(_outer_gramian, _outer_cost)
INDEXED = Form(_indexed_gramian, _indexed_cost)

RULES: dict[str, tuple[Rule, ...]] = {
    "AddmmBackward0": (  # nn.Linear with a bias
        Rule(2, "mat1", -1, lambda node: node._saved_mat1, OUTER, lambda node: node._saved_alpha == 1),
    ),
    "MmBackward0": (  # nn.Linear without, or whose inputs are not contiguous; then a weight from the left
        Rule(1, "self", -1, lambda node: node._saved_self, OUTER),
        Rule(0, "mat2", 0, lambda node: node._saved_mat2.T, OUTER),
    ),
    "ConvolutionBackward0": (Rule(1, "input", 1, _patches, OUTER, _plain_convolution),),
    "EmbeddingBackward0": (
        Rule(
            0,
            "indices",
            -1,
            _looked_up,
            INDEXED,
            lambda node: not (node._saved_sparse or node._saved_scale_grad_by_freq),
        ),
    ),
}
"""All else, such as the scales and shifts of a normalisation, has gradients small enough to be held."""

VIEWS = frozenset(
    {
        "CloneBackward0",
        "PermuteBackward0",
        "ReshapeAliasBackward0",
        "SqueezeBackward0",
        "SqueezeBackward1",
        "TBackward0",
        "TransposeBackward0",
        "UnsafeViewBackward0",
        "UnsqueezeBackward0",
        "ViewBackward0",
    }
)
"""Nodes between a weight and where it is used that at most put its entries in another order."""
