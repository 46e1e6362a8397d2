"""The numbers behind a sample: for every task and parameter how long its gradient is, and how far it moves."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from equipoise.gradients.gramian import gramian, wide_dtype
from equipoise.gradients.jacobian import TaskRows
from equipoise.gradients.sparse import added, compact
from equipoise.monitor.rates import Touched, effective_rates
from equipoise.optim import BalancingOptimizer

BLOCK = 1 << 15
"""Elements of each task's gradient that are gone through together on a CPU, so that they stay in its cache."""

Entry = tuple[str, Tensor, Tensor]
"""A task, a parameter, and a number, 0-dim."""

Column = list[Tensor | None]
"""One parameter's gradients, or rates, task by task; None where a task does not reach it."""


Groups = Mapping[Tensor, dict[str, Any]]
"""Parameter → its group of the optimizer."""


@dataclass
class Sums:
    """Sums over the elements of parameters, on their device.

    Attributes:
        norms: the norm of the task's gradient on the parameter.
        moved: `Σ |g| · rate` over the parameter's elements; left out where the optimizer did not move it.
        products: layer → the Gramian of the tasks' gradients on its shared parameters; empty where there are no two.
        tasks: the order of their rows.
    """

    norms: list[Entry] = field(default_factory=list)
    moved: list[Entry] = field(default_factory=list)
    products: dict[int, Tensor] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()

    @torch.no_grad()
    def add(self, rows: TaskRows, optimizer: Optimizer, shared: Container[Tensor], layer: Mapping[Tensor, int]) -> None:
        """Measures rows of parameters that the optimizer has just moved.

        Args:
            rows: task → parameter → gradient.
            optimizer: the optimizer.
            shared: holds those parameters on which the tasks are compared.
            layer: every parameter's.
        """
        tasks = tuple(rows)
        columns: dict[Tensor, Column] = {}
        for index, row in enumerate(rows.values()):
            for p, gradient in row.items():
                if gradient.numel():
                    columns.setdefault(p, [None] * len(tasks))[index] = gradient
        groups = {p: group for group in optimizer.param_groups for p in group["params"]}
        products: dict[int, list[Tensor]] = {}
        compared: dict[int, list[Column]] = {}
        listed = {}
        touched = {}
        for p, given in columns.items():
            compacted, restored = compact(given)
            column = list(compacted)
            full = restored(next(gradient for gradient in column if gradient is not None))
            if full.is_sparse:
                touched[p] = full.indices().unbind()
            large = p.device.type == "cpu" and p.numel() >= BLOCK and p not in touched
            if large:
                own = self._add_swept(optimizer, groups, tasks, p, column)
            else:
                listed[p] = column
            if len(tasks) > 1 and p in shared:
                if large:
                    products.setdefault(layer[p], []).append(own)
                else:
                    compared.setdefault(layer[p], []).append(column)
        self._add_lists(optimizer, groups, tasks, listed, touched)
        for place, found in compared.items():
            products.setdefault(place, []).append(gramian(list(zip(*found, strict=True))))
        if products:
            self.products = {place: sum(found[1:], found[0]) for place, found in products.items()}
            self.tasks = tasks

    def _add_lists(
        self,
        optimizer: Optimizer,
        groups: Groups,
        tasks: Sequence[str],
        columns: Mapping[Tensor, Column],
        touched: Touched,
    ) -> None:
        """Measures parameters in few operations, each on many of them; of those in `touched` these rows."""
        apart = isinstance(optimizer, BalancingOptimizer)
        rates = {} if apart else _rates(optimizer, groups, "", columns, touched)
        for index, task in enumerate(tasks):
            row = {p: column[index] for p, column in columns.items()}
            reached = {p: gradient.to(_dtype(gradient)) for p, gradient in row.items() if gradient is not None}
            if apart:
                rates = _rates(optimizer, groups, task, reached, touched)
            if reached:
                norms = torch._foreach_norm(list(reached.values()))
                self.norms += [(task, p, norm) for p, norm in zip(reached, norms, strict=True)]
            moved = [p for p in reached if p in rates]
            if moved:
                steps = torch._foreach_mul([reached[p] for p in moved], [rates[p] for p in moved])
                norms = torch._foreach_norm(steps, 1)
                self.moved += [(task, p, norm) for p, norm in zip(moved, norms, strict=True)]

    def _add_swept(
        self, optimizer: Optimizer, groups: Groups, tasks: Sequence[str], parameter: Tensor, column: Column
    ) -> Tensor:
        """Measures a parameter going through memory once, block by block: on a CPU in less than half the time.

        Returns:
            The products of its gradients `[K', K']`.
        """
        order = sorted(range(parameter.dim()), key=parameter.stride, reverse=True)  # as it lies in memory

        def flat(tensor: Tensor) -> Tensor:
            return tensor.permute(order).reshape(-1)

        gradients = {index: flat(gradient) for index, gradient in enumerate(column) if gradient is not None}
        apart = isinstance(optimizer, BalancingOptimizer)
        rates = {} if apart else _rates(optimizer, groups, "", [parameter])
        scales: dict[int, Tensor] = {}
        for index in gradients:
            if apart:
                rates = _rates(optimizer, groups, tasks[index], [parameter])
            if rates:
                scales[index] = flat(rates[parameter])
        buffer = torch.zeros(len(tasks), BLOCK, dtype=_dtype(parameter), device="cpu")
        products = torch.zeros(len(tasks), len(tasks), dtype=torch.float64, device="cpu")
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
        self.moved += [(tasks[i], parameter, products.new_tensor(far)) for i, far in moved.items()]
        return products


def _rates(
    optimizer: Optimizer, groups: Groups, task: str, parameters: Iterable[Tensor], touched: Touched | None = None
) -> dict[Tensor, Tensor]:
    """Returns the effective learning rates of those parameters that the optimizer holds and has moved."""
    by_group: dict[int, list[Tensor]] = {}
    for p in parameters:
        if p in groups:
            by_group.setdefault(id(groups[p]), []).append(p)
    rates: dict[Tensor, Tensor] = {}
    for own in by_group.values():
        rates |= effective_rates(optimizer, groups[own[0]], task, own, touched)
    return rates


def _dtype(gradient: Tensor) -> torch.dtype:
    """The dtype of sums over gradients like this one: its own, but no narrower than float32."""
    return torch.promote_types(gradient.dtype, torch.float32)


def remainder(leaves: Sequence[Tensor], others: Sequence[Mapping[Tensor, Tensor]]) -> dict[Tensor, Tensor]:
    """Returns what other tasks leave of `.grad`."""
    gradients: dict[Tensor, Tensor] = {}
    for p in leaves:
        if p.grad is not None:
            own = [row[p] for row in others if p in row]
            gradients[p] = p.grad.clone()
            for gradient in own:
                if gradient.is_sparse:
                    gradients[p] = added(gradients[p], gradient * -1)
                else:
                    gradients[p] -= gradient
    return gradients


def fetch(*several: Sequence[Tensor]) -> list[list[float]]:
    """Brings the elements of lists of tensors to the host, all in one transfer."""
    device = next((tensor.device for tensors in several for tensor in tensors), torch.device("cpu"))
    vectors = [torch.stack([tensor.to(device) for tensor in tensors]).flatten() for tensors in several if tensors]
    flat = iter(torch.cat([vector.to(wide_dtype(device)) for vector in vectors]).tolist() if vectors else [])
    return [[next(flat) for tensor in tensors for _ in range(tensor.numel())] for tensors in several]
