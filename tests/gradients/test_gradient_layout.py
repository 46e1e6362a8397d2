"""What ends in `.grad`: laid out like its parameter, sparse where autograd gives it so, and memory of its own."""

import pytest
import torch
from torch import nn

import equipoise as eq


class Sum(eq.GramianAggregator):
    """Weights 1: the result has to be that of `sum(losses).backward()`."""

    def weights(self, gramian, losses):
        return torch.ones_like(losses)


def vector(*numbers):
    return nn.Parameter(torch.tensor(numbers, dtype=torch.float64))


def squeezed():
    p, q = vector(2.0), vector(3.0)
    return {"a": p.view(()), "b": q.view(()) + p.view(())}, [p, q]


def loss_is_a_leaf():
    p = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    return {"a": p, "b": p * p}, [p]


def added():
    p, q = vector(1.0, 2.0), vector(3.0, 4.0)
    return {"a": ((p + q) ** 2).sum(), "b": (p + q).sum()}, [p, q]


def concatenated():
    p, q, r = vector(1.0, 2.0, 3.0, 4.0), vector(5.0, 6.0), vector(7.0, 8.0)
    z = torch.cat([q, r]) + p
    return {"a": (z**2).sum(), "b": (z**3).sum()}, [p, q, r]


def concatenated_the_other_way():
    p, q, r = vector(1.0, 2.0, 3.0, 4.0), vector(5.0, 6.0), vector(7.0, 8.0)
    z = p + torch.cat([r, q])
    return {"a": (z**2).sum(), "b": (z**3).sum()}, [r, q, p]


def expanded():
    p, q = vector(1.0, 2.0), nn.Parameter(torch.tensor(3.0, dtype=torch.float64))
    return {"a": p.sum() + q.expand(5).sum(), "b": 2 * p.sum() + q}, [p, q]


def transposed():
    p = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
    x = torch.randn(3, 2, dtype=torch.float64)
    return {"a": (p.T @ x).square().sum(), "b": (p.T @ x).sum()}, [p]


def strided():
    p = nn.Parameter(torch.randn(4, 3, dtype=torch.float64).T)
    return {"a": (p**2).sum(), "b": p.sum()}, [p]


def channels_last():
    layer = nn.Conv2d(3, 4, 3).double().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    return {"a": layer(x).square().mean(), "b": layer(x).mean()}, list(layer.parameters())


def sparse():
    layer = nn.Embedding(6, 3, sparse=True, dtype=torch.float64)
    rows = torch.tensor([1, 4, 1])
    return {"a": layer(rows).square().sum(), "b": layer(rows).sum()}, [layer.weight]


def empty():
    p, q, r = vector(), vector(), vector(1.0)
    return {"a": p.sum() + q.sum() + r.sum(), "b": (p * q).sum() + r.sum()}, [p, q, r]


CASES = [
    squeezed,
    loss_is_a_leaf,
    added,
    concatenated,
    concatenated_the_other_way,
    expanded,
    transposed,
    strided,
    channels_last,
    sparse,
    empty,
]


def expected_gradients(case):
    torch.manual_seed(0)
    losses, parameters = case()
    sum(losses.values()).backward()
    return [p.grad.to_dense().clone() for p in parameters]


@pytest.mark.parametrize("way", ["together", "by task", "scaled", "counted", "mao"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_equals_plain_backward_and_owns_its_memory(case, way):
    expected = expected_gradients(case)
    torch.manual_seed(0)
    losses, parameters = case()
    scaler = None
    if way == "mao":  # parameters that MAO does not hold
        other = nn.Parameter(torch.ones(1))
        weights = eq.MAO([other], ["a", "b"]).backward(losses)
    elif way == "together":
        weights = eq.Balancer(["a", "b"]).backward(losses)
    else:
        balancer = eq.Balancer(["a", "b"], aggregator=Sum())
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if way == "scaled" else None
        counts = {"a": 3, "b": 5} if way == "counted" else None
        weights = balancer.backward(losses, scaler=scaler, counts=counts)
    factor = 1.0 if scaler is None else 8.0
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad.to_dense(), factor * gradient, rtol=1e-12, atol=1e-12)
        if way != "together" and case is not sparse:
            assert parameter.grad.layout == torch.strided
            assert parameter.grad.stride() == parameter.stride()
        assert parameter.grad.is_sparse == (case is sparse)
    if way == "together" or case is sparse:
        return  # PyTorch's own accumulation: what shares memory there is its affair
    for index, parameter in enumerate(parameters):
        parameter.grad.fill_(float(index + 10))
    for index, parameter in enumerate(parameters):
        assert (parameter.grad == index + 10).all()
    assert weights["a"].item() == weights["b"].item() == 1.0


def test_returned_weights_are_not_the_gradients():
    p = vector(2.0)
    weights = eq.Balancer(["a", "b"]).backward({"a": p.view(()), "b": vector(1.0).view(())})
    p.grad.mul_(7)
    assert weights["a"].item() == 1.0


def test_parameters_of_an_objective_own_their_gradients():
    class Offsets(eq.Objective):
        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.zeros((), dtype=torch.float64))
            self.other = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, losses):
            return losses.sum() + (self.one + self.other)

    balancer = eq.Balancer(["a", "b"], Offsets())
    for _ in range(3):
        p = vector(2.0)
        balancer.backward({"a": p.sum(), "b": (p * p).sum()})
    assert balancer.objective.one.grad.item() == 3.0
    assert balancer.objective.other.grad.item() == 3.0


def test_mixed_dtypes_keep_theirs():
    half, single = nn.Parameter(torch.ones(3, dtype=torch.bfloat16)), nn.Parameter(torch.ones(3))
    z = half.float() * single
    eq.Balancer(["a", "b"], aggregator=Sum()).backward({"a": z.sum(), "b": (z**2).sum().bfloat16()})
    assert half.grad.dtype == torch.bfloat16
    assert single.grad.dtype == torch.float32
    assert half.grad.tolist() == single.grad.tolist() == [3.0, 3.0, 3.0]
