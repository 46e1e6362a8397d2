"""A problem's diagnosis: some steps with equal weights, before any comparison."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.bench.errors import BenchError
from equipoise.bench.experiment.batches import Batches
from equipoise.bench.problems import Problem
from equipoise.bench.problems._base import Batch
from equipoise.monitor import Diagnosis, diagnose


class DiagnosisError(BenchError):
    """A problem cannot be diagnosed."""


def diagnose_problem(
    problem: Problem,
    *,
    steps: int = 200,
    lr: float | None = None,
    weight_decay: float | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    costs: bool = True,
) -> Diagnosis:
    """Diagnoses a problem as it is trained: its network from its seed, AdamW, its batches; see `equipoise.diagnose`.

    Args:
        problem: what is diagnosed.
        steps: how many steps are trained.
        lr: learning rate; None: the problem's own.
        weight_decay: decoupled weight decay; None: the problem's own.
        batch_size: samples a step; None: the problem's own.
        seed: decides initial weights and the order of the batches.
        device: where it trains.
        costs: measure what the methods that fit cost.

    Raises:
        DiagnosisError: a loss is NaN, there is only one task, or the like; the message says it.
    """
    own = problem.training()
    torch.manual_seed(seed)
    model = problem.model().to(device)
    batches = Batches(problem, problem.data().train, own.batch_size if batch_size is None else batch_size, seed)

    def losses_of(batch: Batch) -> dict[str, Tensor]:
        moved = problem.to_device(batch, torch.device(device))
        predictions = problem.predict(model, moved)
        losses = {task.name: task.loss(predictions, moved) for task in problem.tasks}
        return {name: loss for name, loss in losses.items() if loss is not None}

    optimizer = torch.optim.AdamW(
        model.parameters(),
        own.lr if lr is None else lr,
        weight_decay=own.weight_decay if weight_decay is None else weight_decay,
    )
    tasks = [task.name for task in problem.tasks]
    try:
        return diagnose(model, batches, losses_of, optimizer=optimizer, tasks=tasks, steps=steps, costs=costs)
    except ValueError as error:
        raise DiagnosisError(str(error)) from error
