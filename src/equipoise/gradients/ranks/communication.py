"""What the ranks of a process group tell each other: errors, small numbers, and gradients in buckets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from equipoise._state import TaskModule
from equipoise.gradients.sparse import coalesced

T = TypeVar("T")

BUCKET_BYTES = 25 << 20
"""Gradients are reduced together up to this size: enough for full bandwidth, little enough to overlap."""

MESSAGE_BYTES = 2048
"""Room for an error's text."""


class Ranks:
    """The ranks that train one model together: a no-op unless torch.distributed runs with two or more of them.

    The host decides by what the ranks hold (which tasks, which parameters), so it asks over a group that takes CPU
    tensors: the group itself, or, where its backend takes none (NCCL), a gloo group beside it, made when first needed.
    No rank waits for its accelerator in this.

    Args:
        process_group: the group; None: the default one.
    """

    def __init__(self, process_group: Any = None) -> None:
        self.process_group = process_group
        self._host_groups: dict[Any, Any] = {}  # the group → the one beside it; a new default group gets a new one

    def __deepcopy__(self, memo: dict[int, Any]) -> Ranks:
        return Ranks(self.process_group)

    def __getstate__(self) -> dict[str, Any]:
        return {"process_group": self.process_group, "_host_groups": {}}

    @property
    def active(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    @property
    def size(self) -> int:
        """How many there are; 1 without torch.distributed."""
        if not (dist.is_available() and dist.is_initialized()):
            return 1
        return dist.get_world_size(self.process_group)

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """Returns every rank's numbers, of the same length on all; on the host."""
        mine = torch.tensor(numbers, dtype=torch.int64, device="cpu")
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everyone, mine, group=self._host_group())
        return [numbers.tolist() for numbers in everyone]

    def agree(self, error: Exception | None, numbers: Sequence[int] = ()) -> list[list[int]]:
        """Returns every rank's numbers, or raises on all ranks if one has found an error.

        Raises:
            Exception: `error`, on the rank that found it.
            ValueError: another rank's error, by its number.
        """
        everyone = self.gather([int(error is not None), *numbers])
        failed = [rank for rank, (flag, *_) in enumerate(everyone) if flag]
        if failed:
            text = str(error).encode()[:MESSAGE_BYTES] if error is not None else b""
            texts = self.gather(list(text.ljust(MESSAGE_BYTES)))
            if error is not None:
                raise error
            rank = failed[0]
            raise ValueError(f"On rank {rank}: {bytes(texts[rank]).decode(errors='ignore').rstrip()}")
        return [numbers for _, *numbers in everyone]

    def checked(self, check: Callable[..., T], *arguments: Any) -> T:
        """Returns what the check returns, or raises on all ranks if it fails on one; errors as in `agree`."""
        if not self.active:
            return check(*arguments)
        error = None
        try:
            result = check(*arguments)
        except (TypeError, ValueError) as found:
            error = found
        self.agree(error)
        return result

    def union(self, mask: Tensor) -> Tensor:
        """Returns where any rank's uint8 CPU mask is 1; of the same shape on all."""
        dist.all_reduce(mask, dist.ReduceOp.MAX, group=self._host_group())
        return mask

    def sum_(self, tensor: Tensor) -> Tensor:
        """Adds up a small tensor over the ranks, in place."""
        dist.all_reduce(tensor, group=self._group_of(tensor))
        return tensor

    def all_true(self, flag: Tensor) -> Tensor:
        """Whether the 0-dim bool is true on every rank."""
        if not self.active:
            return flag
        return self.sum_((~flag).to(torch.int32)) == 0

    def share_state(self, module: nn.Module) -> bool:
        """Has all ranks go on from the first one's buffers, parameters and random generators, however they were seeded.

        Returns:
            Whether there are others to share it with.
        """
        if not self.active:
            return False
        parts = [part for part in module.modules() if isinstance(part, TaskModule)]
        for part in parts:
            part.settle()
        generators = [part.generator for part in parts if part.generator is not None]
        states = [generator.get_state() for generator in generators]
        first = dist.get_process_group_ranks(self.process_group or dist.group.WORLD)[0]
        for tensor in (*states, *module.buffers(), *(p.detach() for p in module.parameters())):
            received = tensor.clone()  # what is received is written past the counter of changes, which `Kept` goes by
            dist.broadcast(received, first, group=self._group_of(received))
            tensor.copy_(received)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        return True

    def _group_of(self, tensor: Tensor) -> Any:
        return self._host_group() if tensor.device.type == "cpu" else self.process_group

    def _host_group(self) -> Any:
        group = self.process_group or dist.group.WORLD
        if group not in self._host_groups:
            takes_cpu = "cpu:" in dist.get_backend_config(group)
            members = dist.get_process_group_ranks(group)
            beside = group if takes_cpu else dist.new_group(members, backend="gloo", use_local_synchronization=True)
            self._host_groups = {group: beside}
        return self._host_groups[group]


class Reduction:
    """Sums gradients over the ranks while the caller goes on: `start` any number of times, then `wait`.

    Args:
        ranks: the ranks.
        factor: what the sums are multiplied with.
    """

    def __init__(self, ranks: Ranks, factor: float = 1.0) -> None:
        self._ranks = ranks
        self._factor = factor
        self._pending: list[tuple[Any, Tensor]] = []

    def start(self, row: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Starts to reduce leaf → gradient, of the same leaves in the same order on all ranks.

        Sparse gradients become dense: which rows they touch differs between ranks, and so may whether they are sparse.

        Returns:
            Leaf → its sum over the ranks once `wait` has returned, laid out like the leaf: views of the buckets.
        """
        row = {
            leaf: coalesced(gradient).to_dense() if gradient.is_sparse else gradient for leaf, gradient in row.items()
        }
        reduced: dict[Tensor, Tensor] = {}
        for leaves in _bucketed(row):
            first = row[leaves[0]]
            bucket = first.new_empty(sum(leaf.numel() for leaf in leaves))
            parts = torch.split(bucket, [leaf.numel() for leaf in leaves])
            views = {leaf: _laid_out(part, leaf) for leaf, part in zip(leaves, parts, strict=True)}
            torch._foreach_copy_(list(views.values()), [row[leaf] for leaf in leaves])
            group = self._ranks._group_of(bucket)
            self._pending.append((dist.all_reduce(bucket, group=group, async_op=True), bucket))
            reduced |= views
        return {leaf: reduced[leaf] for leaf in row}

    def wait(self) -> None:
        """Returns when everything started is reduced (on an accelerator: in the order of its stream)."""
        for work, bucket in self._pending:
            work.wait()
            if self._factor != 1:
                bucket.mul_(self._factor)
        self._pending = []


def _bucketed(row: Mapping[Tensor, Tensor]) -> list[list[Tensor]]:
    """Cuts the leaves into lists of one dtype and device, each of at most BUCKET_BYTES or one leaf."""
    buckets: list[list[Tensor]] = []
    filling: dict[tuple[torch.dtype, torch.device], tuple[list[Tensor], int]] = {}
    for leaf, gradient in row.items():
        key = gradient.dtype, gradient.device
        bucket, used = filling.get(key, ([], BUCKET_BYTES))
        size = gradient.numel() * gradient.element_size()
        if used + size > BUCKET_BYTES:
            bucket, used = [], 0
            buckets.append(bucket)
        bucket.append(leaf)
        filling[key] = bucket, used + size
    return buckets


def _laid_out(flat: Tensor, leaf: Tensor) -> Tensor:
    """A view of the flat tensor in the leaf's shape, and in its memory order if the leaf has no gaps."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(leaf.shape, leaf.stride(), strict=True))
    if leaf.numel() == extent:
        return flat.as_strided(leaf.shape, leaf.stride(), flat.storage_offset())
    return flat.view(leaf.shape)
