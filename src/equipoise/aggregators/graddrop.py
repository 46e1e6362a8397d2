"""GradDrop: one sign for every element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from equipoise._checks import check_known, check_number
from equipoise.aggregators._base import Aggregator, Gradients
from equipoise.gradients.gramian import as_real
from equipoise.gradients.shards import like, local, shard_of
from equipoise.search_space import Range, SearchSpace


class GradDrop(Aggregator):
    """Lets, in every element of the gradient, only the tasks of one sign through, drawn in proportion to its weight.

    Per element, with `P = ½(1 + Σ_k g_k/Σ_k |g_k|)` and U uniform on [0, 1): `M_k = [g_k > 0]` if `U < P`, else
    `M_k = [g_k < 0]`; the result is `Σ_k (l_k + (1 − l_k) M_k) g_k` with the leaks `l_k`.

    U comes from a generator on the gradients' device, seeded once a step from the aggregator's own CPU generator,
    whose state is saved: the draw is the same on every rank, and cheap on an accelerator. Devices of different
    kinds draw different numbers.

    Preferences `p_k` multiply the gradients, as if they were in front of the losses.

    Args:
        leak: the share of a task's gradient that always passes, in [0, 1]: one number for all tasks, or a mapping
            from task to number, 0 for a task it leaves out.
        seed: of the draws; None takes one from PyTorch's default generator.

    Raises:
        ValueError: a leak is outside [0, 1]; on `bind`, an unknown task in `leak`.

    Source: Chen et al., "Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout", NeurIPS
    2020, Algorithm 1, on the shared parameters' gradients. (The paper mostly drops at an activation, where signs are
    taken of gradient times activation, summed over the batch.)

    Example:
        >>> import torch
        >>> from equipoise.aggregators import GradDrop
        >>> GradDrop(seed=0)(torch.tensor([[1.0, -2.0], [3.0, -1.0]]))
        tensor([ 4., -3.])
    """

    takes_preferences = True
    masked = True  # the gradients of tasks that take no part are 0, and pass or not
    permutation_invariant = True
    homogeneous = True
    search_space: ClassVar[SearchSpace] = {"leak": Range(0.0, 1.0)}

    def __init__(self, leak: float | Mapping[str, float] = 0.0, seed: int | None = None) -> None:
        super().__init__()
        bounds = {"at_least": 0.0, "at_most": 1.0}
        self.leak: float | dict[str, float]
        if isinstance(leak, Mapping):
            self.leak = {task: check_number(f"leak[{task!r}]", value, **bounds) for task, value in leak.items()}
        else:
            self.leak = check_number("leak", leak, **bounds)
        self.add_generator(seed)

    def on_bind(self) -> None:
        """Puts a mapping's leaks in the tasks' order."""
        if isinstance(self.leak, dict) and self.tasks is not None:
            check_known("leak", self.leak, self.tasks)
            leaks = torch.tensor([self.leak.get(task, 0.0) for task in self.tasks], dtype=torch.float64, device="cpu")
            self.register_buffer("task_leak", leaks, persistent=False)

    def aggregate(self, gradients: Gradients, losses: Tensor) -> tuple[list[Tensor], None]:
        """Returns the combined gradient of every parameter; there are no weights."""
        leaks = self.state.task_leak.unbind() if isinstance(self.leak, dict) else self.leak
        factors = None if self.preferences is None else self.preferences.tolist()
        seed = int(torch.randint(2**62, (), device="cpu", generator=self.generator))
        generator: torch.Generator | None = None
        combined = []
        for column in zip(*gradients, strict=True):
            some = next(gradient for gradient in column if gradient is not None)
            if generator is None:
                generator = torch.Generator(some.device).manual_seed(seed)
            dtype = torch.promote_types(some.dtype.to_real(), torch.float32)
            shape = (*some.shape, 2) if some.is_complex() else some.shape
            draw = torch.rand(shape, dtype=dtype, device=some.device, generator=generator)
            parts = [None if gradient is None else as_real(local(gradient)) for gradient in column]
            if factors is not None:
                parts = [None if part is None else part * factor for part, factor in zip(parts, factors, strict=True)]
            dropped = _drop(parts, leaks, shard_of(draw, some))
            dropped = torch.view_as_complex(dropped) if some.is_complex() else dropped.to(some.dtype)
            combined.append(like(dropped, some))
        return combined, None


def _drop(column: Sequence[Tensor | None], leaks: float | Sequence[Tensor], draw: Tensor) -> Tensor:
    """Combines one parameter's gradients by the uniform draws of its elements, in the draws' dtype."""
    positive, negative = torch.zeros_like(draw), torch.zeros_like(draw)
    for gradient in column:
        if gradient is not None:
            wide = gradient.to(draw.dtype)
            positive += wide.clamp(min=0)
            negative += wide.clamp(max=0)
    passes = draw * (positive - negative) < positive  # the positive parts; else the negative ones
    if isinstance(leaks, float):
        return torch.where(passes, positive, negative) + leaks * torch.where(passes, negative, positive)
    result = torch.zeros_like(draw)
    for gradient, leak in zip(column, leaks, strict=True):
        if gradient is not None:
            wide = gradient.to(draw.dtype)
            result += torch.where((wide > 0) == passes, wide, wide * leak)
    return result
