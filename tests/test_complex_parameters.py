"""Complex parameters are balanced as their real and imaginary parts would be."""

import pytest
import torch
from networks import TASKS, batch
from torch import nn

import equipoise as eq
from equipoise.registry.aggregators import AGGREGATORS

NAMES = [*AGGREGATORS, "ew", "mao"]


class Spectral(nn.Module):
    """`|x W|` with a complex `W`: one parameter, or its real and imaginary parts in one real parameter."""

    def __init__(self, parts):
        super().__init__()
        torch.manual_seed(0)
        weight = torch.randn(4, 6, dtype=torch.complex128)
        self.weight = nn.Parameter(torch.view_as_real(weight) if parts else weight)
        self.heads = nn.ModuleDict({task: nn.Linear(6, 2).double() for task in TASKS})

    def losses(self, x):
        weight = self.weight if self.weight.is_complex() else torch.view_as_complex(self.weight)
        z = (x.to(weight.dtype) @ weight).abs()
        return {task: (k + 1) * (self.heads[task](z) - k).square().mean() for k, task in enumerate(TASKS)}


def train(name, parts, **options):
    model = Spectral(parts)
    torch.manual_seed(1)
    method = eq.make_method(name, model, TASKS, lr=0.01, **options)
    for index in range(4):
        method.zero_grad()
        method.backward(model.losses(batch(index)))
        method.step()
    return torch.view_as_real(model.weight.detach()) if not parts else model.weight.detach()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", NAMES)
def test_as_real_and_imaginary_parts(name):
    torch.testing.assert_close(train(name, parts=False), train(name, parts=True), rtol=1e-9, atol=1e-11)


def test_streaming():
    found = train("mao", parts=False, streaming=True)
    torch.testing.assert_close(found, train("mao", parts=True), rtol=1e-9, atol=1e-11)


def test_representation():
    """A complex representation has the Gramian of its parts."""
    weights = []
    for parts in (False, True):
        model = Spectral(parts=False)
        z = batch(0).to(torch.complex128) @ model.weight
        features = torch.view_as_real(z) if parts else z
        size = features.norm(dim=-1) if parts else features.abs()
        losses = {task: (k + 1) * (model.heads[task](size) - k).square().mean() for k, task in enumerate(TASKS)}
        weights.append(eq.Balancer(TASKS, aggregator=eq.MGDA()).backward(losses, representation=features))
    torch.testing.assert_close(weights[0], weights[1])


def test_a_matrix_of_torchjd_is_real():
    pytest.importorskip("torchjd")
    with pytest.raises(TypeError, match="TrimmedMean takes real parameters only"):
        train("torchjd:TrimmedMean", parts=False, trim_number=1)
