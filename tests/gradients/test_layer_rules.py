"""Each node's closed form: it is taken where it should be, and gives what the gradients themselves give."""

from dataclasses import dataclass

import pytest
import torch
from layered_networks import doubles
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F

from equipoise.gradients.layers import gramian_by_layers
from equipoise.gradients.layers.plan import Graph, plan
from equipoise.gradients.layers.rules import RULES, Sizes, explicit_cost

K = 4


@dataclass
class Case:
    """How a weight of this shape is used; `sizes` are those that the rule has to find."""

    node: str
    use: object
    weight: tuple[int, ...]
    sizes: Sizes

    def output(self):
        """Returns the output, the weight, and another leaf, which lies below but for embeddings."""
        torch.manual_seed(0)
        weight, shift = nn.Parameter(doubles(*self.weight)), nn.Parameter(doubles())
        return self.use(weight, shift), weight, shift


CASES = {
    "linear": Case(
        "AddmmBackward0", lambda w, s: F.linear(doubles(3, 20) + s, w, doubles(10)), (10, 20), Sizes(3, 20, 10)
    ),
    "linear on tokens": Case(
        "AddmmBackward0", lambda w, s: F.linear(doubles(2, 3, 40) + s, w, doubles(10)), (10, 40), Sizes(6, 40, 10)
    ),
    "linear without bias": Case(
        "MmBackward0", lambda w, s: F.linear(doubles(2, 2, 40) + s, w), (10, 40), Sizes(4, 40, 10)
    ),
    "linear on what is not contiguous": Case(
        "MmBackward0",
        lambda w, s: F.linear(doubles(2, 3, 40).transpose(0, 1) + s, w, doubles(10)),
        (10, 40),
        Sizes(6, 40, 10),
    ),
    "weight from the right": Case("MmBackward0", lambda w, s: (doubles(3, 20) * s) @ w, (20, 10), Sizes(3, 20, 10)),
    "weight from the left": Case("MmBackward0", lambda w, s: w @ (doubles(20, 3) + s), (10, 20), Sizes(3, 20, 10)),
    "a view of a weight": Case(
        "MmBackward0",
        lambda w, s: (doubles(3, 20) + s) @ w.permute(2, 0, 1).reshape(20, 10),
        (2, 5, 20),
        Sizes(3, 20, 10),
    ),
    "convolution": Case(
        "ConvolutionBackward0",
        lambda w, s: F.conv2d(doubles(2, 6, 5, 7) + s, w, doubles(8), stride=(2, 3), padding=(0, 1), dilation=(1, 2)),
        (8, 6, 3, 2),
        Sizes(12, 36, 8),
    ),
    "convolution in one dimension": Case(
        "ConvolutionBackward0",
        lambda w, s: F.conv1d(doubles(2, 6, 9) + s, w, stride=2, padding=1),
        (8, 6, 5),
        Sizes(8, 30, 8),
    ),
    "embedding": Case(
        "EmbeddingBackward0",
        lambda w, s: F.embedding(torch.tensor([[3, 1, 3], [59, 0, 1]]), w) * s,
        (60, 5),
        Sizes(6, 60, 5),
    ),
    "embedding with padding": Case(
        "EmbeddingBackward0",
        lambda w, s: F.embedding(torch.tensor([3, 1, 59, 3, 1, 0]), w, padding_idx=1) * s,
        (60, 5),
        Sizes(6, 60, 5),
    ),
}


def rows_of(output, leaves, cotangents):
    rows = [torch.autograd.grad(output, leaves, cotangent, retain_graph=True) for cotangent in cotangents]
    return torch.stack([torch.cat([gradient.flatten() for gradient in row]) for row in rows])


@pytest.mark.parametrize("case", CASES)
def test_closed_form(case):
    case = CASES[case]
    output, weight, shift = case.output()
    graph = Graph([get_gradient_edge(output)], [weight, shift])
    (use,) = graph.weights()
    assert use.leaf is weight
    assert use.node.name() == case.node
    assert use.sizes == case.sizes
    cotangents = doubles(K, *use.node._input_metadata[0].shape)
    expected = rows_of(GradientEdge(use.node, 0), [weight], cotangents)
    found = use.rule.gramian(use.node, cotangents)
    torch.testing.assert_close(found, expected @ expected.T, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("wanted", [slice(0, 1), slice(0, 2)])  # the weight alone, and with a leaf below it
@pytest.mark.parametrize("case", CASES)
def test_it_is_taken_and_the_gradient_is_never_computed(case, wanted, monkeypatch):
    case = CASES[case]
    output, *leaves = case.output()
    leaves, cotangents = leaves[wanted], doubles(K, *output.shape)
    graph = Graph([get_gradient_edge(output)], leaves)
    (use,) = graph.weights()
    ways = plan(graph, K)
    assert [*ways.passed, *ways.ends] == [use]
    assert ways.explicit == leaves[1:]
    expected = rows_of(output, leaves, cotangents)
    use.leaf.register_hook(lambda gradient: pytest.fail("the gradient was computed"))
    monkeypatch.setattr("equipoise.gradients.layers.plan._has_hooks", lambda use: False)
    monkeypatch.setattr("equipoise.gradients.layers.plan._handed_on_unchanged", lambda uses: uses)
    found = gramian_by_layers([get_gradient_edge(output)], [cotangents], leaves)
    torch.testing.assert_close(found, expected @ expected.T, rtol=1e-12, atol=1e-10)


def test_only_the_lowest_of_several_layers_is_an_end():
    """Whose cotangents wait for the end of the backward pass, where those of others are dropped at once."""
    model = nn.Sequential(*[nn.Linear(20, 20, bias=False) for _ in range(4)])
    output = model(torch.randn(3, 20))
    ways = plan(Graph([get_gradient_edge(output)], list(model.parameters())), K)
    assert {use.leaf for use in ways.passed} == {layer.weight for layer in model[1:]}
    assert [use.leaf for use in ways.ends] == [model[0].weight]


EXPLICIT = {
    "many positions": lambda w: F.linear(doubles(500, 20), w),
    "used twice": lambda w: F.linear(doubles(3, 20), w) + F.linear(doubles(3, 20), w),
    "a part of it": lambda w: F.linear(doubles(3, 10), w[:, :10]),
    "no view": lambda w: F.linear(doubles(3, 20), w * 2),
    "scaled": lambda w: torch.addmm(doubles(10), doubles(3, 20), w.T, alpha=0.5),
    "as a matrix for each sample": lambda w: torch.bmm(doubles(3, 2, 20), w.T.expand(3, 20, 10)),
    "in groups": lambda w: F.conv1d(doubles(1, 40, 3), w.view(10, 20, 1), groups=2),
    "transposed": lambda w: F.conv_transpose1d(doubles(1, 10, 3), w.view(10, 20, 1)),
    "scaled by frequency": lambda w: F.embedding(torch.tensor([3, 3]), w, scale_grad_by_freq=True),
    "a weight from both sides": lambda w: w @ w.T,
}


@pytest.mark.parametrize("case", EXPLICIT)
def test_where_it_does_not_hold_gradients_are_computed(case):
    torch.manual_seed(0)
    weight = doubles(10, 20).requires_grad_()
    output = EXPLICIT[case](weight)
    edges, cotangents = [get_gradient_edge(output)], doubles(K, *output.shape)
    ways = plan(Graph(edges, [weight]), K)
    assert ways.explicit == [weight]
    assert not ways.passed
    assert not ways.ends
    expected = rows_of(output, [weight], cotangents)
    found = gramian_by_layers(edges, [cotangents], [weight])
    torch.testing.assert_close(found, expected @ expected.T, rtol=1e-12, atol=1e-10)


def test_two_weights_multiplied_with_each_other():
    torch.manual_seed(0)
    left, right = doubles(30, 3).requires_grad_(), doubles(3, 40).requires_grad_()
    output = left @ right
    edges, cotangents = [get_gradient_edge(output)], doubles(K, 30, 40)
    assert len(Graph(edges, [left, right]).weights()) == 2
    expected = rows_of(output, [left, right], cotangents)
    found = gramian_by_layers(edges, [cotangents], [left, right])
    torch.testing.assert_close(found, expected @ expected.T, rtol=1e-12, atol=1e-10)


def test_nearly_opposed_gradients_keep_their_sum_in_float32():
    """What cancels is exact where products in float32 would leave noise: float64 after the cotangents."""
    torch.manual_seed(0)
    layer, x = nn.Linear(300, 200), torch.randn(4, 300)
    output = layer(x)
    first = torch.randn(4, 200)
    cotangents = torch.stack([first, -first + 1e-4 * torch.randn(4, 200)])
    edges = [get_gradient_edge(output)]
    assert plan(Graph(edges, [layer.weight]), 2).ends
    gramian = gramian_by_layers(edges, [cotangents], [layer.weight])
    rows = torch.einsum("kno,ni->koi", cotangents.double(), x.double()).flatten(1)
    torch.testing.assert_close(gramian.sum(), rows.sum(0).square().sum(), rtol=1e-6, atol=0)


def test_costs_count_what_is_multiplied():
    sizes = Sizes(positions=8, inputs=32, outputs=16)
    rule = RULES["AddmmBackward0"][0]
    closed = 8 * 8 * 32 + K * 8 * 8 * 16 + K * K * 8 * 16
    assert rule.form.cost(sizes, K).operations == closed
    assert explicit_cost(sizes, K).operations == K * 8 * 32 * 16 + K * K * 32 * 16
