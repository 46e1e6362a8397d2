"""What is wrong with a problem's data: sizes, samples in two splits, other data at every call, tasks without labels."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equipoise.bench.problems._base import Batch, Loader, MapDataset, Problem, Splits, Task, Tensors, Training
from equipoise.bench.problems._dense import SegmentationTask
from equipoise.bench.problems._findings import Findings
from equipoise.bench.problems._fitting import check_classes
from equipoise.bench.problems._tasks import BinaryClassification, Classification, Regression

PARTS = ("train", "validation", "test")

MANY_BATCHES = 100
"""So many batches of a split are looked through for a label of every task, unless it is in memory as a whole."""

MIN_MISSING = 0.01
"""A share of one odd value among a task's labels above which it looks like a code for "missing"."""


def look_at_splits(data: Splits, part: str, findings: Findings) -> None:
    """Looks at sizes, and for inputs that stand in two splits."""
    with findings.part(part):
        parts = {name: getattr(data, name) for name in PARTS}
        for name, split in parts.items():
            if len(split) == 0:
                findings.wrong(part, f"The {name} part is empty.")
        rows = {name: _rows(split) for name, split in parts.items()}
        for one, other in itertools.combinations(parts, 2):
            if parts[one] is parts[other]:
                findings.doubtful(part, f"{one} and {other} are the same data: a result means nothing.")
            elif both := len(rows[one] & rows[other]):
                findings.doubtful(
                    part, f"{both} inputs of the {other} part stand in the {one} part, too: split by what they are of."
                )
        findings.fine(part, ", ".join(f"{name} {len(split):,}" for name, split in parts.items()))
    findings.stop_if_wrong()


def _rows(part: MapDataset) -> set[int]:
    """Hashes of the inputs, where they are in memory."""
    inputs = part.tensors.get("input") if isinstance(part, Tensors) else None
    return set() if inputs is None else {hash(row.tobytes()) for row in inputs.flatten(1).numpy(force=True)}


def look_whether_same(problem: Problem, data: Splits | None, training: Training, findings: Findings) -> None:
    """Reads the quick data again, under another seed, to see whether they are the same.

    They are as many, and begin with the same samples; of training, which may be augmented, with the same labels.

    Args:
        problem: what has the data.
        data: the quick data, if they are there.
        training: how it is trained.
        findings: what is added to.
    """
    part = "data(quick=True)"
    with findings.part(part), torch.random.fork_rng(devices=[]):
        first = problem.data(quick=True) if data is None else data
        torch.manual_seed(1)
        again = problem.data(quick=True)
        other = [name for name in PARTS if not _same_part(problem, training, name, first, again)]
        if other:
            findings.wrong(
                part,
                f"{' and '.join(other)} differ from call to call, and every run would have others: draw and split them "
                "by a generator of their own, as torch.Generator().manual_seed(0).",
            )
    findings.stop_if_wrong()


def _same_part(problem: Problem, training: Training, name: str, data: Splits, again: Splits) -> bool:
    if len(getattr(data, name)) != len(getattr(again, name)):
        return False
    found = []
    for splits in (data, again):
        torch.manual_seed(0)  # a random dataset draws from PyTorch's default generator
        batch = next(iter(_batches_of(problem, splits, training, name)), None)
        if name == "train":
            batch = {task.name: batch.get(task.name) for task in problem.tasks} if isinstance(batch, Mapping) else None
        found.append(batch)
    return _same(*found)


def _same(one: Any, other: Any) -> bool:
    """Whether what two batches hold is the same; objects of kinds that are not known are."""
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, (Tensor, np.ndarray)):
        return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())  # NaN
    return not isinstance(one, (int, float, str)) or one == other or one != one


def look_for_labels(
    problem: Problem, data: Splits, training: Training, tasks: Sequence[Task], findings: Findings
) -> None:
    """Looks whether every task has a label in every split, as far as the task counts its labels."""
    without: dict[str, list[str]] = {}
    for name in PARTS:
        wanted = list(tasks)
        whole = _as_read(problem, getattr(data, name))
        batches = _batches_of(problem, data, training, name) if whole is None else [whole]
        with findings.part(f"the labels of {name}"):
            for batch in itertools.islice(batches, MANY_BATCHES):
                wanted = [task for task in wanted if not _has_labels(task, batch)]
                if not wanted:
                    break
        for task in wanted:
            without.setdefault(task.name, []).append(name)
    for task_name, names in without.items():
        findings.wrong(
            f"task {task_name}", f"It has no label in {' and '.join(names)}: split otherwise, or leave the task out."
        )
    findings.stop_if_wrong()


def _as_read(problem: Problem, part: MapDataset) -> Mapping[str, Tensor] | None:
    """All of a split as one batch, where it is in memory and nothing is done to it when it is read."""
    plain = type(part) is Tensors and type(problem).loader is Problem.loader
    return part.tensors if plain and isinstance(part, Tensors) else None


def _has_labels(task: Task, batch: Batch) -> bool:
    """Whether a batch has labels of a task; one that does not count them may have some."""
    count = task.labels(batch)
    return count is None or int(count) > 0


def _batches_of(problem: Problem, data: Splits, training: Training, name: str) -> Loader:
    """A split's batches, as training or evaluation reads them."""
    if name == "train":
        return problem.loader(data.train, training.batch_size, torch.Generator().manual_seed(0))
    return problem.loader(getattr(data, name), training.evaluation_batch_size, None)


def look_at_labels(
    problem: Problem, data: Splits, batches: Sequence[Batch], tasks: Sequence[Task], findings: Findings
) -> None:
    """Looks at the values of labels, of all splits where they are in memory, for classes that there are not.

    Of numbers, for other codes for "missing" than NaN.
    """
    splits = [_as_read(problem, getattr(data, name)) for name in PARTS]
    for task in tasks:
        if isinstance(task, (Classification, BinaryClassification, SegmentationTask)):
            for batch in (*batches, *splits):
                if isinstance(batch, Mapping) and isinstance(batch.get(task.name), Tensor):
                    with findings.part(f"task {task.name}"):
                        check_classes(task.name, batch[task.name], task.classes)
        elif isinstance(task, Regression):
            _look_at_numbers(batches, task, findings)


def _look_at_numbers(batches: Sequence[Batch], task: Regression, findings: Findings) -> None:
    labels = [b[task.name] for b in batches if isinstance(b, Mapping) and isinstance(b.get(task.name), Tensor)]
    if not labels:
        return
    values = torch.cat([label.flatten() for label in labels])
    known = values[~values.isnan()]
    for code in (-1.0, -9.0, -99.0, -999.0, 999.0, 9999.0):
        share = float((known == code).float().mean()) if len(known) else 0.0
        if share >= MIN_MISSING and code in (known.min(), known.max()):
            findings.doubtful(
                f"task {task.name}",
                f"{share:.0%} of the labels are {code:g}, and it is trained on them: write NaN where a number "
                "is missing.",
            )
