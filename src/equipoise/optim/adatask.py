"""AdaTask: Adam with statistics accumulated task by task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from equipoise.gradients.jacobian import Row, TaskRows
from equipoise.optim._adam_by_task import EPSILONS, AdamByTask
from equipoise.optim._base import KIND
from equipoise.search_space import SearchSpace


class AdaTask(AdamByTask):
    """Adam whose accumulated statistics are kept apart by task on shared parameters.

    Per task k and parameter θ, with moving averages `m_k` of the gradient `g_k` and `v_k` of its square:

    `θ ← θ − Σ_k η m̂_k / (√v̂_k + ε) − η λ θ`, where `m̂ = m / (1 − β₁^t)`, `v̂ = v / (1 − β₂^t)`

    and `t` counts the updates of the parameter, by whichever task. A parameter that one task alone reaches, a head's,
    is plain Adam's. While every task is there in every step, that is `MAO`, which counts the updates of each task, and
    so corrects the averages of a task that came late or seldom for their start at zero; AdaTask does not.

    Of the paper's AdaGrad, RMSProp and Adam with AdaTask this is Adam; for the others `PerTask(torch.optim.Adagrad, …)`
    and `PerTask(torch.optim.RMSprop, …)`.

    Args:
        params: as in `MAO`.
        tasks: the tasks' names.
        lr: learning rate η.
        betas: decay rates β₁ and β₂, in [0, 1).
        eps: ε, at least 0.
        weight_decay: λ, decoupled, once and not once a task, at least 0.
        priorities: as in `MAO`.
        chunk_size: as in `MAO`.
        max_norm: as in `MAO`.
        capturable: as in `MAO`.
        fused: as in `MAO`.
        check_finite: as in `MAO`.
        process_group: as in `MAO`.

    Raises:
        ValueError: a hyperparameter out of range; no task, or one named twice.

    Source: Yang et al., "AdaTask: A Task-aware Adaptive Learning Rate Approach to Multi-task Learning", AAAI 2023.
    Their code (github.com/EnnengYang/AdaTask) has every task in every step, is told the shared parameters and weights
    of the losses, which do not matter up to ε, and does nothing with its weight decay; here what a task reaches is
    found, and a task that is left out leaves its averages as they are.

    Example:
        >>> import torch, equipoise as eq
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = eq.AdaTask(model.parameters(), ["left", "right"], lr=1e-3)
        >>> left, right = model(torch.randn(8, 4)).square().mean(0)
        >>> weights = optimizer.backward({"left": left, "right": right})
        >>> optimizer.step()
        >>> optimizer.zero_grad()
    """

    search_space: ClassVar[SearchSpace] = {"eps": EPSILONS}

    def __init__(
        self,
        params: ParamsT,
        tasks: Iterable[str],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        priorities: Mapping[str, float] | None = None,
        chunk_size: int | None = None,
        max_norm: float | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        check_finite: bool | None = None,
        process_group: Any = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "capturable": capturable,
            "fused": fused,
            KIND: "AdaTask",
        }
        super().__init__(
            params,
            tasks,
            defaults,
            priorities=priorities,
            chunk_size=chunk_size,
            max_norm=max_norm,
            check_finite=check_finite,
            process_group=process_group,
        )

    def _update(self, rows: TaskRows, free: Row) -> None:
        for index, task in enumerate(self.tasks):
            self._raise_counts(index, rows.get(task, {}), self._pending.taking.get(task))
        super()._update(rows, free)

    def _merged(
        self, own: dict[str, Any], found: dict[str, Any], named: Mapping[str, str], at: Mapping[int, int]
    ) -> dict[str, Any]:
        merged = super()._merged(own, found, named, at)
        if "step" in found:  # the parameter's count, if the task that has it is gone
            taken = torch.tensor([index in at for index in range(len(self.tasks))])
            counts = merged["step"]
            merged["step"] = torch.where(taken.to(counts.device) & (counts > 0), found["step"].max().to(counts), counts)
        return merged

    def _raise_counts(self, index: int, reached: Iterable[Tensor], taking: Tensor | None) -> None:
        """Raises a task's counts of updates to those of the parameters, the largest of any task's."""
        by_device: dict[torch.device, list[Tensor]] = {}
        for parameter in reached:
            counts = self.state.get(parameter, {}).get("step")
            if counts is not None:
                by_device.setdefault(counts.device, []).append(counts)
        for device, counts in by_device.items():
            every = torch.stack(counts)
            latest = every.amax(1)
            if taking is not None:
                latest = torch.where(taking.to(device), latest, every[:, index])
            torch._foreach_copy_([own[index] for own in counts], list(latest.unbind()))
