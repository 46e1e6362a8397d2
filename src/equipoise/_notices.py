"""Warnings that are given once, and those that rest on what an accelerator has yet to compute."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor


class Notices:
    """Gives each warning once, and never waits for a device to give it."""

    def __init__(self) -> None:
        self._given: set[str] = set()
        self._asked: dict[str, tuple[Tensor, torch.Event, Callable[[list[bool]], str | None]]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"_given": self._given, "_asked": {}}

    def give(self, key: str, text: str) -> None:
        """Warns, unless it has been done under this key."""
        if key not in self._given:
            self._given.add(key)
            warnings.warn(f"equipoise: {text}", UserWarning, stacklevel=4)

    def ask(self, key: str, flags: Tensor, text: Callable[[list[bool]], str | None]) -> None:
        """Warns if any of the bool tensor's flags is true: now, or, on an accelerator, in the step after they came.

        Args:
            key: of the warning.
            flags: `[n]`.
            text: makes the warning from the flags; None: there is no need for it.
        """
        if key in self._given or key in self._asked:
            return
        if flags.device.type == "cpu":
            self._settle(key, flags, text)
            return
        arrived = torch.Event(flags.device)
        copy = flags.to("cpu", non_blocking=True)
        arrived.record()
        self._asked[key] = (copy, arrived, text)

    def poll(self) -> None:
        """Gives the warnings whose flags have come."""
        for key, (flags, arrived, text) in list(self._asked.items()):
            if arrived.query():
                del self._asked[key]
                self._settle(key, flags, text)

    def _settle(self, key: str, flags: Tensor, text: Callable[[list[bool]], str | None]) -> None:
        found = flags.tolist()
        warning = text(found) if any(found) else None
        if warning is not None:
            self.give(key, warning)
