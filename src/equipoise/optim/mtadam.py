"""MTAdam: Adam on gradients of like norm, with one denominator for all tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from equipoise.gradients.gramian import wide_dtype
from equipoise.gradients.jacobian import TaskRows
from equipoise.gradients.shards import local, total_norm
from equipoise.gradients.sparse import coalesced, values_of
from equipoise.optim._adam_by_task import EPSILONS, AdamByTask
from equipoise.optim._base import KIND, NO_TASK
from equipoise.optim.moments import Lists
from equipoise.search_space import SearchSpace

NO_NORM = 1e-10
"""Up to here a task's gradients have no norm to be scaled by, as in the authors' code."""


class MTAdam(AdamByTask):
    """Adam on the gradients of several losses, each scaled, layer by layer, to the norm of the first one's.

    Per layer (a parameter tensor θ) and task k, with `n_k` a moving average of the gradient's norm:

    `n_k ← β₃ n_k + (1 − β₃) ‖g_k‖`, `g̃_k = (n_1 / n_k) g_k`, `m_k`, `v_k` the moving averages of `g̃_k` and its square,

    `θ ← θ − Σ_k η m̂_k / (max_j √v̂_j + ε) − η λ θ`, where `m̂ = m / (1 − β₁^t)`, `v̂ = v / (1 − β₂^t)`.

    The first task is the anchor: where it is left out of a step, or its gradients have no norm, the next one is. `t`
    counts, per task and parameter, the steps that the task took part in. A task that is left out leaves its averages as
    they are; the largest denominator is that of the tasks that are there.

    Args:
        params: as in `MAO`.
        tasks: the tasks' names, the anchor first.
        lr: learning rate η.
        betas: decay rates β₁, β₂ and β₃, in [0, 1).
        eps: ε, at least 0.
        weight_decay: λ, decoupled, once and not once a task, at least 0.
        priorities: task → factor of its update, as in `MAO`. The authors' `ranks` multiply the scaled gradient instead.
        chunk_size: as in `MAO`.
        max_norm: as in `MAO`.
        check_finite: as in `MAO`.
        process_group: as in `MAO`.

    What `.grad` holds beside the tasks' gradients moves a parameter by an Adam update of its own, as in `MAO`. Sparse
    gradients become dense. There is no fused kernel: a step takes some ten operations a parameter and task.

    Raises:
        ValueError: a hyperparameter out of range; no task, or one named twice.

    Source: Malkiel & Wolf, "MTAdam: Automatic Balancing of Multiple Training Loss Terms", EMNLP 2021. As in the
    authors' code (github.com/ItzikMalkiel/MTAdam) a norm's average starts at the first norm, and nothing is divided by
    a norm of 10⁻¹⁰ or less; other than there, weight decay is decoupled and applied once, where they add it to every
    task's gradient, and all norms are taken before the first gradient is scaled.

    Example:
        >>> import torch, equipoise as eq
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = eq.MTAdam(model.parameters(), ["left", "right"], lr=1e-3)
        >>> left, right = model(torch.randn(8, 4)).square().mean(0)
        >>> weights = optimizer.backward({"left": left, "right": right})
        >>> optimizer.step()
        >>> optimizer.zero_grad()
    """

    search_space: ClassVar[SearchSpace] = {"eps": EPSILONS}
    _betas: ClassVar[int] = 3

    def __init__(
        self,
        params: ParamsT,
        tasks: Iterable[str],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        priorities: Mapping[str, float] | None = None,
        chunk_size: int | None = None,
        max_norm: float | None = None,
        check_finite: bool | None = None,
        process_group: Any = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "capturable": None,
            "fused": None,
            KIND: "MTAdam",
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

    def _furnish(self, held: Iterable[Tensor], process_group: Any) -> None:
        super()._furnish(held, process_group)
        self._watched: dict[Tensor, tuple[Tensor, Tensor]] = {}  # the anchor's norm and the denominator

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, with options of its own.

        Raises:
            ValueError: a hyperparameter is out of range.
        """
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        added["capturable"] = any(p.device.type != "cpu" for p in added["params"])  # counts lie beside the parameters

    def _move(self, group: dict[str, Any], listed: Mapping[str, tuple[Lists, list[Tensor]]], rows: TaskRows) -> None:
        if NO_TASK in listed:
            super()._move(group, {NO_TASK: listed[NO_TASK]}, rows)
        for parameter in group["params"]:
            gradients = {task: rows[task][parameter] for task in self.tasks if parameter in rows.get(task, {})}
            if gradients:
                self._move_layer(parameter, gradients, group)

    def _move_layer(self, parameter: Tensor, gradients: Mapping[str, Tensor], group: Mapping[str, Any]) -> None:
        """Updates a parameter by the gradients of the tasks that are there, in float32 at least."""
        (beta1, beta2, beta3), takes = group["betas"], self._pending.taking
        state, target = self.state[parameter], _reals(parameter)
        wide = torch.promote_types(target.dtype, torch.float32)
        moments = {task: self._listing.moments(task, parameter, group, state) for task in gradients}
        norms = state.setdefault("norm", torch.zeros_like(state["step"], dtype=wide))
        for task, gradient in gradients.items():
            norm, own = total_norm(values_of([coalesced(gradient)])), norms[self.tasks.index(task)]
            _put(own, torch.where(moments[task].steps == 0, norm, beta3 * own + (1 - beta3) * norm), takes.get(task))
        anchor = _first([norms[self.tasks.index(task)] for task in gradients], [takes.get(task) for task in gradients])
        total, denominator = torch.zeros_like(target, dtype=wide), torch.zeros_like(target, dtype=wide)
        for task, gradient in gradients.items():
            own, taking = moments[task], takes.get(task)
            assert isinstance(own.square, Tensor)
            scaled = _reals(coalesced(gradient)).to(wide) * _factor(norms[self.tasks.index(task)], anchor)
            average = _reals(own.average).to(wide).lerp(scaled, 1 - beta1)
            square = _reals(own.square).to(wide).lerp(scaled.square(), 1 - beta2)
            _put(_reals(own.average), average, taking)
            _put(_reals(own.square), square, taking)
            _put(own.steps, own.steps + 1, taking)
            steps = own.steps.to(wide_dtype(own.steps.device))
            update = average / (1 - beta1**steps) * self.priorities.get(task, 1.0)
            root = (square / (1 - beta2**steps)).sqrt()
            total += update if taking is None else torch.where(taking, update, 0.0)
            denominator = torch.maximum(denominator, root if taking is None else torch.where(taking, root, 0.0))
        denominator += group["eps"]
        moved = target - group["lr"] * total / denominator
        everybody = [takes[task] for task in gradients if task in takes]
        _put(target, moved, torch.stack(everybody).any() if len(everybody) == len(gradients) else None)
        if self._watching.now is not None:
            self._watched[parameter] = anchor, denominator

    def rates(self, task: str, parameters: Iterable[Tensor], group: Mapping[str, Any]) -> dict[Tensor, Tensor]:
        """Returns what the task's gradient of each parameter was multiplied by in the last step that was watched."""
        place, found = self.tasks.index(task), {}
        for parameter in parameters:
            anchor, denominator = self._watched[parameter]
            lr = group["lr"] * self.priorities.get(task, 1.0)
            found[parameter] = lr * _factor(self.state[parameter]["norm"][place], anchor) / denominator
        return found


def _first(norms: Sequence[Tensor], taking: Sequence[Tensor | None]) -> Tensor:
    """Returns the first norm that is one, of the tasks that take part, 0-dim."""
    every = torch.stack([n if takes is None else n * takes for n, takes in zip(norms, taking, strict=True)])
    return every.gather(0, (every > NO_NORM).int().argmax(0, keepdim=True)).squeeze(0)


def _factor(norm: Tensor, anchor: Tensor) -> Tensor:
    """Returns what scales a gradient to the anchor's norm, 0-dim."""
    return torch.where(norm > NO_NORM, anchor / norm, 1.0)


def _reals(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor, dense, of a complex one as pairs of real numbers."""
    own = local(tensor.to_dense() if tensor.is_sparse else tensor)
    return torch.view_as_real(own) if own.is_complex() else own


def _put(into: Tensor, new: Tensor, taking: Tensor | None) -> None:
    """Writes new values, where the task takes part."""
    into.copy_(new if taking is None else torch.where(taking, new, into))
