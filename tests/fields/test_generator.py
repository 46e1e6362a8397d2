"""A GAN: the discriminator is reached by the generator's losses, and not trained by them."""

import copy

import pytest
import torch
from fields.examples import example

import equipoise as eq

gan = example("generator.py")
TASKS = gan.GENERATOR_TASKS
AGGREGATORS = {
    "none": lambda: None,
    "gradnorm": eq.GradNorm,
    "imtl-g": eq.IMTLG,
    "mgda": eq.MGDA,
    "pcgrad": lambda: eq.PCGrad(seed=0),
    "cagrad": eq.CAGrad,
    "nash-mtl": eq.NashMTL,
    "graddrop": lambda: eq.GradDrop(leak=0.5, seed=0),
}
GRAMIAN = [name for name in AGGREGATORS if name not in ("none", "graddrop")]
CASES = [*((name, "all") for name in AGGREGATORS), *((name, how) for name in GRAMIAN for how in ("probe", "layers"))]


def networks():
    torch.manual_seed(0)
    return gan.Generator().double(), gan.Discriminator().double(), *torch.rand(2, 12, 32, dtype=torch.float64)


def losses_of(*given):
    torch.manual_seed(1)  # the noise
    return gan.generator_losses(*given)


def gradients(module):
    return [p.grad for p in module.parameters()]


@pytest.mark.parametrize(("name", "how"), CASES)
def test_a_discriminator_changes_nothing_and_gets_its_plain_gradient(name, how):
    """With it frozen, weights and the generator's gradients are the same to the last bit."""
    results = []
    for frozen in (False, True):
        generator, discriminator, upper, lower = networks()
        options = {"probe": {"probe": generator.last}, "layers": {"engine": "layers"}, "all": {}}[how]
        balancer = eq.Balancer(TASKS, eq.EMA(), AGGREGATORS[name](), model=generator, **options)
        losses = losses_of(generator, discriminator, upper, lower)
        plain = sum(loss / loss.detach() for loss in losses.values())  # EMA's first weights are the losses' inverses
        judged = list(discriminator.features.parameters())
        expected = torch.autograd.grad(plain, judged)
        discriminator.requires_grad_(not frozen)
        weights = balancer.backward(losses_of(generator, discriminator, upper, lower))
        if frozen:
            assert gradients(discriminator) == [None] * 6
        else:
            torch.testing.assert_close(gradients(discriminator.features), list(expected))
        results.append((weights, gradients(generator)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_mao_of_the_generator_moves_the_generator_alone():
    results = []
    for frozen in (False, True):
        generator, discriminator, upper, lower = networks()
        before = copy.deepcopy(discriminator.state_dict())
        discriminator.requires_grad_(not frozen)
        optimizer = eq.MAO(generator.parameters(), TASKS, lr=0.1, max_norm=0.01)
        for _ in range(2):
            optimizer.backward(losses_of(generator, discriminator, upper, lower))
            optimizer.step()
            optimizer.zero_grad()
        torch.testing.assert_close(discriminator.state_dict(), before, rtol=0, atol=0)
        results.append(list(generator.parameters()))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_without_model_the_discriminator_would_have_a_say():
    """What `model=` is for: its features' gradients are of two tasks, and would be balanced as shared."""
    weights = []
    for given in (True, False):
        generator, discriminator, upper, lower = networks()
        balancer = eq.Balancer(TASKS, aggregator=eq.IMTLG(), model=generator if given else None)
        weights.append(balancer.backward(losses_of(generator, discriminator, upper, lower)))
    assert any(abs(weights[0][task] - weights[1][task]) > 1e-3 for task in TASKS)


def test_two_balancers_in_one_loop_do_not_see_each_other():
    """The generator's steps are those that it makes by itself against the discriminators that it met."""
    generator, discriminator, upper, lower = networks()
    twin = copy.deepcopy(generator)
    judging = eq.Balancer(gan.DISCRIMINATOR_TASKS, eq.EMA(), eq.MGDA(), model=discriminator)
    drawing, alone = (eq.Balancer(TASKS, eq.EMA(), eq.MGDA(), model=network) for network in (generator, twin))
    judge, drawer, other = (torch.optim.Adam(m.parameters(), lr=0.01) for m in (discriminator, generator, twin))
    for _ in range(3):
        judge.zero_grad()
        losses = gan.discriminator_losses(generator, discriminator, upper, lower)
        rows = [torch.autograd.grad(loss, discriminator.parameters(), retain_graph=True) for loss in losses.values()]
        weights = judging.backward(losses)
        for p, *own in zip(discriminator.parameters(), *rows, strict=True):  # and nothing of the generator's losses
            torch.testing.assert_close(p.grad, sum(w * g for w, g in zip(weights.values(), own, strict=True)))
        judge.step()
        met = copy.deepcopy(discriminator).requires_grad_(False)
        for balancer, network, against, optimizer in (
            (drawing, generator, discriminator, drawer),
            (alone, twin, met, other),
        ):
            optimizer.zero_grad()
            balancer.backward(losses_of(network, against, upper, lower))
            optimizer.step()
        torch.testing.assert_close(generator.state_dict(), twin.state_dict(), rtol=0, atol=0)


def test_it_draws_with_contrast():
    drawn = gan.main(steps=250)
    assert drawn["error"] < 0.25
    assert drawn["contrast"] > 0.4
