"""Networks at random, whose tasks share what they share: every way gives the gradients of separate passes."""

import pytest
import torch
from torch import nn

import equipoise as eq

WAYS = {
    "one by one": {},
    "two at once": {"chunk_size": 2},
    "all at once": {"chunk_size": 8},
    "layers": {"engine": "layers"},
}


class Weighed(eq.GramianAggregator):
    """Weights by position, and what it was shown."""

    def weights(self, gramian, losses):
        self.seen = gramian
        return torch.arange(1.0, len(losses) + 1, dtype=torch.float64)


def network(seed):
    """Layers that take any of the values before them, some used twice; and losses on any of their outputs."""
    torch.manual_seed(seed)
    layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(int(torch.randint(1, 5, ())))).double()
    values = [torch.randn(4, 3, dtype=torch.float64)]
    for _ in range(int(torch.randint(2, 7, ()))):
        layer = layers[int(torch.randint(len(layers), ()))]
        one, other = (values[int(torch.randint(len(values), ()))] for _ in range(2))
        values.append(layer(one).tanh() + (other if torch.rand(()) < 0.3 else 0))
    trained = [value for value in values if value.requires_grad]
    losses = {}
    for index in range(int(torch.randint(2, 5, ()))):
        head = nn.Linear(3, 1).double()
        layers.append(head)
        some = [trained[int(torch.randint(len(trained), ()))] for _ in range(1 + int(torch.rand(()) < 0.3))]
        losses[f"t{index}"] = (head(sum(some)) - index).square().mean()
    return layers, losses


@pytest.mark.parametrize("way", WAYS)
def test_gramian_and_gradients_are_those_of_separate_passes(way):
    """Of a leaf that lies above where the graphs merge for one task, and below it for others, too."""
    balanced = 0
    for seed in range(120):
        model, losses = network(seed)
        parameters = list(model.parameters())
        rows = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses.values()]
        shared = [sum(row[i] is not None for row in rows) > 1 for i in range(len(parameters))]
        taking = [row for row in rows if any(g is not None and s for g, s in zip(row, shared, strict=True))]
        if len(taking) < 2:
            continue
        balanced += 1
        flat = torch.stack(
            [
                torch.cat(
                    [
                        (torch.zeros_like(p) if g is None else g).flatten()
                        for p, g, s in zip(parameters, row, shared, strict=True)
                        if s
                    ]
                )
                for row in taking
            ]
        )
        aggregator = Weighed()
        eq.Balancer(list(losses), aggregator=aggregator, **WAYS[way]).backward(losses)
        torch.testing.assert_close(
            aggregator.seen, flat @ flat.T, rtol=1e-10, atol=1e-12, msg=lambda m, s=seed: f"{s}: {m}"
        )
        for i, parameter in enumerate(parameters):
            weights = iter(range(1, len(taking) + 1))
            weight = [float(next(weights)) if any(row is one for one in taking) else 1.0 for row in rows]
            parts = [
                (w if shared[i] else 1.0) * row[i] for w, row in zip(weight, rows, strict=True) if row[i] is not None
            ]
            if parts:
                torch.testing.assert_close(
                    parameter.grad, sum(parts), rtol=1e-10, atol=1e-12, msg=lambda m, s=seed: f"{s}: {m}"
                )
            else:
                assert parameter.grad is None
    assert balanced > 60


def test_a_function_that_writes_to_its_gradient_at_the_cut():
    """With a probe the gradients at the cut are used twice."""

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient.mul_(2.0)

    results = []
    for probed in (True, False):
        torch.manual_seed(0)
        trunk, heads = (
            nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4)).double(),
            nn.ModuleList(nn.Linear(4, 1) for _ in "ab").double(),
        )
        z = Doubled.apply(trunk(torch.randn(5, 3, dtype=torch.float64)))
        probe = trunk[1] if probed else None
        balancer = eq.Balancer(["a", "b"], aggregator=Weighed(), probe=probe)
        balancer.backward(
            {name: (head(z) - i).square().mean() for i, (name, head) in enumerate(zip("ab", heads, strict=True))}
        )
        results.append([p.grad for p in trunk.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
