import pytest
import torch
from networks import TASKS, Network, batch

import equipoise as eq


def gradients_of(model, x, tasks):
    """Task → its gradient on what all share, one vector; zeros where it does not reach."""
    shared = [model.trunk.weight, model.trunk.bias]
    return {
        task: torch.cat([g.flatten() for g in torch.autograd.grad(model.losses(x, [task])[task], shared)])
        for task in tasks
    }


@pytest.mark.parametrize("every", [1, 3])
def test_the_weights_are_algorithm_1s(every):
    model = Network().double()
    balancer = eq.Balancer(TASKS, None, eq.LRAnnealing("b", 0.3), shared=model.trunk, every=every)
    expected = dict.fromkeys(TASKS, 1.0)
    for index, tasks in enumerate(["abc", "abc", "ab", "bc", "abc", "ac", "abc"]):
        x = batch(index)
        rows = gradients_of(model, x, tasks)
        if index % every == 0 and "b" in tasks:
            for task in set(tasks) - {"b"}:
                expected[task] = 0.7 * expected[task] + 0.3 * (rows["b"].abs().max() / rows[task].abs().mean()).item()
        model.zero_grad()
        weights = balancer.backward(model.losses(x, tasks))
        assert {task: w.item() for task, w in weights.items()} == pytest.approx({t: expected[t] for t in tasks})
        total = sum(expected[task] * row for task, row in rows.items())
        found = torch.cat([model.trunk.weight.grad.flatten(), model.trunk.bias.grad])
        torch.testing.assert_close(found, total, rtol=1e-9, atol=1e-12)


def test_it_holds_its_weights_in_frozen_steps():
    model = Network().double()
    balancer = eq.Balancer(TASKS, None, eq.LRAnnealing(), model=model)
    before = balancer.backward(model.losses(batch(0)))
    with balancer.frozen():
        assert balancer.backward(model.losses(batch(1))) == before


def test_the_registry_takes_statistics_in_every_tenth_step():
    model = Network()
    method = eq.make_method("lr-annealing", model, TASKS, residual="c")
    for index in range(11):
        method.backward(model.losses(batch(index)))
        assert ("held" in method.balancer.way) == (index % 10 > 0)


def test_errors():
    with pytest.raises(ValueError, match="residual: unknown task 'd'"):
        eq.Balancer(TASKS, aggregator=eq.LRAnnealing("d"))
    with pytest.raises(ValueError, match="alpha must be a finite number > 0 and ≤ 1, found 0"):
        eq.LRAnnealing(alpha=0)
