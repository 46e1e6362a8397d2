"""The monitor on tables with sparse gradients: the numbers of dense tables, at the cost of the rows they touch."""

import pytest
import torch
from training_loop.sparse_tables import ROWS, TASKS, Elements, Large, Tables

import equipoise as eq

OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.05),
    "adagrad": lambda model: torch.optim.Adagrad(model.parameters(), lr=0.05),
}


def record(model, balancer, optimizer, accumulate=False, monitored=None):
    monitor = eq.BalanceMonitor(balancer, monitored or model, every=1, optimizer=optimizer)
    for step in range(3):
        if accumulate:
            balancer.backward(model.losses(step + 1), accumulate=True)
        balancer.backward(model.losses(step, ["abc", "ab", "abc"][step]))
        optimizer.step()
        optimizer.zero_grad()
        balancer.zero_grad()
    return monitor.records


def assert_close(found, expected):
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
    elif expected is None:
        assert found is None
    else:
        assert found == pytest.approx(expected, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("aggregator", [None, eq.MGDA])
def test_numbers_are_those_of_dense_tables(aggregator, accumulate, optimizer):
    found = []
    for sparse in (True, False):
        model = Tables(sparse)
        balancer = eq.Balancer(TASKS, aggregator=aggregator and aggregator())
        found.append(record(model, balancer, OPTIMIZERS[optimizer](model), accumulate))
    assert_close(found[0], found[1])


def test_mao_by_hand():
    """The second step: `|g| · η √(1 − β₂²) / (√v + ε)` on touched rows, and no distance on the others."""
    model = Tables(sparse=True)
    optimizer = eq.MAO(model.parameters(), TASKS, lr=0.05)
    monitor = eq.BalanceMonitor(optimizer, model, every=1)
    squares = {}
    for step in range(2):
        losses = model.losses(step)
        for task in TASKS:
            g = torch.autograd.grad(losses[task], model.items.weight, retain_graph=True, allow_unused=True)[0]
            if g is not None:
                g, touched = g.to_dense(), torch.zeros(len(g)).index_fill(0, g._indices()[0], 1).bool()
                square = squares.setdefault(task, torch.zeros_like(g))
                square[touched] = 0.999 * square[touched] + 0.001 * g[touched].square()
                moved = g.abs() * 0.05 * (1 - 0.999 ** (step + 1)) ** 0.5 / (square.sqrt() + 1e-8)
                expected = {"gradient": g.norm(), "contribution": moved.where(touched[:, None], 0.0).mean()}
                squares[task, "numbers"] = expected
        optimizer.backward(losses)
        optimizer.step()
        optimizer.zero_grad()
    place = monitor.recording.layers.index("items")
    for task in TASKS:
        for quantity in ("gradient", "contribution"):
            found = monitor.records[1][quantity][task][place]
            if (task, "numbers") in squares:
                assert found == pytest.approx(squares[task, "numbers"][quantity].item(), rel=1e-9)
            else:
                assert found is None


def test_sparse_adam_beside_the_optimizer_that_is_watched():
    found = []
    for sparse in (True, False):
        model = Tables(sparse)
        optimizer = torch.optim.AdamW(model.others(), lr=0.05)
        monitor = eq.BalanceMonitor(balancer := eq.Balancer(TASKS), model, every=1, optimizer=optimizer)
        tables = (torch.optim.SparseAdam if sparse else torch.optim.SGD)(model.tables(), lr=1e-30)
        for step in range(2):
            balancer.backward(model.losses(step))
            optimizer.step()
            tables.step()
            model.zero_grad()
        found.append(monitor.records)
    assert "trunk" in monitor.recording.layers
    assert_close(found[0], found[1])


@pytest.mark.parametrize("name", ["none", "mgda", "mao"])
def test_a_sample_costs_what_its_rows_cost(name):
    model = Large()
    aggregator = eq.MGDA() if name == "mgda" else None
    mao = eq.MAO(model.parameters(), ["a", "b"])
    method = mao if name == "mao" else eq.Balancer(["a", "b"], aggregator=aggregator)
    optimizer = mao if name == "mao" else torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = eq.BalanceMonitor(method, model, every=1, **({} if name == "mao" else {"optimizer": optimizer}))
    for _ in range(2):
        with Elements() as elements:
            method.backward(model.losses())
            optimizer.step()
            optimizer.zero_grad()
    assert len(monitor.records) == 2
    assert 0 < elements.made < ROWS // 20
