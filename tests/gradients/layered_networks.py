"""Small networks, one for each kind of layer and each way to use layers."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        hidden = x + self.first(x).tanh()
        return hidden + self.second(hidden).relu() + 0.1 * x


class Tied(nn.Module):
    """One weight as an embedding, as a layer's, and as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.inner = nn.Linear(6, 6)

    def forward(self, indices):
        hidden = self.inner(self.embedding(indices)).tanh()
        return hidden @ self.embedding.weight.T + self.embedding.weight.sum(1)


class Twice(nn.Module):
    """One layer that is gone through twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(self.layer(x).tanh())


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 6))
        self.outer = nn.Linear(6, 6)

    def forward(self, x):
        return self.outer(checkpoint(self.inner, self.outer(x), use_reentrant=False))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(8, 24), nn.Linear(8, 8, bias=False)

    def forward(self, x):
        q, k, v = self.project(x).unflatten(-1, (3, 2, 4)).movedim(-3, 0).transpose(-2, -3)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent = kind(4, 5, num_layers=2, batch_first=True)

    def forward(self, x):
        return self.recurrent(x)[0]


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6, dtype=torch.complex128))
        self.scale = nn.Parameter(torch.randn(6, dtype=torch.complex128))

    def forward(self, x):
        hidden = x.to(self.weight.dtype) @ self.weight * self.scale
        return torch.view_as_real(hidden).square().sum(-1)


class SomeOutputs(nn.Module):
    """Nodes with several outputs, of which some are undefined, not differentiable, or views."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(6, 6), nn.Parameter(torch.randn(6))

    def forward(self, x):
        left, right = self.layer(x).split(3, dim=1)
        values, _ = (left * self.scale[:3]).sort(dim=1)
        first, *_ = torch.unbind(self.scale.view(2, 3))
        return values + first + 0 * right.detach()


class Zeros(torch.autograd.Function):
    """Hands on no gradient at all to its second input."""

    @staticmethod
    def forward(ctx, x, unused):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2, None


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.unused = nn.Linear(6, 6), nn.Parameter(torch.randn(6))

    def forward(self, x):
        return Zeros.apply(self.layer(x), self.unused)


def normal(*shape):
    return lambda: torch.randn(*shape)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 12, bias=False), nn.GELU(), nn.Linear(12, 6)),
        normal(3, 9),
    ),
    "in place": (
        lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 6), nn.LeakyReLU(inplace=True)),
        normal(2, 6),
    ),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, stride=2, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 1, groups=4),
        ),
        normal(2, 3, 8, 8),
    ),
    "group norm": (
        lambda: nn.Sequential(nn.Conv1d(2, 6, 3, dilation=2), nn.GroupNorm(2, 6), nn.ConvTranspose1d(6, 2, 3)),
        normal(2, 2, 9),
    ),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.2, batch_first=True),
        normal(2, 5, 8),
    ),
    "attention": (Attention, normal(2, 5, 8)),
    "layer norm, not contiguous": (
        lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4)),
        lambda: torch.randn(6, 2, 3).permute(2, 1, 0),
    ),
    "lstm": (lambda: Recurrent(nn.LSTM), normal(2, 3, 4)),
    "gru": (lambda: Recurrent(nn.GRU), normal(2, 3, 4)),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(40, 6, padding_idx=1), nn.Linear(6, 3)),
        lambda: torch.tensor([[3, 1, 3], [39, 7, 3]]),
    ),
    "tied": (Tied, lambda: torch.tensor([[3, 1, 3], [8, 7, 3]])),
    "twice": (Twice, normal(2, 6)),
    "residual": (Residual, normal(3, 6)),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 2)),
        normal(3, 6),
    ),
    "checkpoint": (Checkpointed, normal(2, 6)),
    "several outputs": (SomeOutputs, normal(3, 6)),
    "no gradient": (Custom, normal(3, 6)),
}


def mlp(*widths):
    torch.manual_seed(0)
    return nn.Sequential(*[module for pair in pairwise(widths) for module in (nn.Linear(*pair), nn.Tanh())]).double()


def doubles(*shape):
    return torch.randn(shape, dtype=torch.float64)
