"""What a Balancer keeps beside tensors, as a tensor.

Hugging Face's checkpoints take tensors alone, and PyTorch's distributed ones load a tensor into another of its size.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from equipoise.gradients.shared import SharedParameters

REASON = 100
"""Most characters of a reason that are kept."""

LONGEST = -sys.float_info.min
"""A number that takes as many characters as any does."""


def shortened(reason: str) -> str:
    """Returns a reason as a checkpoint keeps it: in ASCII, and cut off."""
    return reason.encode("ascii", "replace").decode()[:REASON]


def packed(tasks: list[str], method: str, shared: SharedParameters, chosen: Mapping[str, Any]) -> Tensor:
    """Returns what a checkpoint is checked against and what was found, `[N]` uint8.

    N depends on how the Balancer was made alone, not on the steps that it has taken.

    Args:
        tasks: the tasks' names.
        method: what describes the method.
        shared: knows the names of shared parameters.
        chosen: "chunk_size": how many tasks go at once, or None; "no_layers": pairs of an engine, or None, and
            why it has no Gramian by layers; "position": of the next step among those from one that takes statistics to
            the next; "weights": kind → task → weight.
    """
    state = {"tasks": tasks, "method": method, "shared": shared.names, **chosen}
    weights = {kind: dict.fromkeys(tasks, LONGEST) for kind in chosen["weights"]}
    reasons = [["layers", "." * REASON]] * 2
    most = {"chunk_size": sys.maxsize, "position": sys.maxsize}
    room = {"shared": shared.possible_names, "no_layers": reasons, "weights": weights, **most}
    text = json.dumps(state).encode().ljust(len(json.dumps({**state, **room})))
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def repacked(own: Tensor, state: Mapping[str, Any]) -> Tensor:
    """Returns another state in the size of what `packed` gave for the same Balancer, `[N]` uint8."""
    text = json.dumps(state).encode().ljust(own.numel())
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def unpacked(state: Tensor) -> dict[str, Any]:
    """Returns what `packed` took."""
    found: dict[str, Any] = json.loads(bytes(state.tolist()))
    return found
