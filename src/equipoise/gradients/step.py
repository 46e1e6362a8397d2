"""What a call of `backward` was given, checked before anything changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from equipoise._checks import check_counts, check_losses, check_number
from equipoise.gradients.batching import Batching
from equipoise.gradients.gramian import wide_dtype
from equipoise.gradients.graph.cut import Cut
from equipoise.gradients.graph.walk import Graph
from equipoise.gradients.jacobian import Row
from equipoise.gradients.scale import UNSCALED, Scale
from equipoise.gradients.writing import write


@dataclass(frozen=True)
class Step:
    """The losses of the tasks present, checked and in the Balancer's order.

    Attributes:
        tasks: names of the K' tasks present, on any rank.
        losses: their losses, with graphs; None for a task that only other ranks have.
        values: the losses detached, over all ranks, `[K']`, float64 where the device has it.
        counts: labelled samples behind each loss, over all ranks, `[K']`, or None.
        usable: which of the tasks take part, `[K']` bool on the device, where the host does not know it; None: all.
        shares: of each task's labelled samples, this rank's part, `[K']`; None where there is one rank.
        everywhere: every rank has all the K' tasks.
        unlabelled: those among them that are kept though their count is 0.
        complete: no task is missing, and there are several.
        accumulate: further micro-batches follow.
        retain_graph: the graphs stay for another backward pass.
        representation: the tensors where the trunk ends, if a person gave them.
        cleared: gradients have been cleared since the micro-batch before.
        scale: the gradient scaler's.
        batching: how many tasks go through what they share at once.
        learns: state and learned weights take the step in; else the weights are those of the last step that they did.
        write: takes the gradients: into `.grad`, or to who asks for them.
    """

    tasks: tuple[str, ...]
    losses: tuple[Tensor | None, ...]
    values: Tensor
    counts: Tensor | None = None
    usable: Tensor | None = None
    shares: Tensor | None = None
    everywhere: bool = True
    unlabelled: frozenset[str] = frozenset()
    complete: bool = False
    accumulate: bool = False
    retain_graph: bool = False
    representation: Sequence[Tensor] | None = None
    cleared: bool = False
    scale: Scale = UNSCALED
    batching: Batching = field(default_factory=Batching)
    learns: bool = True
    write: Callable[[Row], None] = write

    @cached_property
    def held(self) -> list[Tensor]:
        """The losses that this rank has."""
        return [loss for loss in self.losses if loss is not None]

    @cached_property
    def stacked(self) -> Tensor | None:
        """The losses as a vector `[K']`, with their graphs; None where they differ in dtype or device, or some lack."""
        return _stacked(self.losses)

    @cached_property
    def known(self) -> list[float]:
        """`values` as numbers: for where the host looks at them, which waits for an accelerator."""
        numbers: list[float] = self.values.tolist()
        return numbers

    @cached_property
    def graph(self) -> Graph:
        """Their graphs, for a backward pass a task."""
        return Graph(self.held)

    @cached_property
    def cut(self) -> Cut | None:
        """Where the graphs merge; None if this rank has fewer than two."""
        return Cut(self.graph) if len(self.held) > 1 else None

    @cached_property
    def cut_in_turn(self) -> Cut | None:
        """The cut for a backward pass a task, one after the other; None if this rank has fewer than two."""
        return Cut(self.graph, in_turn=True) if len(self.held) > 1 else None

    def at_held(self, per_task: Sequence[list[Tensor]]) -> list[list[Tensor]]:
        """Returns the entries of those tasks whose losses this rank has."""
        return [entry for entry, loss in zip(per_task, self.losses, strict=True) if loss is not None]

    def taking(self, vector: Tensor, others: float) -> Tensor:
        """Returns the `[K']` numbers of the tasks that take part, and this number for the others."""
        return vector if self.usable is None else torch.where(self.usable, vector, others)

    def inside(self, scale: Scale, retain_graph: bool, write: Callable[[Row], None]) -> Step:
        """Returns the step inside of somebody else's backward pass; what is known of its graph goes with it."""
        step = replace(self, scale=scale, retain_graph=retain_graph, write=write)
        vars(step).update(
            {name: value for name, value in vars(self).items() if name in ("graph", "cut", "cut_in_turn")}
        )
        return step

    def without(self, left_out: Sequence[int], usable: Tensor | None) -> Step:
        """Returns the step in which the tasks at these places of `tasks` are left out.

        Args:
            left_out: the places.
            usable: which of the other tasks take part, where the host does not know it.
        """
        if not left_out:
            return replace(self, usable=usable)
        kept = [index for index in range(len(self.tasks)) if index not in left_out]

        def entries(vector: Tensor | None) -> Tensor | None:
            return None if vector is None else torch.cat([vector[i : i + 1] for i in kept]) if kept else vector[:0]

        values = entries(self.values)
        assert values is not None
        return replace(
            self,
            tasks=tuple(self.tasks[index] for index in kept),
            losses=tuple(self.losses[index] for index in kept),
            values=values,
            counts=entries(self.counts),
            usable=usable,
            shares=entries(self.shares),
            complete=False,
        )

    def joined(self, groups: Mapping[str, Sequence[str]]) -> Step:
        """Returns the step of the groups that have a task present: their losses are sums, without counts.

        A rank's share of each loss goes into its part of the sum, and nothing of a task that takes no part. A group
        takes part if one of its tasks does.
        """
        place = {task: index for index, task in enumerate(self.tasks)}
        held = {group: [place[task] for task in members if task in place] for group, members in groups.items()}
        held = {group: indices for group, indices in held.items() if indices}
        values = self.values.unbind()
        taking = None if self.usable is None else self.usable.unbind()
        losses: list[Tensor | None] = []
        with torch.enable_grad():
            for indices in held.values():
                parts = [
                    loss if self.shares is None else loss * self.shares[index].to(loss)
                    for index in indices
                    if (loss := self.losses[index]) is not None
                ]
                if taking is not None:
                    own = [taking[index] for index in indices if self.losses[index] is not None]
                    parts = [torch.where(takes, part, 0.0) for takes, part in zip(own, parts, strict=True)]
                losses.append(torch.stack(parts).sum() if parts else None)
        usable = None
        if taking is not None:
            usable = torch.stack([torch.stack([taking[i] for i in indices]).any() for indices in held.values()])
        return replace(
            self,
            tasks=tuple(held),
            losses=tuple(losses),
            values=torch.stack([torch.stack([values[index] for index in indices]).sum() for indices in held.values()]),
            counts=None,
            usable=usable,
            shares=None if self.shares is None else torch.ones_like(self.shares[: len(held)]),
        )

    def backward(self, coefficients: Tensor) -> None:
        """Adds `Σ_k c_k ∂L_k` into `.grad` in one backward pass; `coefficients` `[K']`.

        It starts at the vector of the losses, if there is one: autograd checks every tensor that it starts at.
        """
        if self.stacked is None:
            torch.autograd.backward(self.held, self.weights(coefficients), retain_graph=self.retain_graph)
            return
        weights = coefficients.to(self.stacked.device, self.stacked.dtype, copy=True)  # see `weights`
        torch.autograd.backward(self.stacked, weights, retain_graph=self.retain_graph)

    def weights(self, coefficients: Tensor) -> list[Tensor]:
        """Returns what to weigh each of `held` with in a backward pass: `coefficients` `[K']`, one tensor a loss.

        They are copies: autograd may make one, or a view of it, the `.grad`.
        """
        if _alike(self.losses):
            return list(coefficients.to(self.held[0].device, self.held[0].dtype, copy=True).unbind())
        return [
            weight.to(loss.device, loss.dtype, copy=True)
            for weight, loss in zip(coefficients.unbind(), self.losses, strict=True)
            if loss is not None
        ]


def read_losses(
    tasks: Sequence[str],
    losses: Mapping[str, Tensor],
    counts: Mapping[str, float | Tensor] | None,
    raises: Callable[[Tensor], bool],
    *,
    graph: bool = True,
    empty: Callable[[], torch.device] | None = None,
    keep_unlabelled: bool = False,
    **called: Any,
) -> Step:
    """Checks the losses and counts of one process, before anything changes.

    A task whose count is 0 has no label and is left out. Where its count lies on an accelerator, the host does not know
    that, and does not wait to: `usable` says so there.

    Args:
        tasks: all tasks.
        losses: task → scalar loss with a graph.
        counts: task → number of labelled samples behind its mean loss.
        raises: whether NaN or infinite losses are an error where this tensor is.
        graph: every loss must have a graph.
        empty: gives the device of a step without any loss; None: a step without any task is an error.
        keep_unlabelled: keep tasks whose count is 0, with the value 0.
        **called: attributes of the step that the losses do not decide.

    Raises:
        TypeError: see `check_losses`.
        ValueError: see `check_losses` and `read_counts`; a loss that is NaN or infinite.
    """
    if not isinstance(losses, Mapping) or losses or empty is None:
        check_losses(losses, tasks, graph=graph)
    first = next(iter(losses.values()), None)
    unlabelled: frozenset[str] = frozenset()
    usable = None
    if counts is not None:
        known = read_counts(tasks, losses, counts)
        unlabelled = frozenset(task for task, count in known.items() if not count)
        if not keep_unlabelled:
            losses = {task: loss for task, loss in losses.items() if task not in unlabelled}
        if not losses and empty is None:
            raise ValueError("No task in losses has a labelled sample (all counts are 0): skip the step.")
    names = tuple([task for task in tasks if task in losses])
    held = tuple([losses[task] for task in names])
    first = held[0] if held else first
    assert first is not None or empty is not None
    device = empty() if first is None else first.device  # type: ignore[misc]
    dtype = wide_dtype(device)
    stacked = _stacked(held)
    if unlabelled or stacked is None:
        values = stack([0.0 if task in unlabelled else losses[task] for task in names], device, dtype)
    else:
        values = stacked.detach().to(dtype)
    samples = None
    if counts is not None:
        samples = stack([counts[task] for task in names], device, dtype)
        if any(not host_has(counts[task]) for task in names):
            usable = samples > 0
            values = torch.where(usable, values, 0.0)
    complete = 1 < len(tasks) == len(names)
    step = Step(names, held, values, samples, usable, unlabelled=unlabelled, complete=complete, **called)
    vars(step)["stacked"] = stacked  # which it need not do anew
    if raises(values) and not all(map(math.isfinite, step.known)):  # sync: asked for
        task, value = next(pair for pair in zip(names, step.known, strict=True) if not math.isfinite(pair[1]))
        raise ValueError(f"The loss of task {task!r} is {value:g}: a NaN or infinite loss must not enter the training.")
    return step


def host_has(count: float | Tensor) -> bool:
    """Whether looking at the count costs no synchronisation."""
    return not isinstance(count, Tensor) or count.device.type == "cpu"


def read_counts(
    tasks: Sequence[str], losses: Mapping[str, Tensor], counts: Mapping[str, float | Tensor]
) -> dict[str, float]:
    """Returns the counts of the losses as numbers, as far as the host has them.

    Raises:
        TypeError: see `check_counts`.
        ValueError: see `check_counts`; a count that is negative or not finite.
    """
    check_counts(counts, losses, tasks)
    given = {task: counts[task] for task in losses}
    return {
        task: check_number(f"counts[{task!r}]", count, at_least=0) for task, count in given.items() if host_has(count)
    }


def checks_values(check_finite: bool | None, values: Tensor) -> bool:
    """Whether the host looks at the losses: as asked for, else where it costs no synchronisation."""
    return values.is_cpu if check_finite is None else check_finite


def above_bounds(values: Tensor, bounds: Sequence[Tensor | float]) -> Tensor | None:
    """Returns which losses lie above every bound, `[K']` bool; None where nothing bounds them.

    Args:
        values: the losses `[K']`. One that is not finite counts as above: no method may leave it out.
        bounds: numbers for all tasks, or one a task `[K']`.
    """
    above = None
    for bound in bounds:
        if not isinstance(bound, float) or bound > -math.inf:
            here = ~((values <= bound) & values.isfinite())
            above = here if above is None else above & here
    return above


def _alike(losses: Sequence[Tensor | None]) -> bool:
    """Whether there are losses, none lacks, and they have one dtype and device."""
    first = losses[0] if losses else None
    return first is not None and all(
        loss is not None and loss.dtype == first.dtype and loss.device == first.device for loss in losses
    )


def _stacked(losses: Sequence[Tensor | None]) -> Tensor | None:
    """See `Step.stacked`."""
    if not _alike(losses):
        return None
    with torch.enable_grad():
        return torch.stack(losses)  # type: ignore[arg-type]


@torch.no_grad()
def stack(scalars: Sequence[float | Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Stacks numbers and 0-dim tensors of any dtype and device into a detached vector."""
    if not scalars:
        return torch.empty(0, dtype=dtype, device=device)
    if all(not isinstance(scalar, Tensor) for scalar in scalars):
        return torch.tensor(scalars, dtype=dtype, device="cpu").to(device, non_blocking=True)
    tensors = [s if isinstance(s, Tensor) else torch.full((), s, dtype=dtype, device=device) for s in scalars]
    if any(t.device != device or t.dtype != tensors[0].dtype for t in tensors):
        tensors = [t.to(device, dtype, non_blocking=True) for t in tensors]
    return torch.stack(tensors).to(dtype)
