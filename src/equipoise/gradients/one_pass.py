"""OnePass: one backward pass of the weighted sum of the losses, which writes `.grad` by itself."""

from __future__ import annotations

from torch import Tensor

from equipoise.gradients.graph.walk import reached_leaves, untouched_leaves
from equipoise.gradients.step import Step


def one_pass(step: Step, coefficients: Tensor) -> list[Tensor]:
    """Adds `Σ_k c_k · ∂L_k/∂leaf` into `.grad` as `Tensor.backward` does, and so fires everyone's hooks.

    Args:
        step: the tasks present.
        coefficients: `c_k` `[K']`.

    Returns:
        The leaves that were reached, where gradients have to be checked; else none.
    """
    reached: dict[Tensor, None] = {}
    if step.scale.checked or step.retain_graph:
        rows = reached_leaves(step.held, together=True, repeatable=step.retain_graph)
        reached = dict.fromkeys(leaf for row in rows for leaf in row)
    untouched, certain = ([], True) if step.complete else untouched_leaves(step.held)
    untouched = [leaf for leaf in untouched if leaf.grad is None]
    step.backward(coefficients)
    for leaf in untouched:
        if certain or (leaf.grad is not None and not leaf.grad.any()):  # sync: only where PyTorch does not tell
            leaf.grad = None
    return list(reached)
