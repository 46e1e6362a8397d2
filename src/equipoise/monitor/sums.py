"""The numbers behind a sample: for every task and parameter how long its gradient is, and how far it moves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from equipoise.gradients.gramian import gramian, wide_dtype
from equipoise.gradients.jacobian import Rows
from equipoise.monitor.rates import effective_rate, mao_rate
from equipoise.optim import MAO

BLOCK = 1 << 15
"""Elements of each task's gradient that are gone through together on a CPU, so that they stay in its cache."""

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
    def add(self, rows: Rows, optimizer: Optimizer, shared: Iterable[Tensor]) -> None:
        """Measures rows of parameters that the optimizer holds, and has just moved.

        Args:
            rows: task → parameter → gradient.
            optimizer: the optimizer.
            shared: those parameters on which the tasks are compared.
        """
        groups = {p: group for group in optimizer.param_groups for p in group["params"]}
        reached = dict.fromkeys(p for row in rows.values() for p in row if p in groups and p.numel())
        large = {p for p in reached if p.device.type == "cpu" and p.numel() >= BLOCK}
        compared = dict.fromkeys(p for p in shared if p in reached and len(rows) > 1)
        products = []
        small = [p for p in compared if p not in large]
        if small:
            products.append(gramian([[row.get(p) for p in small] for row in rows.values()]))
        rates = {p: _rates(optimizer, groups[p], p, rows) for p in reached if p not in large}
        for task, row in rows.items():
            self._add_lists(task, {p: g for p, g in row.items() if p in rates}, rates)
        for p in large:
            own = self._add_swept(p, rows, _rates(optimizer, groups[p], p, rows))
            if p in compared:
                products.append(own)
        if products:
            self.products, self.tasks = sum(products[1:], products[0]), tuple(rows)

    def _add_lists(self, task: str, row: dict[Tensor, Tensor], rates: dict[Tensor, dict[str, Tensor]]) -> None:
        """With few operations, each on many parameters."""
        gradients = {p: gradient.to(_dtype(gradient)) for p, gradient in row.items()}
        self.norms |= _norms(task, gradients, 2)
        moved = {p: rates[p][task] for p in gradients if task in rates[p]}
        steps = torch._foreach_mul([gradients[p] for p in moved], list(moved.values())) if moved else ()
        self.moved |= _norms(task, dict(zip(moved, steps, strict=True)), 1)

    def _add_swept(self, parameter: Tensor, rows: Rows, rates: dict[str, Tensor]) -> Tensor:
        """Going through memory once, block by block: in less than half the time for a large parameter on a CPU.

        Returns:
            The products of the rows `[K', K']`.
        """
        order = sorted(range(parameter.dim()), key=parameter.stride, reverse=True)  # as it lies in memory

        def flat(tensor: Tensor) -> Tensor:
            return tensor.permute(order).reshape(-1)

        gradients = {task: flat(row[parameter]) for task, row in rows.items() if parameter in row}
        flat_rates = {id(rate): flat(rate) for rate in rates.values()}
        places = {task: index for index, task in enumerate(rows)}
        buffer = torch.zeros(len(rows), BLOCK, dtype=_dtype(parameter))
        products = torch.zeros(len(rows), len(rows), dtype=torch.float64)
        moved = dict.fromkeys(rates, 0.0)
        with torch.autocast("cpu", enabled=False):
            for start in range(0, parameter.numel(), BLOCK):
                block = buffer[:, : parameter.numel() - start]
                for task, gradient in gradients.items():
                    block[places[task]].copy_(gradient[start : start + BLOCK])
                products += block @ block.T
                block.abs_()
                for task, rate in rates.items():
                    part = flat_rates[id(rate)][start : start + BLOCK]
                    moved[task] += float(torch.dot(block[places[task]], part.to(block.dtype)))  # on the CPU
        self.norms |= {(task, parameter): products[places[task], places[task]].sqrt() for task in gradients}
        self.moved |= {(task, parameter): torch.tensor(far, dtype=torch.float64) for task, far in moved.items()}
        return products


def _rates(optimizer: Optimizer, group: dict[str, Any], parameter: Tensor, rows: Rows) -> dict[str, Tensor]:
    """Returns task → effective rates for the tasks that reach the parameter; nothing if the optimizer left it alone."""
    tasks = [task for task, row in rows.items() if parameter in row]
    if isinstance(optimizer, MAO):
        return {task: mao_rate(optimizer, group, task, parameter) for task in tasks}
    rate = effective_rate(optimizer, group, parameter)
    return {} if rate is None else dict.fromkeys(tasks, rate)


def _norms(task: str, gradients: dict[Tensor, Tensor], order: int) -> dict[Entry, Tensor]:
    norms = torch._foreach_norm(list(gradients.values()), order) if gradients else ()
    return {(task, p): norm for p, norm in zip(gradients, norms, strict=True)}


def _dtype(gradient: Tensor) -> torch.dtype:
    """The dtype of sums over gradients like this one: its own, but no narrower than float32."""
    return torch.promote_types(gradient.dtype, torch.float32)


def fetch(*several: Sequence[Tensor]) -> list[list[float]]:
    """Brings lists of 0-dim tensors to the host, all in one transfer."""
    device = next((tensor.device for tensors in several for tensor in tensors), torch.device("cpu"))
    stacked = [torch.stack([tensor.to(device) for tensor in tensors]) for tensors in several if tensors]
    flat = iter(torch.cat([vector.to(wide_dtype(device)) for vector in stacked]).tolist() if stacked else [])
    return [[next(flat) for _ in tensors] for tensors in several]
