"""States of sharded parameters as a checkpoint has them: whole, in ordinary tensors on the CPU of the first device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from equipoise.gradients.shards import gathered, is_sharded, like, shard_of


def gather(state: Any, keep: bool) -> Any:
    """Returns a state with its sharded tensors whole, one after the other; takes all devices.

    Args:
        state: tensors and whatever else in any nesting of mappings and lists.
        keep: whether this device wants them; else None stands in their place.
    """
    if isinstance(state, Mapping):
        return {key: gather(value, keep) for key, value in state.items()}
    if isinstance(state, list):
        return [gather(value, keep) for value in state]
    if not isinstance(state, Tensor) or not is_sharded(state):
        return state
    whole = gathered(state)
    return whole.cpu() if keep else None


def spread(whole: Tensor, own: Tensor) -> Tensor:
    """Returns this device's part of a tensor, laid out as `own`; the tensor itself if `own` is whole or it is not."""
    if not is_sharded(own) or is_sharded(whole):
        return whole
    return like(shard_of(whole.to(own.device), own).clone(), own)


def spread_moments(state: Mapping[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """Returns an optimizer's state with what is of a parameter's shape laid out as that is.

    Args:
        state: what `gather` gave of its `state_dict()`.
        parameters: the optimizer's, in the order of its groups.
    """

    def place(value: Any, parameter: Tensor) -> Any:
        if isinstance(value, Mapping):
            return {key: place(inner, parameter) for key, inner in value.items()}
        fits = isinstance(value, Tensor) and value.shape == parameter.shape
        return spread(value, parameter) if fits else value

    moments = {index: place(value, parameters[index]) for index, value in state["state"].items()}
    return {**state, "state": moments}
