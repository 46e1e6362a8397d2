"""Parameters that `fully_shard` (FSDP2) spreads over ranks: DTensors, of which each rank holds a shard."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor. Importing that class takes more than a second; where there is one, it has been."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Returns this rank's shard, which shares the DTensor's memory; any other tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def locals_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Returns `local` of each tensor: arithmetic on shards goes without DTensor's dispatch."""
    return [local(tensor) for tensor in tensors]


def gathered(tensor: Tensor) -> Tensor:
    """Returns a DTensor in full, which takes all ranks; any other tensor as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def like(shard: Tensor, whole: Tensor) -> Tensor:
    """Returns the DTensor laid out as `whole` of which this rank holds `shard`; `shard` if `whole` is no DTensor."""
    if not is_sharded(whole):
        return shard
    spread: Any = whole
    made: Tensor = type(spread).from_local(
        shard,
        spread.device_mesh,
        spread.placements,
        run_check=False,
        shape=spread.shape,
        stride=spread.stride(),
    )
    return made


def shard_of(values: Tensor, whole: Tensor) -> Tensor:
    """Returns the part of `values`, which every rank has in full, that belongs to this rank's shard of `whole`."""
    if not is_sharded(whole):
        return values
    spread: Any = whole
    for dim, placement in enumerate(spread.placements):
        if placement.is_shard():
            parts, rank = spread.device_mesh.size(dim), spread.device_mesh.get_local_rank(dim)
            size = -(-values.shape[placement.dim] // parts)
            start = min(rank * size, values.shape[placement.dim])
            values = values.narrow(placement.dim, start, min(size, values.shape[placement.dim] - start))
    return values


def sharding_groups(tensor: Tensor) -> tuple[Any, ...]:
    """Returns the process groups over which the tensor's elements are spread; none for a plain tensor."""
    if not is_sharded(tensor):
        return ()
    spread: Any = tensor
    dims = (dim for dim, placement in enumerate(spread.placements) if placement.is_shard())
    return tuple(spread.device_mesh.get_group(dim) for dim in dims)


def sum_over(groups: Sequence[Any], tensor: Tensor) -> Tensor:
    """Adds up a tensor over process groups, in place."""
    for group in groups:
        dist.all_reduce(tensor, group=group)
    return tensor


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Returns the norm of all elements together, 0-dim; of sharded tensors those on all ranks."""
    groups = [sharding_groups(tensor) for tensor in tensors]
    norms = []
    for over in dict.fromkeys(groups):
        own = [local(tensor) for tensor, spread in zip(tensors, groups, strict=True) if spread == over]
        norm = torch.nn.utils.get_total_norm(own)
        norms.append(sum_over(over, norm.square()).sqrt() if over else norm)
    return torch.stack(norms).norm() if len(norms) > 1 else norms[0]
