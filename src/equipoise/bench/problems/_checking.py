"""What is wrong with a problem, found in seconds: its splits, batches, predictions, losses, measures, sharing."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.bench.problems._base import SCHEDULES, Problem, Splits, Task, Training
from equipoise.bench.problems._findings import Finding, Findings, StopError
from equipoise.bench.problems._looking_at_data import (
    look_at_labels,
    look_at_splits,
    look_for_labels,
    look_whether_same,
)

BATCHES = 4
"""So many training batches are looked at."""

FAR_APART = 30.0
"""So many times the smallest loss at the start is the largest where a word is said about it."""


def check_problem(problem: Problem, quick: bool = True) -> list[Finding]:
    """Finds what is wrong with a problem, or doubtful, within seconds; nothing is trained.

    The data are loaded, a network is made, and a few batches go forward and backward. Looked at are the tasks' names
    and measures, the splits (sizes, rows of `Tensors` that stand in two of them), whether network and data are the
    same for the same seed and at every call, predictions, losses (0-dim, finite, with a graph, and how far apart they
    are), labels (is there one of every task in every split?) and how "missing" is written in them, metrics and their
    keys, accuracies (for the methods that take some), and what the network shares.

    Args:
        problem: yours.
        quick: look at the quick data; else at all of them, which takes as long as reading them.

    Returns:
        A finding a part, in this order; what cannot be looked at after something is wrong is left out.

    Example:
        >>> from equipoise.bench.problems import check_problem, load_problem
        >>> {finding.level for finding in check_problem(load_problem("yeast"))}
        {'fine'}
    """
    findings = Findings()
    part = "data(quick=True)" if quick else "data()"
    try:
        tasks = _tasks(problem, findings)
        with findings.part(part), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            data = problem.data(quick)
        look_at_splits(data, part, findings)
        training = _training(problem, data, findings)
        look_whether_same(problem, data if quick else None, training, findings)
        network = _network(problem, findings)
        batches = _batches(problem, data, training.batch_size, BATCHES, findings)
        with torch.random.fork_rng(devices=[]):
            losses = _losses(problem, network, batches, tasks, findings)
            look_at_labels(problem, data, batches, tasks, findings)
            look_for_labels(problem, data, training, tasks, findings)
            _look_at_losses(losses, len(batches), tasks, findings)
            _metrics(problem, network, data, training, tasks, findings)
        _sharing(network, losses, findings)
    except StopError:
        pass
    return findings.found


def check_tasks(problem: Problem) -> list[Finding]:
    """Finds what is wrong with a problem's tasks by themselves; what is fine or doubtful is left out."""
    findings = Findings()
    with suppress(StopError):
        _tasks(problem, findings)
    return [finding for finding in findings.found if finding.level == "wrong"]


def check_first_batch(problem: Problem, data: Splits, batch_size: int) -> list[Finding]:
    """Finds what is wrong with the first batch of training, on the CPU; what is fine or doubtful is left out.

    Args:
        problem: what is to be trained.
        data: its data.
        batch_size: samples a batch.
    """
    findings = Findings()
    with suppress(StopError):
        network = _network(problem, findings)
        batches = _batches(problem, data, batch_size, 1, findings)
        with torch.random.fork_rng(devices=[]):
            _losses(problem, network, batches, problem.tasks, findings)
            look_at_labels(problem, data, batches, problem.tasks, findings)
    return [finding for finding in findings.found if finding.level == "wrong"]


def _tasks(problem: Problem, findings: Findings) -> list[Task]:
    with findings.part("tasks"):
        if isinstance(problem.tasks, Task):
            kind = type(problem.tasks).__name__
            findings.wrong("tasks", f"tasks must be several Tasks, found one {kind}: write tasks = ({kind}(…), …).")
            raise StopError
        tasks = list(problem.tasks)
        if others := [task for task in tasks if not isinstance(task, Task)]:
            findings.wrong("tasks", f"Each must be a Task, as Classification or Regression; found {others[0]!r}.")
            raise StopError
        names = [task.name for task in tasks]
        twice = {name for name in names if names.count(name) > 1}
        for task in tasks:
            if not task.measures:
                findings.wrong(f"task {task.name}", "measures is empty: name at least one; the first is the main one.")
        if not isinstance(problem.name, str) or not isinstance(problem.description, str):
            findings.wrong("tasks", "The problem needs a `name` and a `description`, a text each.")
        if not names or twice:
            what = f"found twice: {', '.join(sorted(twice))}" if twice else "there is none"
            findings.wrong("tasks", f"tasks must be one or more with different names; {what}.")
        elif len(names) == 1:
            findings.doubtful("tasks", f"There is one task, {names[0]}: nothing to balance.")
        else:
            findings.fine("tasks", f"{len(names)}: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}")
    findings.stop_if_wrong()
    return tasks


def _training(problem: Problem, data: Splits, findings: Findings) -> Training:
    with findings.part("training()"):
        for quick in (False, True):
            training = problem.training(quick)
            for name, value in (("epochs", training.epochs), ("batch_size", training.batch_size), ("lr", training.lr)):
                if not value > 0:
                    findings.wrong("training()", f"{name} must be more than 0, found {value!r}.")
            if training.schedule not in SCHEDULES:
                findings.wrong(
                    "training()", f"There is no schedule {training.schedule!r}; take one of {', '.join(SCHEDULES)}."
                )
        if training.batch_size > len(data.train):
            findings.wrong(
                "training()", f"A batch of {training.batch_size} is more than the {len(data.train)} samples of train."
            )
    findings.stop_if_wrong()
    return training


def _network(problem: Problem, findings: Findings) -> nn.Module:
    with findings.part("model()"), torch.random.fork_rng(devices=[]):
        networks = []
        for _ in range(2):
            torch.manual_seed(0)
            networks.append(problem.model())
        for network in networks:
            if not isinstance(network, nn.Module):
                findings.wrong("model()", f"It must return a torch.nn.Module, found {type(network).__name__}.")
                raise StopError
        one, other = (network.state_dict() for network in networks)
        if any(not torch.equal(one[name], other[name]) for name in one):
            findings.doubtful(
                "model()", "The same seed gives other weights: draw them from PyTorch's default generator alone."
            )
        trained = sum(p.numel() for p in networks[0].parameters() if p.requires_grad)
        findings.fine("model()", f"{trained:,} trained parameters")
    return networks[0]


def _batches(problem: Problem, data: Splits, batch_size: int, count: int, findings: Findings) -> list[Any]:
    with findings.part("loader()"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        started = time.perf_counter()
        loader = problem.loader(data.train, batch_size, torch.Generator().manual_seed(0))
        batches = list(itertools.islice(loader, count))
        seconds = (time.perf_counter() - started) / max(1, len(batches))
        if not batches:
            findings.wrong("loader()", "It yields no batch of the training part.")
            raise StopError
        findings.fine("loader()", f"{len(loader)} batches of train, {1000 * seconds:.0f} ms each")
    return batches


def _losses(
    problem: Problem, network: nn.Module, batches: Iterable[Any], tasks: Iterable[Task], findings: Findings
) -> dict[str, Tensor]:
    """Looks at predictions and losses; returns a loss of every task that has one."""
    found: dict[str, Tensor] = {}
    network.train()
    for batch in batches:
        with findings.part("predict", batch=batch):
            predictions = problem.predict(network, batch)
        for task in tasks:
            part = f"task {task.name}"
            with findings.part(part, predictions, batch):
                loss = task.loss(predictions, batch)
            if loss is None:
                continue
            if not isinstance(loss, Tensor) or loss.dim():
                shape = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                findings.wrong(part, f"loss() must return a 0-dim tensor or None, found {shape}: take the mean.")
            elif not loss.requires_grad:
                findings.wrong(part, "The loss has no graph: it does not depend on the network's parameters.")
            elif not math.isfinite(loss.item()):
                findings.wrong(part, f"The loss is {loss.item()}: look for divisions by 0 and missing labels.")
            else:
                found.setdefault(task.name, loss)
            findings.stop_if_wrong()
    return found


def _look_at_losses(losses: Mapping[str, Tensor], count: int, tasks: Iterable[Task], findings: Findings) -> None:
    """Says which tasks have losses, and how far apart these are at the start."""
    for task in tasks:
        if task.name not in losses:
            findings.doubtful(f"task {task.name}", f"No label in the first {count} batches of train.")
    values = {name: loss.item() for name, loss in losses.items()}
    if values:
        shown = ", ".join(f"{name} {value:.3g}" for name, value in itertools.islice(values.items(), 8))
        findings.fine("losses", f"before training: {shown}{', …' if len(values) > 8 else ''}")
    positive = {name: value for name, value in values.items() if value > 0}
    if len(positive) > 1:
        largest, smallest = max(positive, key=positive.__getitem__), min(positive, key=positive.__getitem__)
        ratio = positive[largest] / positive[smallest]
        if ratio > FAR_APART:
            findings.doubtful(
                "losses",
                f"{largest} is {ratio:.0f} times {smallest}: with equal weights it decides alone. Standardise its "
                "labels (mean 0, standard deviation 1), or see what a balancing method makes of it.",
            )


def _metrics(
    problem: Problem, network: nn.Module, data: Splits, training: Training, tasks: list[Task], findings: Findings
) -> None:
    network.eval()
    with findings.part("loader()"):
        batch = next(iter(problem.loader(data.validation, training.evaluation_batch_size, None)))
    with torch.no_grad(), findings.part("predict", batch=batch):
        predictions = problem.predict(network, batch)
    for task in tasks:
        part = f"task {task.name}"
        with torch.no_grad(), findings.part(part, predictions, batch):
            metrics = task.metrics()
            task.update(metrics, predictions, batch)
            if not any(metric.update_called for metric in metrics.values()):
                findings.doubtful(part, "No label in the first batch of validation.")
                continue
            values = {name: float(value) for name, value in metrics.compute().items()}
            lacking = [measure.name for measure in task.measures if measure.name not in values]
            if lacking:
                findings.wrong(
                    part, f"metrics() computes no {', '.join(map(repr, lacking))}; it computes: {', '.join(values)}."
                )
                continue
            accuracy = task.accuracy(values)
            if not 0 <= accuracy <= 1:
                findings.doubtful(
                    part,
                    f"accuracy() is {accuracy:.3g}; the methods that balance by accuracy take numbers from 0 to 1: "
                    "override it.",
                )
    findings.stop_if_wrong()


def _sharing(network: nn.Module, losses: Mapping[str, Tensor], findings: Findings) -> None:
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    reached: dict[str, set[str]] = {}
    for task, loss in losses.items():
        with findings.part(f"task {task}"):
            gradients = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
        reached[task] = {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}
    shared = [name for name in named if sum(name in names for names in reached.values()) > 1]
    unused = [name for name in named if not any(name in names for names in reached.values())]
    if len(reached) > 1 and not shared:
        findings.doubtful("sharing", "The tasks share no trained parameter: there is nothing to balance between them.")
    else:
        count = sum(named[name].numel() for name in shared)
        findings.fine("sharing", f"{len(shared)} tensors of {count:,} parameters are shared by two tasks or more")
    for task, names in reached.items():
        if shared and not names & set(shared):
            findings.doubtful("sharing", f"{task} shares no parameter with another task.")
    if unused:
        findings.doubtful(
            "sharing", f"No loss reaches {', '.join(unused[:3])}{f' and {len(unused) - 3} more' if unused[3:] else ''}."
        )
