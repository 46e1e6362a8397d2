"""`diagnose`: trains a little with equal weights, and says whether the tasks need balancing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from equipoise._checks import check_tasks
from equipoise.methods import make_method
from equipoise.monitor.costs import measure_costs
from equipoise.monitor.diagnosis.measuring import LossesOf, losses_for, measure
from equipoise.monitor.diagnosis.regimes import SIZE, judge
from equipoise.monitor.diagnosis.restoring import cycled, restored, twin
from equipoise.monitor.diagnosis.result import Diagnosis, Recommendation
from equipoise.monitor.diagnosis.rules import Rule, explained_by_scale, fitting
from equipoise.monitor.rates import check_optimizer
from equipoise.optim import BalancingOptimizer

LEAST_STEPS = 20
"""Fewer steps say nothing about how losses fall."""

COST_BATCHES = 4
"""So many batches are trained on, over and over, where costs are measured."""


def diagnose(
    model: nn.Module,
    batches: Iterable[Any],
    losses_of: LossesOf,
    *,
    optimizer: Optimizer | None = None,
    tasks: Iterable[str] | None = None,
    steps: int = 200,
    costs: bool = True,
) -> Diagnosis:
    """Trains some steps with equal weights, says which tasks stand back for others, and which methods fit.

    Four questions are asked: whether the losses are of unlike scale, the gradients of unlike size after the optimizer,
    the directions opposed, the losses of unlike speed. An answer that is not sure, given how much the numbers vary from
    step to step, counts as no. What is measured, where each regime begins and why, and which methods fit is in
    `docs/diagnose.md`.

    Everything is as it was when it returns, or raises: parameters and buffers of the model, `.grad`, which modules are
    in training mode, the optimizer, and the generators of random numbers (PyTorch's, Python's, NumPy's, a
    DataLoader's). The model is trained in place meanwhile, in the mode in which it is. What else `losses_of` changes,
    a counter or a metric, and what is read from an iterator, it cannot put back.

    Args:
        model: the model, whose parameters are trained; in one process, not sharded.
        batches: what the training iterates over, a DataLoader or a list; again where it ends.
        losses_of: takes a batch, returns {task: scalar loss} with graphs; tasks without a label left out.
        optimizer: the optimizer of the training: Adam, AdamW, RMSprop, Adagrad or SGD; a twin of it steps, with its
            state. None: AdamW over the model's parameters with a learning rate of 1e-3 and no weight decay.
        tasks: the tasks' names; None: those of the first batch.
        steps: how many steps to train, at least 20; 50 of them, spread evenly, are measured.
        costs: measure time and memory of the methods that fit, some 100 steps of each.

    Raises:
        TypeError: `model`, the optimizer or the losses are something else.
        ValueError: fewer than two tasks or 20 steps; batches end or are empty; a loss is NaN or infinite, of an unknown
            task, no scalar, or without a graph; the model is sharded.

    Example:
        >>> import torch, equipoise as eq
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(8, 2)
        >>> batches = [torch.randn(16, 8) for _ in range(50)]
        >>> def losses_of(batch):  # the same target in metres and in centimetres
        ...     metres, centimetres = model(batch).T
        ...     target = batch.sum(1)
        ...     return {"m": (metres - target).square().mean(), "cm": (centimetres - 100 * target).square().mean()}
        >>> adamw = eq.diagnose(model, batches, losses_of)  # no element is moved by both
        >>> adamw.found, adamw.needs_balancing
        (('scale',), False)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=1e-4)
        >>> "size" in eq.diagnose(model, batches, losses_of, optimizer=sgd).found
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, found {type(model).__name__}.")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < LEAST_STEPS:
        raise ValueError(f"steps must be a whole number, at least {LEAST_STEPS}; found {steps!r}.")
    given = torch.optim.AdamW(model.parameters(), weight_decay=0.0) if optimizer is None else check_optimizer(optimizer)
    if isinstance(given, BalancingOptimizer):
        raise TypeError(
            f"diagnose trains with equal weights, and {type(given).__name__} balances: give the optimizer you would "
            "use without it."
        )
    with restored(model, given, batches):
        start = twin(given)
        stream = cycled(batches)
        first = list(itertools.islice(stream, COST_BATCHES))
        names = check_tasks(losses_for(losses_of, first[0], None, 0) if tasks is None else tasks)
        if len(names) < 2:
            raise ValueError(
                f"There is nothing to balance with one task ({names[0]!r}): give tasks= if there are more."
            )
        with restored(model, given, ()):
            measured = measure(model, itertools.chain(first, stream), losses_of, twin(given), names, steps)
        regimes = judge(measured)
        size = next(regime for regime in regimes if regime.name == SIZE)
        means = dict(zip(names, measured.losses.abs().nanmean(0).tolist(), strict=True))
        rule = fitting(regimes if measured.shared else (), explained_by_scale(size.evidence, means))
        recommended = [Recommendation(method, reason) for method, reason in rule.methods.items()]
        if costs and measured.shared and rule.when:
            recommended = _with_costs(rule, model, first, losses_of, start, names)
    return Diagnosis(regimes, tuple(recommended), measured)


def _with_costs(
    rule: Rule,
    model: nn.Module,
    batches: Sequence[Any],
    losses_of: LossesOf,
    optimizer: Optimizer,
    tasks: Sequence[str],
) -> list[Recommendation]:
    """Measures what the methods cost on a few batches, with the optimizer that they would have."""
    held = {*model.parameters(), *model.buffers()}
    device = next(iter(held)).device

    def make(name: str) -> Callable[[], object]:
        method = make_method(name, model, tasks)
        own = method.optimizer if method.balancer is None else twin(optimizer)
        turns = itertools.cycle(batches)

        def step() -> None:
            batch = next(turns)
            losses = losses_for(losses_of, batch, tasks, 0)
            if not losses:
                return
            method.backward(losses)
            own.step()
            if method.needs_after_step:
                with torch.no_grad():
                    method.after_step(losses_of(batch))
            method.zero_grad()

        return step

    size = sum(tensor.nbytes for tensor in held)
    costs, failures = measure_costs(make, ["ew", *rule.methods], device, size)
    return [
        Recommendation(method, reason, costs.get(method), failures.get(method, ""))
        for method, reason in rule.methods.items()
    ]
