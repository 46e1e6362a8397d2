"""What of a saved state goes over to a Balancer or an optimizer of other tasks: what belongs to the tasks of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from equipoise._saved import repacked, unpacked
from equipoise._state import TaskModule, is_of_rows

Match = Literal["equal", "intersection"]
"""Which tasks a state may be of: the same, or others, of which those of both are taken over."""

MATCHES = ("equal", "intersection")

SHAPED = ("exp_avg", "momentum_buffer")
"""Parts of the names of what an optimizer keeps in the parameter's shape."""


def in_common(found: Sequence[Any], own: Sequence[Any]) -> dict[int, int]:
    """Returns where the tasks (or groups of tasks) of both stand: own index → index in the state.

    Raises:
        ValueError: there is none.
    """
    at = {own.index(task): index for index, task in enumerate(found) if task in own}
    if not at:
        raise ValueError(f"This state_dict has no task of these: found {list(found)}, expected some of {list(own)}.")
    return at


def put(into: Tensor, value: Tensor, at: Mapping[int, int], pairs: bool = False) -> Tensor:
    """Returns a copy of `[K, ...]` numbers with those of other tasks' `[K₀, ...]` at the places of the tasks of both.

    By pairs, they are `[K, K]` and `[K₀, K₀]`.
    """
    result = into.detach().clone()
    own, found = (torch.tensor(list(places), device="cpu") for places in (at.keys(), at.values()))
    if pairs:
        result[own[:, None], own] = value[found[:, None], found].to(result)
    else:
        result[own] = value[found].to(result)
    return result


def balancer_state(balancer: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the state that a Balancer has after taking over that of one of other tasks, of the same method.

    Raises:
        ValueError: no task is in both; or something does not fit, or is not kept by task.
    """
    found = unpacked(state["_extra_state"])
    if found["tasks"] == list(balancer.tasks):
        return dict(state)
    at = in_common(found["tasks"], balancer.tasks)
    own = balancer.state_dict()
    rows = {name: value for name, value in state.items() if is_of_rows(name)}
    own = {name: value.new_zeros(len(balancer.tasks), *value.shape[1:]) for name, value in rows.items()} | own
    by_task = set(rows)
    by_pair: set[str] = set()
    learned: dict[str, int | None] = {}
    for prefix, module in _task_modules(balancer):
        if module.more_state():
            raise ValueError(f"{type(module).__name__} keeps state that it does not tell apart by task: make it anew.")
        by_task |= {f"{prefix}{name}" for name in module._states}
        by_pair |= {f"{prefix}{name}" for name in module._pairs}
        for name in module._learned:
            learned |= {f"{prefix}{name}.{i}": at.get(i) for i in range(len(balancer.tasks))}
    taken: dict[str, Any] = {"_extra_state": _extra_state(own.pop("_extra_state"), found)}
    for name, before in own.items():
        source = name
        if is_of_rows(name) and name not in rows:
            continue
        if name in learned:
            if learned[name] is None:
                continue
            source = f"{name.rpartition('.')[0]}.{learned[name]}"
        value = state.get(source)
        if isinstance(before, Tensor):
            count = len(found["tasks"])
            rest = (count,) if name in by_pair else before.shape[1:]
            shape = (count, *rest) if name in by_task else before.shape
            if getattr(value, "shape", None) != shape:
                raise ValueError(
                    f"This state_dict does not fit the Balancer: {source!r} is {found_as(value)}, expected a tensor of "
                    f"shape {tuple(shape)}. Load it into a Balancer made with the same arguments."
                )
        elif source not in state:
            raise ValueError(f"This state_dict does not fit the Balancer: it lacks {source!r}.")
        taken[name] = put(before, state[source], at, name in by_pair) if name in by_task else value
    return {**own, **taken}


def found_as(value: object) -> str:
    """Says what was found in place of a tensor of another shape."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _task_modules(balancer: nn.Module) -> Iterator[tuple[str, TaskModule]]:
    """What keeps state by task, behind the beginning of its names."""
    return ((f"{prefix}.", m) for prefix, m in balancer.named_modules() if isinstance(m, TaskModule))


def _extra_state(packed: Tensor, found: Mapping[str, Any]) -> Tensor:
    """The part of a Balancer's state that is not numbers; what was found shared is, unless a task is gone since."""
    own = unpacked(packed)
    weights = {
        kind: {**held, **{task: weight for task, weight in found["weights"][kind].items() if task in own["tasks"]}}
        for kind, held in own["weights"].items()
    }
    shared = found["shared"] if set(found["tasks"]) <= set(own["tasks"]) else own["shared"]
    return repacked(packed, {**own, "shared": shared, "position": found.get("position", 0), "weights": weights})


def learned_names(balancer: nn.Module) -> list[str]:
    """Returns the names of a Balancer's parameters, of those that a task has with the task's name."""
    names = {name: name for name, _ in balancer.named_parameters()}
    for prefix, module in _task_modules(balancer):
        for name in module._learned:
            names |= {f"{prefix}{name}.{i}": f"{prefix}{name}.{task}" for i, task in enumerate(module.tasks or ())}
    return list(names.values())


def _entries(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """What an optimizer keeps of a parameter, by name; PerTask has a mapping for every task."""
    for name, value in state.items():
        if isinstance(value, Mapping):
            yield from _entries(value)
        elif isinstance(value, Tensor):
            yield name, value


def optimizer_state(
    optimizer: Optimizer,
    state: Mapping[str, Any],
    own_names: Sequence[Any] | None,
    found_names: Sequence[Any] | None,
    merge: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] = lambda own, found: found,
) -> dict[str, Any]:
    """Returns the state of an optimizer after taking over another's, of the parameters of both.

    Args:
        optimizer: takes over.
        state: the other's.
        own_names: the parameters' names, in the optimizer's order; None: by place.
        found_names: those of the other's parameters.
        merge: makes of the own and the other's state of a parameter the one to have.

    Raises:
        ValueError: the parameters have no names and are not as many, the groups are not as many, or a parameter has
            another shape.
    """
    own = optimizer.state_dict()
    groups, found_groups = own["param_groups"], state["param_groups"]
    if len(groups) != len(found_groups):
        raise ValueError(
            f"This state_dict has {len(found_groups)} groups of parameters, expected {len(groups)}: give the optimizer "
            "the same groups."
        )
    keys, found_keys = (list(chain.from_iterable(g["params"] for g in each)) for each in (groups, found_groups))
    if own_names is None or found_names is None:
        if len(keys) != len(found_keys):
            raise ValueError(
                f"This state_dict is of {len(found_keys)} parameters, expected {len(keys)}. Where they are others than "
                "before, both optimizers need their names: give them model.named_parameters()."
            )
        own_names = found_names = range(len(keys))
    at = dict(zip(found_names, found_keys, strict=False))
    parameters = dict(zip(keys, chain.from_iterable(g["params"] for g in optimizer.param_groups), strict=True))
    for key, name in zip(keys, own_names, strict=False):
        found = state["state"].get(at.get(name))
        if found is None:
            continue
        for kind, value in _entries(found):
            if any(shaped in kind for shaped in SHAPED) and value.shape != parameters[key].shape:
                raise ValueError(
                    f"This state_dict does not fit the parameter {name!r}: {kind!r} has the shape "
                    f"{tuple(value.shape)}, expected {tuple(parameters[key].shape)}."
                )
        own["state"][key] = merge(own["state"].get(key, {}), found)
    kept = ("params", "param_names")
    merged = [
        {**{k: v for k, v in old.items() if k not in kept}, **{k: v for k, v in new.items() if k in kept}}
        for old, new in zip(found_groups, groups, strict=True)
    ]
    return {**own, "param_groups": merged}
