"""DSelect-k: every task reads at most k of the experts, chosen by a gate that can be differentiated."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from equipoise.bench.models.mmoe import MMoE


class DSelectK(MMoE):
    """`MMoE` whose gates choose at most `k` of the `n = 2^m` experts for every sample: predictions `[B, outputs]`.

    A gate has `k` selectors. Selector `i` writes the number of an expert in `m` binary digits, each
    `S(z) = −2z³/γ³ + 3z/(2γ) + ½` within `±γ/2`, else 0 or 1, of `z = G_i x + c_i`; expert `j`, with digits `b`, gets
    `r_ij = Π_d S(z_d)^{b_d} (1 − S(z_d))^{1 − b_d}`. The gate is `g(x) = Σ_i softmax(W x + v)_i r_i(x)`. Once the
    digits have left `±γ/2` they are 0 or 1, and each selector has chosen one expert.

    Args:
        heads: task → number of outputs.
        trunk: takes what the network takes; gives `[B, features]`.
        features: how many.
        count: of the experts, a power of 2.
        width: what each gives.
        k: experts that a task reads of a sample at most.
        gamma: the width of the step, `γ`.

    Raises:
        ValueError: `count` is no power of 2.

    Source: Hazimeh et al., "DSelect-k: Differentiable Selection in the Mixture of Experts with Applications to
    Multi-Task Learning", NeurIPS 2021; the gate that depends on the sample, its parameters drawn from `±γ/100` for the
    digits and `±0.05` for the selectors, as the authors' code does. Its entropy term, which drives digits to 0 and 1,
    is left out: a task's loss has the predictions alone.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from equipoise.bench.models import DSelectK
        >>> network = DSelectK({"visits": 1, "plan": 3}, nn.Sequential(nn.Linear(7, 16), nn.ReLU()), 16, k=1)
        >>> {task: tuple(prediction.shape) for task, prediction in network(torch.randn(2, 7)).items()}
        {'visits': (2, 1), 'plan': (2, 3)}
    """

    def __init__(
        self,
        heads: Mapping[str, int],
        trunk: nn.Module,
        features: int,
        count: int = 4,
        width: int = 64,
        k: int = 2,
        gamma: float = 1.0,
    ) -> None:
        if count < 2 or count & (count - 1):
            raise ValueError(f"DSelectK numbers its experts in binary: count must be 2, 4, 8, …, found {count}.")
        self._selection = (k, gamma)
        super().__init__(heads, trunk, features, count, width)

    def make_gate(self, features: int, count: int) -> nn.Module:
        """Returns a fresh gate, `[B, features]` → `[B, count]`."""
        return SparseGate(features, count, *self._selection)


class SparseGate(nn.Module):
    """The gate of `DSelectK`: `[B, features]` → shares `[B, count]` that sum to 1.

    Args:
        features: how many.
        count: of the experts, `2^m`.
        k: selectors.
        gamma: the width of the step.
    """

    codes: Tensor

    def __init__(self, features: int, count: int, k: int, gamma: float) -> None:
        super().__init__()
        digits = count.bit_length() - 1
        self.gamma = gamma
        self.digits = nn.Linear(features, k * digits)
        self.selectors = nn.Linear(features, k)
        for layer, bound in ((self.digits, gamma / 100), (self.selectors, 0.05)):
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.uniform_(layer.bias, -bound, bound)
        numbers = torch.arange(count)[:, None] >> torch.arange(digits)
        self.register_buffer("codes", (numbers % 2).bool(), persistent=False)  # [count, digits]

    def forward(self, features: Tensor) -> Tensor:
        """Returns the shares."""
        steps = smooth_step(self.digits(features), self.gamma).reshape(len(features), -1, 1, self.codes.shape[1])
        chosen = torch.where(self.codes, steps, 1 - steps).prod(-1)  # [B, k, count]
        selectors: Tensor = self.selectors(features)
        return torch.einsum("bk,bke->be", selectors.softmax(1), chosen)


def smooth_step(inputs: Tensor, gamma: float) -> Tensor:
    """Returns `−2t³/γ³ + 3t/(2γ) + ½` within `±γ/2`, 0 below and 1 above: it and its slope are continuous."""
    t = inputs.clamp(-gamma / 2, gamma / 2)
    return -2 * t**3 / gamma**3 + 3 * t / (2 * gamma) + 0.5
