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

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from equipoise._method import Method
from equipoise.aggregators import Aggregator
from equipoise.testing import _devices, _state, _training
from equipoise.testing._properties import ALWAYS, PROMISES
from equipoise.testing._ranks import check_ranks
from equipoise.testing._subject import Network, Subject, batch

CHECKS: tuple[Callable[[Subject], None], ...] = tuple(
    value
    for module in (_training, _state)
    for name, value in vars(module).items()
    if name.startswith("check_") and value.__module__ == module.__name__
)
"""What every method has to pass, each a function of a `Subject`."""


@dataclass(frozen=True)
class Check:
    """One check of one method; calling it runs it.

    Attributes:
        name: what it checks.
        run: raises AssertionError if the method does not pass.
    """

    name: str
    run: Callable[[], None]

    def __call__(self) -> None:
        """Runs it."""
        self.run()

    def __str__(self) -> str:
        return self.name


def method_checks(
    make: Callable[..., Method] | object, *, ranks: bool = False, devices: tuple[str, ...] = ()
) -> list[Check]:
    """Returns the checks of a method, to be called one by one.

    Args:
        make: whatever `equipoise.make_method` takes for a name (a class, an instance, `FILE.py:NAME`, …); or a
            function of a network, tasks and keywords (`lr`, `weight_decay`) that makes the `Method`.
        ranks: also in two processes against one; what makes the method must be importable.
        devices: also on these, such as "cuda", against the CPU.

    Returns:
        The checks of `CHECKS`, those of what an aggregator's class promises, and those asked for.

    Example:
        >>> import equipoise as eq
        >>> from equipoise.testing import method_checks
        >>> [check.name for check in method_checks(eq.EMA)][:2]
        ['trains_and_stays_finite', 'loss_falls_on_one_batch']
    """
    subject = Subject(make)
    checks = [Check(check.__name__.removeprefix("check_"), partial(check, subject)) for check in CHECKS]
    if inspect.isclass(make) and issubclass(make, Aggregator):
        checks += aggregator_checks(make)
    if ranks:
        checks.append(Check("ranks", partial(check_ranks, subject)))
    checks += [Check(f"device_{device}", partial(_devices.check_device, subject, device)) for device in devices]
    return checks


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
    seeded = partial(_seeded, make)
    checks: dict[str, Any] = {check.__name__.removeprefix("check_"): check for check in ALWAYS}
    checks |= {name: PROMISES[name] for name in promised}
    return [Check(name, partial(check, seeded)) for name, check in checks.items()]


def _seeded(make: Callable[[], Aggregator]) -> Aggregator:
    """Makes one that draws the same numbers every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def check_method(
    make: Callable[..., Method] | object, *, ranks: bool = False, devices: tuple[str, ...] = ()
) -> list[str]:
    """Holds a method to the contract.

    That is: tasks missing in a batch, resuming bit for bit, errors that change nothing, micro-batches, a GradScaler,
    determinism, copies, precision, and what an aggregator's class promises.

    Args:
        make: as in `method_checks`.
        ranks: as in `method_checks`.
        devices: as in `method_checks`.

    Returns:
        The names of the checks that it passed, which are all.

    Raises:
        AssertionError: it failed some; the message names each with the first line of why, and the first one's error
            is its cause.

    Example:
        >>> import equipoise as eq
        >>> from equipoise.testing import check_method
        >>> len(check_method(eq.EMA)) > 15
        True
    """
    checks = method_checks(make, ranks=ranks, devices=devices)
    failed: dict[str, Exception] = {}
    for check in checks:
        try:
            check()
        except Exception as error:
            failed[check.name] = error
    if failed:
        lines = [f"  {name}: {type(e).__name__}: {str(e).partition(chr(10))[0]}" for name, e in failed.items()]
        raise AssertionError("\n".join([f"{len(failed)} of {len(checks)} checks failed:", *lines])) from next(
            iter(failed.values())
        )
    return [check.name for check in checks]


__all__ = ["CHECKS", "Check", "Network", "Subject", "aggregator_checks", "batch", "check_method", "method_checks"]
