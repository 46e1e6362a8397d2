import pytest
import torch
from networks import TASKS, Network, batch
from torch import nn

from equipoise.gradients import reached_leaves


def reached_by_autograd(losses, parameters):
    """What autograd itself says: a leaf is reached if it gets a gradient."""
    return [
        {
            p
            for p in parameters
            if p.requires_grad and torch.autograd.grad(loss, p, retain_graph=True, allow_unused=True)[0] is not None
        }
        for loss in losses
    ]


def test_trunk_branch_and_heads():
    model = Network()
    losses = list(model.losses(batch(0)).values())
    found = reached_leaves(losses)
    assert [set(row) for row in found] == reached_by_autograd(losses, list(model.parameters()))
    assert set(found[0]) & set(found[1]) == set(model.shared())
    assert set(found[0]) & set(found[2]) == set(model.trunk.parameters())


def test_no_leaf_twice_and_one_order_for_all():
    model = Network()
    found = reached_leaves(list(model.losses(batch(0)).values()))
    order = list(dict.fromkeys(leaf for row in found for leaf in row))
    for row in found:
        positions = [next(i for i, other in enumerate(order) if other is leaf) for leaf in row]
        assert len(set(row)) == len(row)
        assert positions == sorted(positions)


def test_frozen_and_unused_are_not_reached():
    model = Network()
    found = {leaf for row in reached_leaves(list(model.losses(batch(0)).values())) for leaf in row}
    assert found == {p for name, p in model.named_parameters() if not name.startswith(("frozen", "unused"))}


def test_tied_weights_are_one_leaf():
    embedding = nn.Embedding(7, 3)
    decoder = nn.Linear(3, 7, bias=False)
    decoder.weight = embedding.weight
    losses = [decoder(embedding(torch.tensor([1, 2]))).sum(), embedding(torch.tensor([3])).sum()]
    assert reached_leaves(losses) == [[embedding.weight], [embedding.weight]]


def test_a_loss_that_is_itself_a_leaf():
    p = torch.tensor(2.0, requires_grad=True)
    q = torch.tensor(3.0, requires_grad=True)
    found = reached_leaves([p, p * q, p])
    assert [set(row) for row in found] == [{p}, {p, q}, {p}]
    assert [len(row) for row in found] == [1, 2, 1]


def test_detached_and_no_grad_parts_are_not_reached():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    x = torch.ones(1, 2)
    with torch.no_grad():
        hidden = first(x)
    assert set(reached_leaves([second(hidden).sum()])[0]) == set(second.parameters())
    assert set(reached_leaves([second(first(x).detach()).sum()])[0]) == set(second.parameters())


def test_a_graph_that_is_deep_and_one_that_has_many_paths():
    p = torch.ones(2, requires_grad=True)
    deep = p
    for _ in range(20_000):
        deep = deep + 1
    wide = p
    for _ in range(80):  # 2**80 paths, 80 nodes
        wide = wide * 0.5 + wide * 0.5
    assert reached_leaves([deep.sum(), wide.sum()]) == [[p], [p]]


@pytest.mark.parametrize("seed", range(5))
def test_random_graphs(seed):
    """A random layered graph of 12 leaves against autograd."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high):
        return int(torch.randint(high, (), generator=generator))

    leaves = [torch.randn(3, requires_grad=bool(draw(4))) for _ in range(12)]
    nodes = list(leaves)
    for _ in range(30):
        one, other = nodes[draw(len(nodes))], nodes[draw(len(nodes))]
        nodes.append(
            [one + other, one * other, one.tanh(), torch.cat([one, other])[1:4], one.detach() * other][draw(5)]
        )
    losses = [node.sum() for node in nodes[-4:] if node.requires_grad]
    assert losses
    assert [set(row) for row in reached_leaves(losses)] == reached_by_autograd(losses, leaves)


def test_order_of_the_losses_does_not_matter():
    model = Network()
    losses = model.losses(batch(0))
    forward = dict(zip(TASKS, reached_leaves([losses[t] for t in TASKS]), strict=True))
    backward = dict(zip(TASKS[::-1], reached_leaves([losses[t] for t in TASKS[::-1]]), strict=True))
    assert {t: set(row) for t, row in forward.items()} == {t: set(row) for t, row in backward.items()}
