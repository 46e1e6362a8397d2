"""The second stop of a step: the tasks' coefficients from the objective."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain, repeat
from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from equipoise._notices import Notices
from equipoise._state import Snapshot, TaskModule, modules_of
from equipoise._state_step import StateStep
from equipoise.aggregators import Aggregator, GramianAggregator
from equipoise.gradients.gramian import wide_dtype
from equipoise.gradients.jacobian import Row
from equipoise.gradients.micro_batches import Collected
from equipoise.gradients.owning import owned
from equipoise.gradients.step import Step, above_bounds, stack
from equipoise.objectives import Objective
from equipoise.objectives._base import Derivatives

Hook = Literal["after_step", "observe_validation"]
"""What takes losses beside those of a step: of `TaskModule`."""

UNMOVED_STEPS = 10
"""Steps after which learned weights that had gradients should have moved. (A scaler's first steps overflow.)"""


class Weigh:
    """Which of the tasks present a method can use, and how it weighs them.

    Args:
        tasks: all tasks.
        objective: the objective, bound to them.
        aggregator: what comes after it.
        notices: gives warnings.
    """

    def __init__(
        self, tasks: Sequence[str], objective: Objective, aggregator: Aggregator | None, notices: Notices
    ) -> None:
        self._tasks = tasks
        self._objective = objective
        self._aggregator = aggregator
        self._notices = notices
        self._parts = [*objective.task_modules(), *([] if aggregator is None else [aggregator])]
        self._bounded = any(type(part).lower_bounds is not TaskModule.lower_bounds for part in self._parts)
        self._modules = modules_of(objective)
        self._placed = list(self._modules)
        if aggregator is not None and not isinstance(aggregator, GramianAggregator):
            self._placed += modules_of(aggregator)
        self._declared = objective.declared_parameters()
        self._others = [module for module in self._modules if module not in self._declared]
        self._before: Snapshot | None = None  # the objective's state before the micro-batches that wait
        self._first: dict[Tensor, Tensor] = {}  # learned weights → their values at the first step with gradients
        self._steps = 0

    def usable(self, step: Step, looks: bool) -> Step:
        """Leaves out the tasks whose losses the method cannot use in this step, and says so once.

        Args:
            step: the tasks present.
            looks: the host may look at the losses; else the tasks stay, and `step.usable` says which take part.
        """
        bounds = self._bounds(step)
        if looks:  # sync: asked for
            bounds = [low for low in bounds if not _all_above(step.known, low)]
        above = above_bounds(step.values, bounds)
        if above is not None:
            labelled = above if step.usable is None else above | ~step.usable
            self._notices.ask("unusable", ~labelled, lambda flags: self._unusable(step.tasks, flags))
        usable = above if step.usable is None else step.usable if above is None else step.usable & above
        if usable is None:
            return step
        if looks or not self._masked:
            left_out = [index for index, takes in enumerate(usable.tolist()) if not takes]  # sync: to pick the tasks
            return step.without(left_out, None)
        return step.without([], usable)

    def _bounds(self, step: Step) -> list[Tensor | float]:
        """Returns what the losses have to lie above: numbers, and numbers by task `[K']`."""
        bounds: list[Tensor | float] = [0.0] if any(part.requires_positive for part in self._parts) else []
        if self._bounded:
            with self._objective.step(self._objective.positions(step.tasks), step.values.dtype):
                bounds = [part.lower_bounds() for part in self._parts]
        return bounds

    def step(self, step: Step, begins: bool = False) -> AbstractContextManager[StateStep]:
        """Opens a step of the objective's state; `begins`: the first of micro-batches that can be taken back."""
        opened = self._objective.step(self._objective.positions(step.tasks), step.values.dtype, step.usable)
        return self._beginning(opened) if begins else opened

    @contextmanager
    def _beginning(self, opened: AbstractContextManager[StateStep]) -> Iterator[StateStep]:
        before = self._objective.snapshot()
        with opened as state:
            yield state
        self._before = before

    def coefficients(self, values: Tensor, usable: Tensor | None, valid: Tensor | None) -> tuple[Tensor, Row]:
        """Returns `c_k = ∂objective/∂L_k` `[K']` and the gradients of the objective's own parameters.

        Args:
            values: the losses `[K']`.
            usable: which of them take part, `[K']` bool; None: all. The others' coefficients are 0.
            valid: whether the losses are finite, 0-dim bool; None: the host knows that they are. Where they are not, it
                shows in the gradients.
        """
        values = self._without_unusable(values, usable)
        found = None if self._learns_more() else self._derivatives(values)
        if found is None:
            _, coefficients, learned = self._by_autograd(values, valid)
        else:
            coefficients, derivatives = found
            if valid is not None:
                derivatives = {name: torch.where(valid, d, 0) for name, d in derivatives.items()}
            learned = self._objective.gradients(derivatives)
        return self._shown(coefficients, usable, valid), learned

    def valued(self, values: Tensor, usable: Tensor | None, valid: Tensor | None) -> tuple[Tensor, Tensor, Row]:
        """Returns the objective's value, 0-dim, and what `coefficients` returns; the arguments are the same."""
        value, coefficients, learned = self._by_autograd(self._without_unusable(values, usable), valid)
        return value, self._shown(coefficients, usable, valid), learned

    def _without_unusable(self, values: Tensor, usable: Tensor | None) -> Tensor:
        return values if usable is None else torch.where(usable, values, 1.0)

    def _shown(self, coefficients: Tensor, usable: Tensor | None, valid: Tensor | None) -> Tensor:
        """Returns the coefficients, 0 of tasks that take no part, NaN where the step does not count."""
        if usable is not None:
            coefficients = torch.where(usable, coefficients, 0.0)
        return coefficients if valid is None else torch.where(valid, coefficients, torch.nan)

    def _learns_more(self) -> bool:
        """Whether the objective learns other parameters than those that it has declared."""
        return any(
            p is not None and p.requires_grad
            for module in self._others
            if module._parameters
            for p in module._parameters.values()
        )

    def _derivatives(self, values: Tensor) -> Derivatives | None:
        if not self._declared:
            return self._objective.derivatives(values)
        with torch.no_grad():
            return self._objective.derivatives(values)

    def _by_autograd(self, values: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Row]:
        """Returns the objective's value, and its derivatives by the losses and by its own parameters."""
        parameters: list[Tensor] = [p for p in self._objective.parameters() if p.requires_grad]
        with torch.enable_grad():
            values = values.clone().requires_grad_()
            total = self._objective(values)
            if not isinstance(total, Tensor) or total.dim() or not total.requires_grad:
                raise ValueError(
                    f"{type(self._objective).__name__} must return a 0-dim tensor that depends on the losses and is "
                    f"not detached from them, found {total!r}."
                )
            coefficients, *gradients = torch.autograd.grad(total, [values, *parameters], allow_unused=True)
        learned = {p: g for p, g in zip(parameters, gradients, strict=True) if g is not None}
        if valid is not None:
            learned = {p: torch.where(valid, g, 0) for p, g in learned.items()}
        return total.detach(), coefficients, owned(learned)

    @property
    def device(self) -> torch.device | None:
        """Where the state is that is not to stay on the host; None if there is none."""
        for module in self._placed:
            for tensor in chain(module._buffers.values(), module._parameters.values()):
                if tensor is not None:
                    return tensor.device
        return None

    def show(self, step: Step, hook: Hook, valid: Tensor | None) -> None:
        """Shows the objective losses that are not to be weighed; see the hook of `TaskModule`."""
        with self.step(step) as state:
            values = self._without_unusable(step.values, step.usable)
            for part in self._objective.task_modules():
                getattr(part, hook)(values)
            state.commit(valid)

    def end_epoch(self, accuracies: Mapping[str, float]) -> None:
        """Ends an epoch, with the accuracies of the tasks that were evaluated."""
        device = self.device or torch.device("cpu")
        measured = tuple(task for task in self._tasks if task in accuracies)
        for part in self._objective.task_modules():
            if measured:
                values = stack([accuracies[task] for task in measured], device, wide_dtype(device))
                with part.step(part.positions(measured), values.dtype) as state:
                    part.observe(values)
                    state.commit()
            with part.step() as state:
                part.end_epoch()
                state.commit()

    def take_back(self) -> None:
        """Takes back what micro-batches changed whose gradients have been cleared."""
        if self._before is not None:
            self._objective.restore(self._before)
            self._before = None

    def end(self, step: Step, total: Collected | None, learned: Row | None, valid: Tensor | None) -> None:
        """Writes the gradients of the objective's own parameters; takes back the state of a step that does not count.

        Args:
            step: the last micro-batch.
            total: the losses of all micro-batches, where there are several: gradients are taken there, so that terms
                without a loss count once. None: there is one.
            learned: the gradients at its losses, where there is one.
            valid: whether the step counts, 0-dim bool; None: it does.
        """
        if total is not None:
            finite = total.values.isfinite().all()
            opening = self._objective.positions(total.tasks), total.values.dtype, total.usable
            with self._objective.step(*opening):
                learned = self.coefficients(total.values, total.usable, finite)[1]
            with self._objective.step(
                self._objective.positions(total.tasks), total.values.dtype, total.usable
            ) as state:
                for part in self._objective.task_modules():
                    part.end_step(total.values)
                state.commit(finite)
        if learned:
            self.watch_learned(learned)
            step.write(step.scale.gradients(learned))
        if self._before is not None and valid is not None:
            self._objective.restore(self._before, unless=valid)
        self._before = None

    def watch_learned(self, learned: Row) -> None:
        """Warns once if learned weights have had gradients for some steps, have not moved, and are in no optimizer.

        Optimizers are looked for only where weights have not moved: gradients may be accumulated by calling `backward`
        several times, the learning rate may begin at 0, and a scaler may drop the first steps.
        """
        if self._steps > UNMOVED_STEPS:
            return
        for parameter in learned:
            if parameter not in self._first:
                self._first[parameter] = parameter.detach().clone()
        if self._steps == UNMOVED_STEPS:
            same = [(now == first.to(now.device)).all() for now, first in self._first.items()]
            self._notices.ask("unmoved", torch.stack(same).all()[None], lambda _: self._unmoved())
        self._steps += 1

    def _unmoved(self) -> str | None:
        if _in_an_optimizer(self._first):
            return None
        parts = [part for part in self._objective.task_modules() if next(part.parameters(), None) is not None]
        return (
            f"{type(parts[-1]).__name__} learns its weights, which had gradients in {UNMOVED_STEPS} steps, have not "
            "moved and are in no optimizer: give it balancer.parameters() (make_method does)."
        )

    @property
    def _masked(self) -> bool:
        """Whether the method can go without the host knowing which tasks take part."""
        aggregator = self._aggregator
        later = aggregator is None or isinstance(aggregator, GramianAggregator) or aggregator.masked
        return later and all(part.masked for part in self._objective.task_modules())

    def _unusable(self, tasks: Sequence[str], flags: Sequence[bool]) -> str:
        names = ", ".join(repr(task) for task, flag in zip(tasks, flags, strict=True) if flag)
        methods = dict.fromkeys(type(part).__name__ for part in self._parts if part.requires_positive) or {
            type(self._objective).__name__: None
        }
        return (
            f"the loss of task {names} is 0 or below in a step, or not above its lower bound: {' and '.join(methods)} "
            "cannot use it, so the task is left out of such steps and the others are balanced among themselves. "
            "Methods that take such losses: ew, static, rlw, uw, dtp, amtl-a, imtl-l, ldc-mtl, softadapt, coba, pbi, "
            "cosmos, imtl-g, imtl, mgda, pcgrad, graddrop, cagrad, nash-mtl, fairgrad, aligned-mtl, config, upgrad, "
            "dualproj, gradvac, pcd, krum, trimmed-mean, moco, excess-mtl, lr-annealing, mao, adatask, mtadam."
        )


def _all_above(values: Sequence[float], low: Tensor | float) -> bool:
    """Whether the finite values are above the number, or each above its own."""
    lows = repeat(low) if isinstance(low, float) else low.tolist()
    return all(bound < value < math.inf for bound, value in zip(lows, values, strict=False))


def _in_an_optimizer(parameters: Iterable[Tensor]) -> bool:
    """Whether there is an optimizer in this process that holds one of the parameters."""
    wanted = set(parameters)
    optimizers = [found for found in gc.get_objects() if Optimizer in type(found).__mro__]
    return any(
        not wanted.isdisjoint(group["params"]) for found in optimizers for group in vars(found).get("param_groups", ())
    )
