"""The physics-informed network of the examples, at a tiny size."""

import runpy
from pathlib import Path

import torch
from networks import assert_same

import equipoise as eq

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "physics_informed.py"))
TASKS, losses_of = EXAMPLE["TASKS"], EXAMPLE["losses_of"]


def tiny():
    torch.manual_seed(0)
    points = {task: x.detach().double() for task, x in EXAMPLE["sample"](60, 40, 10).items()}
    points["residual"].requires_grad_()
    return EXAMPLE["network"](12).double(), points


def values(model, points):
    return {task: loss.detach() for task, loss in losses_of(model, points).items()}


def test_the_wave_solves_the_equation():
    """The exact solution in the network's place has no loss, and points on all four sides are on the boundary."""
    _, points = tiny()
    losses = values(lambda x: torch.sin(x @ EXAMPLE["WAVE"].double() + 0.5), points)
    torch.testing.assert_close(losses, dict.fromkeys(TASKS, torch.zeros((), dtype=torch.float64)), rtol=0, atol=1e-12)
    edge = points["boundary"]
    assert (edge.abs() == 1).any(1).all()
    assert sorted(edge[edge.abs() == 1].tolist()) == [-1.0] * 20 + [1.0] * 20
    assert ((edge.abs() == 1).sum(0) == 20).all()


def test_collocation_points_are_inputs():
    """Weights are IMTL-G's of the gradients by the parameters alone; the points get their plain gradient."""
    model, points = tiny()
    losses, parameters = losses_of(model, points), list(model.parameters())
    rows = []
    for loss in losses.values():
        found = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([gradient.flatten() for gradient in found]))
    (by_points,) = torch.autograd.grad(losses["residual"], points["residual"])
    weights = eq.Balancer(TASKS, aggregator=eq.IMTLG()).backward(losses_of(model, points))
    combined = sum(weights[task] * row for task, row in zip(TASKS, rows, strict=True))
    torch.testing.assert_close(sum(weights.values()), torch.ones((), dtype=torch.float64))
    projections = torch.stack([combined @ row / row.norm() for row in rows])
    torch.testing.assert_close(projections, projections.mean().expand(3), rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in parameters]), combined)
    torch.testing.assert_close(points["residual"].grad, by_points)


def test_balanced_networks_keep_to_the_boundary():
    """With equal weights the residual wins: the network becomes 0, which solves the equation and no boundary."""
    found = {}
    for name, objective in (("ew", eq.Equal()), ("imtl-g", eq.EMA())):
        torch.manual_seed(2)
        model, points = EXAMPLE["network"](30), EXAMPLE["sample"](60, 40, 10)
        EXAMPLE["train"](name, model, points, 200)
        EXAMPLE["polish"](eq.Balancer(TASKS, objective), model, points, 3)
        found[name] = values(model, points)
    assert found["ew"]["boundary"] > 0.3
    assert found["imtl-g"]["boundary"] < 0.1 * found["ew"]["boundary"]


def test_lbfgs_lowers_what_is_held_and_teaches_nothing():
    """Each step learns from one evaluation of the losses, the first, and lowers their sum with the weights found."""
    model, points = tiny()
    balancer, twin = (eq.Balancer(TASKS, eq.EMA()) for _ in range(2))
    for _ in range(3):
        before = values(model, points)
        weights = twin.backward(losses_of(model, points))
        EXAMPLE["polish"](balancer, model, points, 1)
        assert_same(balancer.state_dict(), twin.state_dict())
        after = values(model, points)
        assert sum(weights[task] * after[task] for task in TASKS) < sum(weights[task] * before[task] for task in TASKS)


def test_main():
    errors = EXAMPLE["main"](steps=(1, 0))
    assert list(errors) == EXAMPLE["METHODS"]
    for (found,) in errors.values():
        assert 0.5 < found < 5  # of a network that knows nothing
