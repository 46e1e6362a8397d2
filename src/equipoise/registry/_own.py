"""A person's own methods: a class, or an instance, of one of the kinds that there are."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from equipoise._importing import import_place
from equipoise.aggregators import Aggregator
from equipoise.objectives import Objective, Weighting
from equipoise.optim import BalancingOptimizer
from equipoise.registry._spec import ONE_PASS, PASS_PER_TASK, MethodSpec

GROUP = "equipoise.methods"
"""The entry points by which a package brings methods: name → class or instance."""

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
    description = (inspect.getdoc(made) or made.__name__).partition("\n")[0].rstrip(".")
    space = dict(getattr(made, "search_space", {})) if inspect.isclass(given) else {}
    if issubclass(made, (Objective, Weighting)):
        return MethodSpec(description, name, ONE_PASS, takes, objective=takes, search_space=space)
    if issubclass(made, Aggregator):
        return MethodSpec(description, name, PASS_PER_TASK, takes, aggregator=takes, search_space=space)
    if inspect.isclass(given) and issubclass(given, BalancingOptimizer):
        return MethodSpec(description, name, PASS_PER_TASK, takes, optimizer=takes, search_space=space)
    raise TypeError(f"name must be one of list_methods(), or {KINDS}; found {given!r}.")


def find_own(name: str) -> object | None:
    """Returns what stands behind a name that is not this library's: an entry point's, or `FILE.py:NAME`; else None.

    Raises:
        ImportError: the file or module cannot be imported.
        ValueError: it holds nothing of that name.
    """
    for entry in entry_points(group=GROUP, name=name):
        found: object = entry.load()
        return found
    place, colon, attribute = name.rpartition(":")
    if not colon:
        return None
    module = import_place(place)
    if not hasattr(module, attribute):
        kinds = (Objective, Weighting, Aggregator, BalancingOptimizer)
        names = [key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, kinds)]
        own = [key for key in names if vars(module)[key].__module__ == module.__name__]
        hint = f"; it has {', '.join(f'{place}:{key}' for key in own)}" if own else ""
        raise ValueError(f"{place} has nothing named {attribute!r}{hint}.")
    value: object = getattr(module, attribute)
    return value
