"""The numbers behind a sample: for every task and parameter how long its gradient is, and how far it moves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from equipoise.gradients.gramian import gramian, wide_dtype
from equipoise.gradients.jacobian import Rows
from equipoise.monitor.rates import effective_rate, mao_rate
from equipoise.optim import MAO

Entry = tuple[str, Tensor]
"""A task and a parameter."""


@dataclass
class Sums:
    """Sums over the elements of parameters, on their device.

    Attributes:
        norms: the norm of the task's gradient on the parameter, 0-dim.
        moved: `Σ |g| · rate` over the parameter's elements, 0-dim; left out where the optimizer did not move it.
        products: the Gramian of the tasks' gradients on shared parameters; None where there are no two of them.
        tasks: the order of its rows.
    """

    norms: dict[Entry, Tensor] = field(default_factory=dict)
    moved: dict[Entry, Tensor] = field(default_factory=dict)
    products: Tensor | None = None
    tasks: tuple[str, ...] = ()

    @torch.no_grad()
    def add(self, rows: Rows, optimizer: Optimizer) -> None:
        """Measures rows of parameters that the optimizer holds, and has just moved."""
        groups = {p: group for group in optimizer.param_groups for p in group["params"]}
        rates: dict[Tensor, Tensor | None] = {}
        for task, row in rows.items():
            gradients = {p: g.to(torch.promote_types(g.dtype, torch.float32)) for p, g in row.items() if g.numel()}
            if isinstance(optimizer, MAO):
                rates = {p: mao_rate(optimizer, groups[p], task, p) for p in gradients}
            else:
                rates |= {p: effective_rate(optimizer, groups[p], p) for p in gradients if p not in rates}
            self.norms |= _norms(task, gradients, 2)
            known = {p: rate for p in gradients if (rate := rates[p]) is not None}
            steps = torch._foreach_mul([gradients[p] for p in known], list(known.values())) if known else []
            self.moved |= _norms(task, dict(zip(known, steps, strict=True)), 1)

    @torch.no_grad()
    def multiply(self, rows: Rows, shared: Iterable[Tensor]) -> None:
        """Takes the rows' products with each other on the shared parameters, each of which some row reaches."""
        reached = [p for p in shared if p.numel()]
        if len(rows) > 1 and reached:
            self.products = gramian([[row.get(p) for p in reached] for row in rows.values()])
            self.tasks = tuple(rows)


def _norms(task: str, gradients: dict[Tensor, Tensor], order: int) -> dict[Entry, Tensor]:
    norms = torch._foreach_norm(list(gradients.values()), order) if gradients else ()
    return {(task, p): norm for p, norm in zip(gradients, norms, strict=True)}


def fetch(*several: Sequence[Tensor]) -> list[list[float]]:
    """Brings lists of 0-dim tensors to the host, all in one transfer."""
    device = next((tensor.device for tensors in several for tensor in tensors), torch.device("cpu"))
    stacked = [torch.stack([tensor.to(device) for tensor in tensors]) for tensors in several if tensors]
    flat = iter(torch.cat([vector.to(wide_dtype(device)) for vector in stacked]).tolist() if stacked else [])
    return [[next(flat) for _ in tensors] for tensors in several]
