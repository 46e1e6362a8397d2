"""A β-VAE and a main task with auxiliaries: what a priority comes to where a factor comes to nothing."""

import pytest
import torch
from fields.examples import example
from torch import nn

import equipoise as eq

priorities = example("priorities.py")


def test_a_priority_of_the_divergence_trades_it_for_the_reconstruction():
    little, much = (priorities.beta_vae(priority, steps=120) for priority in (0.03, 1.0))
    assert little["divergence"] > 4 * much["divergence"]
    assert little["reconstruction"] < much["reconstruction"] - 1


@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_the_encoder_falls_along_both_losses_in_the_ratio_of_the_priorities(factor):
    torch.manual_seed(0)
    model = priorities.VAE().double()
    x = priorities.digits()[0][:32].double()
    balancer = eq.Balancer(["reconstruction", "divergence"], None, eq.IMTLG(), priorities={"divergence": 0.1})
    losses = model.losses(x)
    losses["divergence"] = factor * losses["divergence"]
    encoder = list(model.encoder.parameters())
    rows = {
        task: nn.utils.parameters_to_vector(torch.autograd.grad(loss, encoder, retain_graph=True))
        for task, loss in losses.items()
    }
    balancer.backward(losses)
    found = nn.utils.parameters_to_vector([p.grad for p in encoder])
    along = {task: found @ row / row.norm() for task, row in rows.items()}
    assert float(along["divergence"] / along["reconstruction"]) == pytest.approx(0.1, rel=1e-6)


def test_auxiliaries_move_the_trunk_by_their_priority():
    """Adam's first step is η times a gradient's sign, so that MAO's is that of each task times its priority."""
    x = priorities.digits()[0][:32].double()
    torch.manual_seed(0)
    trunk, head, other = nn.Linear(64, 16).double(), nn.Linear(16, 10).double(), nn.Linear(16, 64).double()
    optimizer = eq.MAO(trunk.parameters(), ["class", "pixels"], lr=0.01, eps=1e-14, priorities={"pixels": 0.25})
    z = trunk(x).tanh()
    losses = {"class": head(z).exp().mean(), "pixels": 1e-3 * (other(z) - x).square().mean()}
    rows = {task: torch.autograd.grad(loss, trunk.weight, retain_graph=True)[0] for task, loss in losses.items()}
    before = trunk.weight.detach().clone()
    optimizer.backward(losses)
    optimizer.step()
    expected = before - 0.01 * (rows["class"].sign() + 0.25 * rows["pixels"].sign())
    torch.testing.assert_close(trunk.weight.detach(), expected, rtol=1e-6, atol=1e-7)


def test_auxiliaries_that_are_wanted_more_are_learned_better():
    little, much = (priorities.auxiliaries(priority, steps=60) for priority in (0.01, 1.0))
    assert much["pixels"] < 0.8 * little["pixels"]
    assert little["class"] > 0.3
