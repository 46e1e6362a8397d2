"""Checks of what the classes of a method declare: that it means something there, and that masks are minded."""

from __future__ import annotations

import difflib

import torch
from torch import Tensor

from equipoise._state import TaskModule
from equipoise.aggregators import Aggregator, GramianAggregator, RowStateAggregator
from equipoise.testing._comparing import assert_near
from equipoise.testing._subject import TASKS, Subject

EVERYWHERE = {"masked", "requires_positive"}
LOSSES = {"needs_after_step", "needs_accuracies", "needs_validation_losses"}
GRADIENTS = {
    "robust",
    "non_conflicting",
    "permutation_invariant",
    "homogeneous",
    "scale_invariant",
    "weighs",
    "takes_preferences",
}

MASKS = ["abc", "ac", "abc", "ab", "a", "bc", "c", "abc"]
"""The tasks that take part in each step, of three that are present."""


def check_promises_are_known(subject: Subject) -> None:
    """What a class declares is a promise that means something there, and no misspelled one."""
    for part in subject.parts:
        means = EVERYWHERE | (GRADIENTS if isinstance(part, Aggregator) else LOSSES)
        for name, value in _declared(type(part)).items():
            _check_promise(part, name, value, means)


def _declared(made: type) -> dict[str, bool]:
    """What a class and those that it is derived from declare, of bools."""
    owners = [owner for owner in reversed(made.__mro__) if issubclass(owner, TaskModule)]
    return {name: value for owner in owners for name, value in vars(owner).items() if isinstance(value, bool)}


def _check_promise(part: TaskModule, name: str, value: bool, means: set[str]) -> None:
    kind = type(part).__name__
    known = EVERYWHERE | LOSSES | GRADIENTS
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        assert not near, f"{kind}.{name} = {value} means nothing to this library, which knows {near[0]}"
    elif value and name not in means:
        whose = "aggregators" if name in GRADIENTS else "objectives and weightings"
        raise AssertionError(f"{kind}.{name} = True is a promise of {whose}, and means nothing here; leave it out")
    elif value and name == "masked" and isinstance(part, GramianAggregator):
        raise AssertionError(
            f"{kind}.masked = True means nothing of a GramianAggregator, whose weights are found on the host, for the "
            "tasks that take part; leave it out"
        )


def check_masked(subject: Subject) -> None:
    """`masked`: steps with a mask are those of the tasks that take part: the coefficients, the result and the state.

    So it is on an accelerator, where the host does not know who takes part. What draws random numbers may draw them for
    all tasks, and is not checked.
    """
    if not subject.draws:
        what = "a step with a mask of the tasks that take part is not that of these tasks alone"
        assert_near(_steps(subject, True), _steps(subject, False), what, rtol=1e-9, atol=1e-12)


def _steps(subject: Subject, masked: bool) -> dict[str, Tensor]:
    """What steps of some of the tasks give and leave, with a mask or with these tasks alone."""
    balancer = subject.make(dtype=torch.float64)[1].balancer
    assert balancer is not None
    objective, aggregator, weigh = balancer.objective, balancer.aggregator, balancer._balancing.weigh
    found: dict[str, Tensor] = {}
    for index, tasks in enumerate(MASKS):
        if subject.always is not None and subject.always not in tasks:
            continue
        numbers = torch.Generator().manual_seed(index)
        losses = 0.1 + torch.rand(len(TASKS), generator=numbers, dtype=torch.float64)
        rows = torch.randn(len(TASKS), 4, generator=numbers, dtype=torch.float64)
        takes = torch.tensor([task in tasks for task in TASKS])
        mask = takes if masked else None
        present = None if masked else takes.nonzero().flatten().tolist()
        losses = torch.where(takes, losses, 1.0) if masked else losses[takes]
        rows = torch.where(takes[:, None], rows, 0.0) if masked else rows[takes]
        if all(part.masked for part in objective.task_modules()):
            with objective.step(present, torch.float64, mask) as state:
                weights = weigh.coefficients(losses, mask, None)[0]
                state.commit()
            found[f"the weights of step {index + 1}"] = weights[takes] if masked else weights
        if aggregator is not None and aggregator.masked:
            if isinstance(aggregator, RowStateAggregator):
                aggregator.columns = ["gradients"]
            with aggregator.step(present, torch.float64, mask) as state:
                found[f"the gradient of step {index + 1}"] = aggregator(rows, losses)
                state.commit()
    return found | dict(balancer.named_buffers())
