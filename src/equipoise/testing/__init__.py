"""The contract that every method is held to, for other people's methods too.

This library's own tests run these checks over its registry. `check_method` runs them over yours, one after the other;
`method_checks` gives them one by one, for pytest:

    import pytest
    from equipoise.testing import method_checks

    @pytest.mark.parametrize("check", method_checks("my_method.py:Inverse"), ids=str)
    def test_contract(check):
        check()
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from equipoise._method import Method
from equipoise.aggregators import Aggregator
from equipoise.registry import METHODS, find_own
from equipoise.testing import _devices, _promises, _state, _training
from equipoise.testing._failures import ContractError, Failure, failure_of, summary
from equipoise.testing._properties import ALWAYS, PROMISES, Ready
from equipoise.testing._ranks import check_ranks
from equipoise.testing._subject import Network, Subject, batch

CHECKS: tuple[Callable[[Subject], None], ...] = (
    _promises.check_promises_are_known,
    *(
        value
        for module in (_training, _state)
        for name, value in vars(module).items()
        if name.startswith("check_") and value.__module__ == module.__name__
    ),
)
"""What every method has to pass, each a function of a `Subject`."""


@dataclass(frozen=True)
class Check:
    """One check of one method; calling it runs it.

    Attributes:
        name: what it checks.
        run: raises an error if the method does not pass.
        subject: the method, if it is one that is trained.
    """

    name: str
    run: Callable[[], object]
    subject: Subject | None = None

    def __call__(self) -> None:
        """Runs it.

        Raises:
            ContractError: the method does not pass.
        """
        failure = self.failure()
        if failure is not None:
            said = failure.sentence
            raise ContractError(said, {self.name: said}) from failure.error

    def failure(self) -> Failure | None:
        """Runs it; returns why the method does not pass, None if it does."""
        try:
            self.run()
        except Exception as error:
            return failure_of(self.name, error, self.subject)
        return None

    def __str__(self) -> str:
        return self.name


def method_checks(
    make: Callable[..., Method] | object,
    *,
    ranks: bool = False,
    devices: tuple[str, ...] = (),
    always: str | None = None,
    **hyperparameters: Any,
) -> list[Check]:
    """Returns the checks of a method, to be called one by one.

    Args:
        make: whatever `equipoise.make_method` takes for a name (a class, an instance, `FILE.py:NAME`, …); or a
            function of a network, tasks and keywords (`lr`, `weight_decay`) that makes the `Method`.
        ranks: also in two processes against one; what makes the method must be importable.
        devices: also on these, such as "cuda", against the CPU; not what draws random numbers, as it does there.
        always: the task, of "a", "b" and "c", that the method cannot do without, if there is one.
        **hyperparameters: what it is made with.

    Returns:
        The checks of `CHECKS`, those of what its class promises, and those asked for. Of what cannot be made, or makes
        no step, the first alone, `can_be_made`, which says why when it is called.

    Example:
        >>> import equipoise as eq
        >>> from equipoise.testing import method_checks
        >>> [check.name for check in method_checks(eq.EMA)][:2]
        ['can_be_made', 'promises_are_known']
    """
    made = partial(Subject, make, always=always, **hyperparameters)
    checks = [Check("can_be_made", made)]
    try:
        subject = made()
    except Exception:  # which the check raises again
        return checks
    own = (*CHECKS, _promises.check_masked) if subject.masked else CHECKS
    checks += [Check(check.__name__.removeprefix("check_"), partial(check, subject), subject) for check in own]
    aggregator = _aggregator(make)
    if aggregator is not None:
        checks += aggregator_checks(partial(aggregator, **hyperparameters))
    if ranks:
        checks.append(Check("ranks", partial(check_ranks, subject), subject))
    there = () if subject.draws else devices
    return checks + [Check(f"device_{device}", partial(_devices.check_device, subject, device)) for device in there]


def aggregator_checks(make: Callable[[], Aggregator]) -> list[Check]:
    """Returns the checks of an aggregator by itself, on sampled Jacobians `[K, P]`, and of what its class promises.

    Args:
        make: makes one.

    Example:
        >>> import equipoise as eq
        >>> from equipoise.testing import aggregator_checks
        >>> [check.name for check in aggregator_checks(eq.MGDA)][-1]
        'non_conflicting'
    """
    promised = [name for name in PROMISES if getattr(make(), name)]
    seeded = partial(_ready, make)
    checks: dict[str, Any] = {check.__name__.removeprefix("check_"): check for check in ALWAYS}
    checks |= {name: PROMISES[name] for name in promised}
    return [Check(name, partial(check, seeded)) for name, check in checks.items()]


def _aggregator(make: object) -> Callable[..., Aggregator] | None:
    """What makes the aggregator by itself, of a class, an instance or a name that is one; None of anything else."""
    if isinstance(make, str):
        spec = METHODS.get(make)
        make = find_own(make) if spec is None else spec.aggregator
    if inspect.isclass(make) and issubclass(make, Aggregator):
        return make
    return partial(copy.deepcopy, make) if isinstance(make, Aggregator) else None


def _ready(make: Callable[[], Aggregator]) -> Ready:
    """Makes one that draws the same numbers every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Ready(make())


def check_method(
    make: Callable[..., Method] | object,
    *,
    ranks: bool = False,
    devices: tuple[str, ...] = (),
    always: str | None = None,
    **hyperparameters: Any,
) -> list[str]:
    """Holds a method to the contract.

    That is: tasks missing in a batch, resuming bit for bit, errors that change nothing, micro-batches, a GradScaler,
    determinism, copies, precision, and what an aggregator's class promises.

    Args:
        make: as in `method_checks`.
        ranks: as in `method_checks`.
        devices: as in `method_checks`.
        always: as in `method_checks`.
        **hyperparameters: as in `method_checks`.

    Returns:
        The names of the checks that it passed, which are all.

    Raises:
        ContractError: it failed some; an AssertionError that names each with what was done and found, and what that
            usually comes from. The error of the first is its cause.

    Example:
        >>> import equipoise as eq
        >>> from equipoise.testing import check_method
        >>> len(check_method(eq.EMA)) > 15
        True
    """
    checks = method_checks(make, ranks=ranks, devices=devices, always=always, **hyperparameters)
    failures = {check.name: failure for check in checks if (failure := check.failure()) is not None}
    if failures:
        raise summary(failures, len(checks)) from next(iter(failures.values())).error
    return [check.name for check in checks]


__all__ = [
    "CHECKS",
    "Check",
    "ContractError",
    "Network",
    "Subject",
    "aggregator_checks",
    "batch",
    "check_method",
    "method_checks",
]
