"""CGC and PLE: experts of the tasks' own beside those that all share, on one level or several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from equipoise.bench.models._base import MultiTaskNetwork, Representation
from equipoise.bench.models._mixtures import Gate, experts, mix, run


class PLE(MultiTaskNetwork):
    """Progressive layered extraction on any trunk: predictions `[B, outputs]`.

    On every level task `k` has a state `x_k`, and there is a common one `x_s`; both start as what the trunk gives. A
    level's experts are dense layers with ReLU: the task's own, `E_k(x_k)`, and common ones, `E_s(x_s)`. The next states
    are `x_k ← Σ_i g_k(x_k)_i [E_k(x_k); E_s(x_s)]_i` and, but on the last level, `x_s ← Σ_i g_s(x_s)_i [E_1(x_1); …;
    E_K(x_K); E_s(x_s)]_i`, with `g(x) = softmax(W x)`. The task's linear head reads its last state.

    Below the last level all experts are shared, since the common state reads them; the gates of the last two levels
    that lead to a task's state are its own, and on the last level so are its experts. The representation is what the
    trunk gives; what is shared beyond it is shared all the same.

    Args:
        heads: task → number of outputs.
        trunk: takes what the network takes; gives `[B, features]`.
        features: how many.
        own: experts of each task on every level.
        common: experts of all tasks on every level.
        width: what each gives.
        levels: how many, 1 or more.

    Source: Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for Personalized
    Recommendations", RecSys 2020. There the first level reads the input; here it reads a trunk. A task's tower is one
    dense layer.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from equipoise.bench.models import PLE
        >>> network = PLE({"visits": 1, "plan": 3}, nn.Sequential(nn.Linear(7, 16), nn.ReLU()), 16)
        >>> {task: tuple(prediction.shape) for task, prediction in network(torch.randn(2, 7)).items()}
        {'visits': (2, 1), 'plan': (2, 3)}
    """

    def __init__(
        self,
        heads: Mapping[str, int],
        trunk: nn.Module,
        features: int,
        own: int = 1,
        common: int = 2,
        width: int = 64,
        levels: int = 2,
    ) -> None:
        super().__init__(heads)
        self.trunk = trunk
        inputs = [features] + [width] * (levels - 1)
        self.levels = nn.ModuleList(
            Level(count, width, len(heads), own, common, last=index == levels - 1) for index, count in enumerate(inputs)
        )
        self.heads = nn.ModuleList(nn.Linear(width, outputs) for outputs in heads.values())

    def shared_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters that lead to a common expert's output on the last level, or are such an expert's."""
        levels = [cast("Level", level) for level in self.levels]
        modules: list[nn.Module] = [self.trunk]
        for index, level in enumerate(levels):
            modules += [level.common, *([] if level.last else [level.own, level.common_gate])]
            if index < len(levels) - 2:
                modules.append(level.gates)
        return [parameter for module in modules for parameter in module.parameters()]

    def representation(self, images: Tensor) -> Representation:
        """Returns the trunk's features `[B, features]`."""
        return (self.trunk(images),)

    def predict(self, representation: Representation, size: tuple[int, int]) -> dict[str, Tensor]:
        """Returns `[B, outputs]` for every task."""
        (common,) = representation
        states = [common for _ in self.tasks]
        for level in self.levels:
            states, common = level(states, common)
        return {task: head(state) for task, head, state in zip(self.tasks, self.heads, states, strict=True)}


class CGC(PLE):
    """Customized gate control: `PLE` with one level, so that only the trunk and the common experts are shared.

    Args:
        heads: task → number of outputs.
        trunk: takes what the network takes; gives `[B, features]`.
        features: how many.
        own: experts of each task.
        common: experts of all tasks.
        width: what each gives.

    Source: as `PLE`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from equipoise.bench.models import CGC
        >>> network = CGC({"visits": 1, "plan": 3}, nn.Sequential(nn.Linear(7, 16), nn.ReLU()), 16)
        >>> {task: tuple(prediction.shape) for task, prediction in network(torch.randn(2, 7)).items()}
        {'visits': (2, 1), 'plan': (2, 3)}
    """

    def __init__(
        self,
        heads: Mapping[str, int],
        trunk: nn.Module,
        features: int,
        own: int = 1,
        common: int = 2,
        width: int = 64,
    ) -> None:
        super().__init__(heads, trunk, features, own, common, width, levels=1)


class Level(nn.Module):
    """One level of `PLE`: the tasks' states and the common one, from those of the level before.

    Args:
        inputs: features of a state.
        width: what each expert gives.
        tasks: how many.
        own: experts of each task.
        common: experts of all tasks.
        last: nothing reads the common state any more.
    """

    def __init__(self, inputs: int, width: int, tasks: int, own: int, common: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.own = nn.ModuleList(experts(own, inputs, width) for _ in range(tasks))
        self.common = experts(common, inputs, width)
        self.gates = nn.ModuleList(Gate(inputs, own + common) for _ in range(tasks))
        if not last:
            self.common_gate = Gate(inputs, tasks * own + common)

    def forward(self, states: list[Tensor], common: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns the next states; on the last level the common one is as it was."""
        shared = run(self.common, common)
        own = [run(cast("nn.ModuleList", modules), state) for modules, state in zip(self.own, states, strict=True)]
        mixed = [
            mix(gate(state), outputs + shared) for gate, state, outputs in zip(self.gates, states, own, strict=True)
        ]
        if self.last:
            return mixed, common
        everyone = [output for outputs in own for output in outputs]
        return mixed, mix(self.common_gate(common), everyone + shared)
