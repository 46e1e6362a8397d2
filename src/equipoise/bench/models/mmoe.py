"""MMoE: every task has its own gate over experts that all share."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from equipoise.bench.models._base import MultiTaskNetwork, Representation
from equipoise.bench.models._mixtures import Gate, experts, mix, run


class MMoE(MultiTaskNetwork):
    """Multi-gate mixture of experts on any trunk: predictions `[B, outputs]`.

    With `x` what the trunk gives and `f_1 … f_n` the experts, a dense layer with ReLU each, task `k` predicts
    `y_k = h_k(Σ_i g_k(x)_i f_i(x))` with `g_k(x) = softmax(W_k x)`. The gate and the linear head `h_k` are the task's
    own. The representation is `x`; the experts lie beyond it and are shared all the same.

    Args:
        heads: task → number of outputs.
        trunk: takes what the network takes; gives `[B, features]`.
        features: how many.
        count: of the experts.
        width: what each gives.

    Source: Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD
    2018. There experts and gates read the input itself; here they read a trunk, a layer or a backbone, as in its
    production system. A task's tower is one dense layer.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from equipoise.bench.models import MMoE
        >>> network = MMoE({"visits": 1, "plan": 3}, nn.Sequential(nn.Linear(7, 16), nn.ReLU()), 16)
        >>> {task: tuple(prediction.shape) for task, prediction in network(torch.randn(2, 7)).items()}
        {'visits': (2, 1), 'plan': (2, 3)}
    """

    def __init__(
        self, heads: Mapping[str, int], trunk: nn.Module, features: int, count: int = 4, width: int = 64
    ) -> None:
        super().__init__(heads)
        self.trunk = trunk
        self.experts = experts(count, features, width)
        self.gates = nn.ModuleList(self.make_gate(features, count) for _ in heads)
        self.heads = nn.ModuleList(nn.Linear(width, outputs) for outputs in heads.values())

    def make_gate(self, features: int, count: int) -> nn.Module:
        """Returns a fresh gate, `[B, features]` → `[B, count]`."""
        return Gate(features, count)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the trunk and of the experts."""
        return [*self.trunk.parameters(), *self.experts.parameters()]

    def representation(self, images: Tensor) -> Representation:
        """Returns the trunk's features `[B, features]`."""
        return (self.trunk(images),)

    def predict(self, representation: Representation, size: tuple[int, int]) -> dict[str, Tensor]:
        """Returns `[B, outputs]` for every task."""
        (features,) = representation
        outputs = run(self.experts, features)
        return {
            task: head(mix(gate(features), outputs))
            for task, gate, head in zip(self.tasks, self.gates, self.heads, strict=True)
        }
