"""Which parameters are shared between tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from equipoise.gradients.graph.wrappers import parameter_names

Parameters = nn.Module | Iterable[nn.Parameter]
"""A module, which stands for its parameters, or parameters."""


def parameter_list(name: str, parameters: nn.Module | Iterable[Tensor]) -> list[Tensor]:
    """Returns the parameters; `name` is the argument's.

    Raises:
        TypeError: `parameters` is a single tensor, or neither a module nor an iterable.
        ValueError: something is not a tensor.
    """
    if isinstance(parameters, Tensor):
        raise TypeError(f"{name} must be a module or an iterable of parameters, found a tensor: put it in a list.")
    if not isinstance(parameters, nn.Module | Iterable):
        raise TypeError(f"{name} must be a module or an iterable of parameters, found {parameters!r}.")
    found: list[Tensor] = list(parameters.parameters() if isinstance(parameters, nn.Module) else parameters)
    for value in found:
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} must be a module or an iterable of parameters, found {value!r} among them.")
    return found


def parameter_set(name: str, parameters: Parameters) -> dict[Tensor, None]:
    """Returns the parameters as an ordered set; `name` is the argument's.

    Raises:
        TypeError: see `parameter_list`.
        ValueError: see `parameter_list`; there is none.
    """
    found = dict.fromkeys(parameter_list(name, parameters))
    if not found:
        raise ValueError(f"{name} must be a module with parameters or a non-empty iterable of parameters, found none.")
    return found


class SharedParameters:
    """The parameters that are shared: those given, else those that two or more tasks have ever reached in one step.

    Args:
        given: takes the place of what is found.
        model: gives the parameters names, under which the found ones can be saved.

    Raises:
        TypeError: `model` is no module; or see `parameter_set`.
        ValueError: see `parameter_set`.
    """

    def __init__(self, given: Parameters | None, model: nn.Module | None) -> None:
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, found {model!r}.")
        self.given = None if given is None else parameter_set("shared", given)
        self._found: Any = WeakIdKeyDictionary()
        self._model = model
        self._known_names: Any = WeakIdKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_found": list(self._found), "_known_names": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        found = WeakIdKeyDictionary(dict.fromkeys(state["_found"]))
        vars(self).update(state, _found=found, _known_names=WeakIdKeyDictionary())

    def find(self, reached: Iterable[Iterable[Tensor]]) -> dict[Tensor, None]:
        """Returns what is shared of the trained leaves that each task reaches in a step; `keep` takes note of it."""
        rows = list(reached)
        if self.given is not None:
            return {leaf: None for row in rows for leaf in row if leaf in self.given}
        tasks = Counter(map(id, chain.from_iterable(rows)))  # a tensor's own hash is slow, and a weak one's slower
        known = self._found_ids
        leaves = {id(leaf): leaf for row in rows for leaf in row}
        return {leaf: None for key, leaf in leaves.items() if tasks[key] > 1 or key in known}

    def keep(self, found: Iterable[Tensor]) -> None:
        """Takes note of what `find` gave: it stays shared."""
        if self.given is None:
            known = self._found_ids
            self._found.update((leaf, None) for leaf in found if id(leaf) not in known)

    @property
    def _found_ids(self) -> set[int]:
        return set(map(hash, self._found.keyrefs()))  # what a reference by identity has as its hash

    @property
    def known(self) -> list[Tensor]:
        """The shared parameters so far."""
        return list(self._found if self.given is None else self.given)

    @property
    def _named(self) -> dict[str, Tensor]:
        """Name → parameter, of those that the model has by now."""
        return {} if self._model is None else parameter_names(self._model)

    @property
    def possible_names(self) -> list[str]:
        """The names of all parameters that the model has."""
        return list(self._named)

    def names_of(self, leaves: Iterable[Tensor]) -> list[str]:
        """Returns the names of shared parameters: the model's, or else their places in what was given."""
        wanted = list(leaves)
        if any(leaf not in self._known_names for leaf in wanted):
            places = {leaf: str(index) for index, leaf in enumerate(self.given or ())}
            self._known_names.update(places | {leaf: name for name, leaf in self._named.items()})
        return [self._known_names[leaf] for leaf in wanted]

    @property
    def names(self) -> list[str]:
        """The names of the found parameters that the model has."""
        return [name for name, leaf in self._named.items() if leaf in self._found]

    def restore(self, names: Iterable[str]) -> None:
        """Takes over what `names` gave; what was found among the model's parameters before is forgotten."""
        named = self._named
        for leaf in named.values():
            if leaf in self._found:
                del self._found[leaf]
        self._found.update((named[name], None) for name in names if name in named)
