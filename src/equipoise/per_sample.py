"""PerSample: every sample's loss a task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from equipoise._parts import as_aggregator
from equipoise.aggregators import GramianAggregator
from equipoise.gradients.gramian import gramian
from equipoise.gradients.graph.walk import Graph
from equipoise.gradients.layers import Unsupported, gramian_by_layers
from equipoise.gradients.ranks import Company
from equipoise.gradients.shared import Parameters, parameter_set


class PerSample(nn.Module):
    """Balances the samples of a batch against each other: instance-wise risk minimisation.

    Every entry of a tensor of losses is a task: the aggregator finds weights `w_n` from the Gramian
    `G_nm = ⟨∇L_n, ∇L_m⟩` of the samples' gradients, and one backward pass of `Σ_n w_n L_n` gives the gradient. The
    samples' gradients are never held together: their Gramian is computed layer by layer, all samples at once under
    `torch.vmap`, or, where the graph does not allow that, from rows, a backward pass a sample. Samples may depend on
    each other, as in batch normalisation, whose running statistics see one forward pass as ever. The number of samples
    may change from batch to batch. N samples cost about N backward passes, and hold N times a layer's outputs.

    Args:
        aggregator: one that finds weights from the Gramian and keeps nothing from step to step: `CAGrad`, `IMTLG`,
            `MGDA`, `NashMTL`, `PCGrad`, or a Gramian aggregator or weighting of TorchJD's.
        probe: a module or parameters whose gradients the Gramian is of; None: all parameters that the losses reach.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the aggregator needs more than the Gramian, or keeps state by task; the probe has no parameter.

    Source: Quinton & Rey, "Jacobian Descent for Multi-Objective Optimization", 2024, whose weights are
    `torchjd.aggregation.UPGrad`'s.

    Example:
        >>> import torch, equipoise as eq
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))
        >>> balance = eq.PerSample(eq.MGDA())
        >>> weights = balance.backward(model(torch.randn(16, 4)).square().flatten())
        >>> weights.shape
        torch.Size([16])
    """

    def __init__(self, aggregator: nn.Module, probe: Parameters | None = None) -> None:
        super().__init__()
        adapted = as_aggregator(aggregator)
        if not isinstance(adapted, GramianAggregator):
            found = "none" if adapted is None else type(adapted).__name__
            raise ValueError(f"PerSample needs an aggregator that finds weights from the Gramian; found {found}.")
        for part in adapted.task_modules():
            if part._states or part._learned or part.more_state():
                raise ValueError(
                    f"{type(part).__name__} keeps state for every task, and the samples of the next batch are others: "
                    "take an aggregator without, such as IMTLG, MGDA, PCGrad, CAGrad or NashMTL."
                )
        self.aggregator = adapted
        self._probe = None if probe is None else parameter_set("probe", probe)

    def backward(self, losses: Tensor, retain_graph: bool = False) -> Tensor:
        """Adds the balanced gradient into `.grad`, as `losses.mean().backward()` adds the mean one.

        Args:
            losses: a loss a sample, `[N]`, or of any shape: every entry is a task.
            retain_graph: keep the graph for another backward pass.

        Returns:
            The weights, in the losses' shape.

        Raises:
            TypeError: losses is no tensor.
            ValueError: losses is a scalar, empty, complex or has no graph, or, on the CPU, is not finite; the probe
                is not reached; several ranks train together, whose samples would need each other's gradients.
        """
        weights = self._weights(losses)
        torch.autograd.backward(losses, weights, retain_graph=retain_graph)
        return weights

    def forward(self, losses: Tensor) -> Tensor:
        """Returns `Σ_n w_n L_n` with constant weights, for frameworks that call `loss.backward()` themselves.

        Under `torch.no_grad()` it is the mean of the losses.

        Args:
            losses: as in `backward`.

        Raises:
            TypeError: as in `backward`.
            ValueError: as in `backward`.
        """
        if not torch.is_grad_enabled():
            return losses.mean()
        return (self._weights(losses) * losses).sum()

    forward._torchdynamo_disable = True  # type: ignore[attr-defined]  # compiled steps go around it

    def _weights(self, losses: Tensor) -> Tensor:
        _check(losses)
        own = losses.reshape(-1)
        reached = Graph([own], together=True).every_leaf
        leaves = [p for p in reached if (isinstance(p, nn.Parameter) if self._probe is None else p in self._probe)]
        if not leaves:
            raise ValueError(f"No loss reaches {'a parameter' if self._probe is None else 'the probe'}.")
        products = _gramian(own, leaves)
        with self.aggregator.solved(products, own.detach(), range(len(own))) as (weights, step):
            if step is not None:
                step.commit()
        return weights.to(losses.dtype).view_as(losses)


def _check(losses: Any) -> None:
    if not isinstance(losses, Tensor):
        raise TypeError(f"losses must be a tensor with a loss a sample, found {type(losses).__name__}.")
    if losses.dim() == 0 or losses.numel() == 0 or losses.is_complex():
        raise ValueError(
            f"losses must be real, one a sample, found {losses.dtype} of shape {tuple(losses.shape)}: compute them "
            "with reduction='none'."
        )
    if not losses.requires_grad:
        raise ValueError("losses has no graph: no trainable parameter leads to it, or it was detached.")
    if losses.device.type == "cpu" and not losses.isfinite().all():
        raise ValueError("losses holds NaN or infinity.")
    if Company(()).now().active:
        raise ValueError(
            "PerSample balances the samples of one process, and several ranks train together: their samples' gradients "
            "would have to meet."
        )


def _gramian(losses: Tensor, leaves: list[Tensor]) -> Tensor:
    """Computes the Gramian `[N, N]` of the losses' gradients."""
    ones = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
    try:
        return gramian_by_layers([get_gradient_edge(losses)], [ones], leaves)
    except Unsupported:
        return gramian(
            [torch.autograd.grad(losses, leaves, one, retain_graph=True, allow_unused=True) for one in ones.unbind()]
        )
