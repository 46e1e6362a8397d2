"""Reward terms of reinforcement learning: each on one scale, before it becomes a task's loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SMALLEST = 1e-4
"""Added to the standard deviation, as in the authors' code."""


def group_normalize(rewards: Mapping[str, Tensor], group_size: int) -> dict[str, Tensor]:
    """Returns the advantages of every reward term, normalised by itself within each group of answers.

    `a_k = (r_k − mean) / (std + 1e-4)`, mean and (sample) standard deviation of the term `k` over the answers to the
    same question. What GDPO does with the terms and GRPO does not: of a sum that is normalised as one, the term that
    varies most is left. An answer without a reward of a term is NaN there: it does not count in the group, and has the
    advantage 0. A term that rewards all answers of a group alike gives 0 there.

    GDPO then adds the terms up, weighted, and normalises the sum over the batch. Here each term is a task: give each
    its own policy-gradient loss, `−(a_k · log π).mean()`, and a Balancer finds the weights.

    Args:
        rewards: term → rewards `[N]`, the answers to a question one after the other.
        group_size: answers to each question, at least 2; it divides N.

    Returns:
        Term → advantages `[N]`, in the rewards' dtype (float32 for integers and bools).

    Raises:
        TypeError: `rewards` is no mapping of tensors.
        ValueError: `group_size` is no integer ≥ 2; rewards are not a vector, or their number is no multiple of it.

    Source: Liu et al., "GDPO: Group reward-Decoupled Normalization Policy Optimization for Multi-reward RL
    Optimization", 2026.

    Example:
        >>> import torch, equipoise as eq
        >>> rewards = {"right": torch.tensor([0.0, 1.0, 0.0, 0.0]), "length": torch.tensor([30.0, 10.0, 20.0, 20.0])}
        >>> {term: advantage.round(decimals=2) for term, advantage in eq.group_normalize(rewards, 2).items()}
        {'right': tensor([-0.7100,  0.7100,  0.0000,  0.0000]), 'length': tensor([ 0.7100, -0.7100,  0.0000,  0.0000])}
    """
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 2:
        raise ValueError(f"group_size must be a number of answers ≥ 2, found {group_size!r}.")
    if not isinstance(rewards, Mapping):
        raise TypeError(f"rewards must be a mapping from term to tensor, found {type(rewards).__name__}.")
    return {term: _normalized(term, reward, group_size) for term, reward in rewards.items()}


def _normalized(term: str, rewards: Tensor, group_size: int) -> Tensor:
    if not isinstance(rewards, Tensor):
        raise TypeError(f"The rewards of term {term!r} must be a tensor, found {type(rewards).__name__}.")
    if rewards.dim() != 1 or len(rewards) % group_size:
        raise ValueError(
            f"The rewards of term {term!r} must be a vector of groups of {group_size}, found shape "
            f"{tuple(rewards.shape)}."
        )
    groups = (rewards if rewards.is_floating_point() else rewards.float()).view(-1, group_size)
    there = ~groups.isnan()
    count = there.sum(1, keepdim=True)
    offset = torch.where(there, groups - groups.nanmean(1, keepdim=True), 0.0)
    deviation = (offset.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return (offset / (deviation + SMALLEST)).flatten()
