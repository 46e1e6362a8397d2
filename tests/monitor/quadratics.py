"""Problems of quadratic tasks, and diagnoses of them."""

import torch
from torch import nn

import equipoise as eq

SIZE_OF_W = 60


class Quadratics(nn.Module):
    """Tasks with `L_k = offset_k + scale_k/2 · Σ over its elements of (w − target_k − noise)²`, in closed form.

    Args:
        targets: task → target, a number for all its elements or one for each.
        own: every task has a third of the elements to itself, though all reach all of `w`.
    """

    def __init__(self, targets, scales=None, offsets=None, noise=0.5, own=False, seed=0):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(SIZE_OF_W))
        self.targets, self.noise = targets, noise
        self.scales, self.offsets = scales or {}, offsets or {}
        parts = torch.arange(SIZE_OF_W) % len(targets)
        self.masks = {task: (parts == i).float() if own else torch.ones(SIZE_OF_W) for i, task in enumerate(targets)}
        self.generator = torch.Generator().manual_seed(seed)

    def losses(self, tasks):
        losses = {}
        for task in tasks:
            noise = self.noise * torch.randn(SIZE_OF_W, generator=self.generator)
            rest = self.masks[task] * (self.w - self.targets[task] - noise)
            losses[task] = self.offsets.get(task, 0) + self.scales.get(task, 1) / 2 * rest.square().sum()
        return losses


def diagnose(model, lr=1e-2, kind=torch.optim.AdamW, batches=None, steps=100, costs=False, tasks=None):
    optimizer = kind(model.parameters(), lr=lr)
    batches = [list(model.targets)] if batches is None else batches
    return eq.diagnose(model, batches, model.losses, optimizer=optimizer, tasks=tasks, steps=steps, costs=costs)


STILL = 1e-6
"""A learning rate at which nothing moves in a hundred steps, so that speeds cannot differ."""

ALIKE = dict.fromkeys("abc", 1.0)
