"""MAML: gradients through inner steps that balance."""

import pytest
import torch
from fields.examples import example
from torch import nn

import equipoise as eq

meta = example("meta_learning.py")
TASKS = meta.TASKS
OBJECTIVES = {
    "equal": eq.Equal,
    "static": lambda: eq.Static({"value": 2.0, "slope": 1e-3}),
    "uw": eq.UW,
    "dwa": eq.DWA,
    "ema": eq.EMA,
    "rema": eq.REMA,
    "gls": lambda: eq.GeometricMean(eq.Equal()),
    "imtl-l": eq.IMTLL,
    "famo": eq.FAMO,
}


def model_of(seed=0):
    torch.manual_seed(seed)
    return meta.Wave().double()


def outer_losses(model, balancer, rate=0.02, count=2):
    """Of as many episodes, the same whenever this is called, each after two inner steps."""
    source = torch.Generator().manual_seed(5)
    met = []
    for _ in range(count):
        episode = meta.Episode(source)
        parameters = dict(model.named_parameters())
        for _ in range(2):
            with balancer.frozen():
                loss = balancer(episode.losses(model, parameters))
            gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
            parameters = {name: p - rate * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}
        met.append(episode.losses(model, parameters))
    return {task: torch.stack([found[task] for found in met]).mean() for task in TASKS}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_outer_gradients_are_finite_differences(name):
    """Of the weighted losses after two inner steps, as functions of the model's parameters; weights are held."""
    model = model_of()
    balancer = eq.Balancer(TASKS, OBJECTIVES[name]())
    rate = 1e-4 if name in ("equal", "dwa", "imtl-l") else 0.02  # these leave the slope's loss as large as it is
    source = torch.Generator().manual_seed(1)
    for _ in range(3):  # so that weights have moved
        balancer(meta.Episode(source).losses(model, dict(model.named_parameters())))
    weights = {task: float(weight) for task, weight in balancer._balancing.held.weights.items()}
    with balancer.frozen():
        balancer(outer_losses(model, balancer, rate)).backward()
    found = nn.utils.parameters_to_vector([p.grad for p in model.parameters()])
    at = nn.utils.parameters_to_vector(model.parameters()).detach()
    for _ in range(3):
        direction = torch.randn_like(at)
        sides = []
        for step in (1e-6, -1e-6):
            nn.utils.vector_to_parameters(at + step * direction, model.parameters())
            losses = outer_losses(model, balancer, rate)
            sides.append(sum(weights[task] * float(loss.detach()) for task, loss in losses.items()))
        assert float(found @ direction) == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-5)


def test_the_inner_step_has_a_part_in_it():
    """Without `create_graph` gradients would be those at the adapted parameters: another direction."""
    found = []
    for graph in (True, False):
        model = model_of()
        balancer = eq.Balancer(TASKS, eq.EMA())
        episode = meta.Episode(torch.Generator().manual_seed(5))
        losses = episode.losses(model, meta.adapted(model, balancer, episode, graph=graph))
        balancer(losses).backward()
        found.append(nn.utils.parameters_to_vector([p.grad for p in model.parameters()]))
    assert torch.nn.functional.cosine_similarity(*found, dim=0) < 0.99


@pytest.mark.parametrize("aggregator", [eq.IMTLG, eq.MGDA, eq.GradDrop])
def test_an_aggregator_balances_the_outer_step_and_refuses_the_inner_one(aggregator):
    model = model_of()
    inner, outer = eq.Balancer(TASKS, eq.EMA()), eq.Balancer(TASKS, None, aggregator(), model=model)
    losses = outer_losses(model, inner)
    rows = eq.task_gradients(losses, list(model.parameters()), retain_graph=True)
    weights = outer.backward(losses)
    if aggregator is not eq.GradDrop:
        for p, *own in zip(model.parameters(), *rows.values(), strict=True):  # heads, too: the inner steps mix them
            torch.testing.assert_close(p.grad, sum(w * g for w, g in zip(weights.values(), own, strict=True)))
    with pytest.raises(RuntimeError, match="create_graph"):
        meta.adapted(model, outer, meta.Episode(torch.Generator()))


def test_it_learns_to_learn():
    """Before and after one step on a new wave; the slope's loss would tear the inner step apart."""
    errors = meta.main(steps=120, episodes=3)
    untrained = meta.main(steps=0)
    for task in TASKS:
        assert errors[task] < 0.7 * untrained[task]


def test_an_aggregator_balances_first_order_inner_steps():
    """The second from parameters that the first has made; MGDA's point of two rows by its closed form."""
    model = model_of()
    balancer = eq.Balancer(TASKS, None, eq.MGDA())
    episode = meta.Episode(torch.Generator().manual_seed(5))
    trunk = [f"trunk.{name}" for name, _ in model.trunk.named_parameters()]
    parameters = dict(model.named_parameters())
    for _ in range(2):
        losses = episode.losses(model, parameters)
        given = [parameters[name] for name in trunk]
        one, other = (
            nn.utils.parameters_to_vector(torch.autograd.grad(losses[task], given, retain_graph=True)) for task in TASKS
        )
        share = ((other - one) @ other / (one - other).square().sum()).clamp(0, 1)
        found = torch.autograd.grad(balancer(losses), list(parameters.values()))
        gradients = dict(zip(parameters, found, strict=True))
        expected = share * one + (1 - share) * other
        torch.testing.assert_close(nn.utils.parameters_to_vector([gradients[name] for name in trunk]), expected)
        parameters = {name: nn.Parameter((p - 1e-4 * gradients[name]).detach()) for name, p in parameters.items()}
    assert all(p.grad is None for p in model.parameters())
