"""The numbers behind a sample: for every task and parameter how long its gradient is, and how far it moves."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
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

Entry = tuple[str, Tensor, Tensor]
"""A task, a parameter, and a number, 0-dim."""

Column = list[Tensor | None]
"""One parameter's gradients, or rates, task by task; None where a task does not reach it."""


@dataclass
class Sums:
    """Sums over the elements of parameters, on their device.

    Attributes:
        norms: the norm of the task's gradient on the parameter.
        moved: `Σ |g| · rate` over the parameter's elements; left out where the optimizer did not move it.
        products: the Gramian of the tasks' gradients on shared parameters; None where there are no two of them.
        tasks: the order of its rows.
    """

    norms: list[Entry] = field(default_factory=list)
    moved: list[Entry] = field(default_factory=list)
    products: Tensor | None = None
    tasks: tuple[str, ...] = ()

    @torch.no_grad()
    def add(self, rows: Rows, optimizer: Optimizer, shared: Container[Tensor]) -> None:
        """Measures rows of parameters that the optimizer has just moved.

        Args:
            rows: task → parameter → gradient.
            optimizer: the optimizer.
            shared: holds those parameters on which the tasks are compared.
        """
        tasks = tuple(rows)
        columns: dict[Tensor, Column] = {}
        for index, row in enumerate(rows.values()):
            for p, gradient in row.items():
                if gradient.numel():
                    columns.setdefault(p, [None] * len(tasks))[index] = gradient
        groups = {p: group for group in optimizer.param_groups for p in group["params"]}
        together: list[tuple[Tensor, Column, Column]] = []
        products, compared = [], []
        for p, column in columns.items():
            rates = _rates(optimizer, groups.get(p), p, tasks, column)
            large = p.device.type == "cpu" and p.numel() >= BLOCK
            if large:
                own = self._add_swept(p, tasks, column, rates)
            else:
                together.append((p, column, rates))
            if len(tasks) > 1 and p in shared:
                if large:
                    products.append(own)
                else:
                    compared.append(column)
        for index, task in enumerate(tasks):
            self._add_lists(task, [(p, column[index], rates[index]) for p, column, rates in together])
        if compared:
            products.append(gramian(list(zip(*compared, strict=True))))
        if products:
            self.products, self.tasks = sum(products[1:], products[0]), tasks

    def _add_lists(self, task: str, triples: Iterable[tuple[Tensor, Tensor | None, Tensor | None]]) -> None:
        """Measures parameters with their gradients and rates in few operations, each on many of them."""
        reached = [(p, gradient.to(_dtype(gradient)), rate) for p, gradient, rate in triples if gradient is not None]
        moved = [(p, gradient, rate) for p, gradient, rate in reached if rate is not None]
        if reached:
            norms = torch._foreach_norm([gradient for _, gradient, _ in reached])
            self.norms += [(task, p, norm) for (p, _, _), norm in zip(reached, norms, strict=True)]
        if moved:
            steps = torch._foreach_mul([gradient for _, gradient, _ in moved], [rate for _, _, rate in moved])
            norms = torch._foreach_norm(steps, 1)
            self.moved += [(task, p, norm) for (p, _, _), norm in zip(moved, norms, strict=True)]

    def _add_swept(self, parameter: Tensor, tasks: Sequence[str], column: Column, rates: Column) -> Tensor:
        """Measures a parameter going through memory once, block by block: on a CPU in less than half the time.

        Returns:
            The products of its gradients `[K', K']`.
        """
        order = sorted(range(parameter.dim()), key=parameter.stride, reverse=True)  # as it lies in memory

        def flat(tensor: Tensor) -> Tensor:
            return tensor.permute(order).reshape(-1)

        gradients = {index: flat(gradient) for index, gradient in enumerate(column) if gradient is not None}
        scales = {index: flat(rate) for index, rate in enumerate(rates) if rate is not None}
        buffer = torch.zeros(len(tasks), BLOCK, dtype=_dtype(parameter))
        products = torch.zeros(len(tasks), len(tasks), dtype=torch.float64)
        moved = dict.fromkeys(scales, 0.0)
        with torch.autocast("cpu", enabled=False):
            for start in range(0, parameter.numel(), BLOCK):
                block = buffer[:, : parameter.numel() - start]
                for index, gradient in gradients.items():
                    block[index].copy_(gradient[start : start + BLOCK])
                products += block @ block.T
                block.abs_()
                for index, scale in scales.items():
                    part = scale[start : start + BLOCK].to(block.dtype)
                    moved[index] += float(torch.dot(block[index], part))  # on the CPU
        self.norms += [(tasks[index], parameter, products[index, index].sqrt()) for index in gradients]
        self.moved += [(tasks[i], parameter, torch.tensor(far, dtype=torch.float64)) for i, far in moved.items()]
        return products


def _rates(
    optimizer: Optimizer, group: dict[str, Any] | None, parameter: Tensor, tasks: Sequence[str], column: Column
) -> Column:
    """Returns the effective rates of each task that reaches the parameter; None if the optimizer left it alone."""
    if group is None:
        return [None] * len(column)
    if isinstance(optimizer, MAO):
        return [
            None if gradient is None else mao_rate(optimizer, group, task, parameter)
            for task, gradient in zip(tasks, column, strict=True)
        ]
    rate = effective_rate(optimizer, group, parameter)
    return [None if gradient is None else rate for gradient in column]


def _dtype(gradient: Tensor) -> torch.dtype:
    """The dtype of sums over gradients like this one: its own, but no narrower than float32."""
    return torch.promote_types(gradient.dtype, torch.float32)


def fetch(*several: Sequence[Tensor]) -> list[list[float]]:
    """Brings lists of 0-dim tensors to the host, all in one transfer."""
    device = next((tensor.device for tensors in several for tensor in tensors), torch.device("cpu"))
    stacked = [torch.stack([tensor.to(device) for tensor in tensors]) for tensors in several if tensors]
    flat = iter(torch.cat([vector.to(wide_dtype(device)) for vector in stacked]).tolist() if stacked else [])
    return [[next(flat) for _ in tensors] for tensors in several]
