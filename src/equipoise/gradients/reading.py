"""The first stop of a step: what was given, on all ranks, and whether what waits still counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from equipoise.gradients.batching import Batching
from equipoise.gradients.micro_batches import Waiting
from equipoise.gradients.ranks import Company
from equipoise.gradients.scale import scale_of
from equipoise.gradients.step import Step, checks_values, read_losses


class Reader:
    """Reads what `backward` is given.

    Args:
        company: how to go over ranks.
        tasks: all tasks.
        check_finite: raise for NaN or infinite losses; None: on the CPU, unless a gradient scaler is there for them.
        waiting: what waits for the end of a step.
        batching: how many tasks go through what they share at once.

    Attributes:
        scaled: whether there is a gradient scaler, whose `step` waits for the device; `after_step`'s losses are of the
            step before it.
    """

    def __init__(
        self, company: Company, tasks: Sequence[str], check_finite: bool | None, waiting: Waiting, batching: Batching
    ) -> None:
        self._company = company
        self._tasks = tasks
        self._check_finite = check_finite
        self._waiting = waiting
        self._batching = batching
        self.scaled = False

    def looks(self, step: Step) -> bool:
        """Whether the host looks at the losses."""
        return checks_values(self._check_finite, step.values)

    def validity(self, step: Step) -> Tensor | None:
        """Returns whether the losses are finite, 0-dim bool; None where they have been found to be."""
        return None if self._raises(step.values) else step.values.isfinite().all()

    def read(
        self,
        losses: Mapping[str, Tensor],
        counts: Mapping[str, float | Tensor] | None,
        scaler: Any,
        *,
        empty: bool,
        accumulate: bool = False,
        retain_graph: bool = False,
        graph: bool = True,
        also: Callable[[], Sequence[Tensor]] | None = None,
    ) -> Step:
        """Checks what was given, and takes the losses of all ranks together.

        Args:
            losses: task → scalar loss.
            counts: task → number of labelled samples, or None.
            scaler: the gradient scaler, or None.
            empty: this rank may have no task, and so may all of them.
            accumulate: further micro-batches follow.
            retain_graph: the graphs stay.
            graph: every loss must have a graph; else they are `after_step`'s or of validation.
            also: reads the representation.

        Returns:
            The step; where it says that gradients have been cleared, nothing waits any longer.

        Raises:
            TypeError: as `read_losses`, for what this rank was given.
            ValueError: as `read_losses`, on every rank if anything is wrong on one; gradients were cleared in part;
                counts for some micro-batches only; as `Several.read`.
        """
        ranks = self._company.now()
        cleared, error = False, None
        if graph:
            self.scaled = scaler is not None and scaler.is_enabled()
            try:
                cleared = self._waiting.cleared()
            except ValueError as found:
                error = found

        def read() -> Step:
            if error is not None:
                raise error
            step = read_losses(
                self._tasks,
                losses,
                counts,
                self._raises,
                graph=graph,
                empty=self._device if empty else None,
                keep_unlabelled=ranks.sharded and ranks.active,
                accumulate=accumulate,
                retain_graph=retain_graph,
                cleared=cleared,
                batching=self._batching,
            )
            if graph and not cleared:
                self._waiting.micro_batches.check_counted(counts is not None)
            return step if also is None else replace(step, representation=also())

        called = [graph, accumulate, counts is not None, self.scaled, also is not None, cleared]
        step = ranks.read(read, self._tasks, called, self._batching)
        if cleared:
            self._waiting.forget()
            ranks.forget()
        return step if scaler is None else replace(step, scale=scale_of(scaler, step.values.device))

    def _device(self) -> torch.device:
        """Where a step without a loss is."""
        return next((p.device for p in self._company.order.parameters()), torch.device("cpu"))

    def _raises(self, values: Tensor) -> bool:
        """Whether a loss that is not finite is an error. With a scaler it is an overflow, unless asked for."""
        return checks_values(self._check_finite, values) and (not self.scaled or self._check_finite is True)
