"""A person's own methods: a class, or an instance, of one of the kinds that there are."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from equipoise._importing import import_place
from equipoise.aggregators import Aggregator
from equipoise.objectives import Objective, Weighting
from equipoise.optim import BalancingOptimizer
from equipoise.registry._spec import ONE_PASS, PASS_PER_TASK, MethodSpec

GROUP = "equipoise.methods"
"""The entry points by which a package brings methods: name → class or instance."""

RESERVED = ("name", "model", "tasks", "lr", "weight_decay", "probe", "chunk_size", "engine", "every", "check_finite")
"""Arguments of `make_method` that no method's class can have for its own."""

KINDS = (
    "a class or an instance of an Objective, a Weighting or an Aggregator, or the class of a BalancingOptimizer, as "
    "MAO is one"
)


def spec_of(given: object, name: str) -> MethodSpec:
    """Returns what is known of a method that a person brings.

    Args:
        given: a class, whose arguments are the hyperparameters, or an instance, which has none left; every use of an
            instance is a copy of it as it is now.
        name: what it is called.

    Raises:
        TypeError: it is none of the kinds.
    """
    made = given if inspect.isclass(given) else type(given)
    takes: Callable[..., Any] = given if inspect.isclass(given) else lambda: copy.deepcopy(given)
    balances = inspect.isclass(given) and issubclass(given, BalancingOptimizer)
    if not is_method(given):
        raise TypeError(f"name must be one of list_methods(), or {KINDS}; found {given!r}.")
    known = _known(made)
    details = {"needs_potentials": "potentials" in inspect.signature(made).parameters} | known
    taken = [name for name in inspect.signature(made).parameters if name in RESERVED]
    if taken and inspect.isclass(given) and not balances:
        raise TypeError(
            f"{made.__name__} takes {', '.join(taken)}, which make_method takes for itself: give the argument another "
            "name, or pass an instance."
        )
    description = (inspect.getdoc(made) or made.__name__).partition("\n")[0].rstrip(".")
    space = dict(getattr(made, "search_space", {})) if inspect.isclass(given) else {}
    if issubclass(made, (Objective, Weighting)):
        return MethodSpec(description, name, ONE_PASS, takes, objective=takes, search_space=space, **details)
    if issubclass(made, Aggregator):
        return MethodSpec(description, name, PASS_PER_TASK, takes, aggregator=takes, search_space=space, **known)
    return MethodSpec(description, name, PASS_PER_TASK, takes, optimizer=takes, search_space=space)


def _known(made: type) -> dict[str, Any]:
    """What the registry says of a class of this library's, or of one derived from it, beside how it is made."""
    from equipoise.registry import METHODS  # which is made of such specs

    for base in made.__mro__:
        for spec in METHODS.values():
            if spec.takes is base and spec.objective in (None, base):
                names = ("learns_weights", "probes_last_layer", "needs_potentials", "every")
                return {name: getattr(spec, name) for name in names}
    return {}


def find_own(name: str) -> object | None:
    """Returns what stands behind a name that is not this library's: an entry point's, or `FILE.py:NAME`; else None.

    Raises:
        ImportError: the file or module cannot be imported.
        ValueError: it holds nothing of that name, or none is named.
    """
    for entry in entry_points(group=GROUP, name=name):
        found: object = entry.load()
        return found
    if name.endswith(".py"):
        names = methods_in(import_place(name, anew=False), name)
        raise ValueError(f"Which method in {name}? Write {name}:NAME; it has {', '.join(names) or 'none'}.")
    place, colon, attribute = name.rpartition(":")
    if not colon:
        return None
    module = import_place(place, anew=False)
    if not hasattr(module, attribute):
        names = methods_in(module, place)
        hint = f"; it has {', '.join(names)}" if names else ""
        raise ValueError(f"{place} has nothing named {attribute!r}{hint}.")
    value: object = getattr(module, attribute)
    return value


def methods_in(module: ModuleType, place: str) -> list[str]:
    """Returns the methods that a file or module has of its own, as `PLACE:NAME` each; instances, too."""
    return [
        f"{place}:{key}"
        for key, value in vars(module).items()
        if is_method(value) and (value.__module__ == module.__name__ or not inspect.isclass(value))
    ]


def is_method(given: object) -> bool:
    """Whether it is a class or an instance of one of the kinds that there are."""
    if inspect.isclass(given):
        return issubclass(given, (Objective, Weighting, Aggregator, BalancingOptimizer))
    return isinstance(given, (Objective, Weighting, Aggregator))
