"""What is wrong with a problem, found in seconds: its splits, batches, predictions, losses, measures, sharing."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from equipoise.bench.problems._base import SCHEDULES, Problem, Splits, Task, Tensors, Training
from equipoise.bench.problems._errors import place_of
from equipoise.bench.problems._tasks import Classification, Regression

BATCHES = 4
"""So many training batches are looked at."""

MIN_MISSING = 0.01
"""A share of one odd value among a task's labels above which it looks like a code for "missing"."""


@dataclass(frozen=True)
class Finding:
    """What was found about one part of a problem.

    Attributes:
        level: "fine", "doubtful" (it trains, perhaps not what is meant) or "wrong" (it cannot be trained or compared).
        part: which part of the problem.
        message: what was found and, unless it is fine, what to do.
    """

    level: Literal["fine", "doubtful", "wrong"]
    part: str
    message: str


@dataclass
class _Findings:
    found: list[Finding] = field(default_factory=list)

    def fine(self, part: str, message: str) -> None:
        self.found.append(Finding("fine", part, message))

    def doubtful(self, part: str, message: str) -> None:
        self.found.append(Finding("doubtful", part, message))

    def wrong(self, part: str, message: str) -> None:
        self.found.append(Finding("wrong", part, message))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Takes an error in a person's code as a finding about the part."""
        try:
            yield
        except _StopError:
            raise
        except Exception as error:
            place, code = place_of(error)
            self.wrong(name, f"{type(error).__name__}: {error} ({place}: {code})")
            raise _StopError from error


class _StopError(Exception):
    """What comes next needs what was found to be wrong."""


def check_problem(problem: Problem) -> list[Finding]:
    """Finds what is wrong with a problem, or doubtful, within seconds; nothing is trained.

    The quick data are loaded, a network is made, and a few batches go forward and backward. Looked at are the tasks'
    names and measures, the splits (sizes, rows of `Tensors` that stand in two of them), whether network and batches
    are the same for the same seed, predictions, losses (0-dim, finite, with a graph), labels and how "missing" is
    written in them, metrics and their keys, accuracies (for the methods that take some), and what the network shares.

    Args:
        problem: yours.

    Returns:
        A finding a part, in this order; what cannot be looked at after something is wrong is left out.

    Example:
        >>> from equipoise.bench.problems import check_problem, load_problem
        >>> {finding.level for finding in check_problem(load_problem("digits"))}
        {'fine'}
    """
    findings = _Findings()
    try:
        tasks = _tasks(problem, findings)
        with findings.part("data(quick=True)"):
            data = problem.data(quick=True)
        _splits(data, findings)
        training = _training(problem, data, findings)
        network = _network(problem, findings)
        batches = _batches(problem, data, training, findings)
        with torch.random.fork_rng(devices=[]):
            losses = _losses(problem, network, batches, tasks, findings)
            _labels(batches, tasks, findings)
            _metrics(problem, network, data, training, tasks, findings)
        _sharing(network, losses, findings)
    except _StopError:
        pass
    return findings.found


def _tasks(problem: Problem, findings: _Findings) -> list[Task]:
    with findings.part("tasks"):
        tasks = list(problem.tasks)
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
    _stop_if_wrong(findings)
    return tasks


def _splits(data: Splits, findings: _Findings) -> None:
    with findings.part("data(quick=True)"):
        parts = {name: getattr(data, name) for name in ("train", "validation", "test")}
        sizes = {name: len(part) for name, part in parts.items()}
        for name, size in sizes.items():
            if size == 0:
                findings.wrong("data(quick=True)", f"The {name} part is empty.")
        for one, other in itertools.combinations(parts, 2):
            if parts[one] is parts[other]:
                findings.doubtful("data(quick=True)", f"{one} and {other} are the same data: a result means nothing.")
            elif isinstance(parts[one], Tensors) and isinstance(parts[other], Tensors):
                both = len(_rows(parts[one]) & _rows(parts[other]))
                if both:
                    findings.doubtful(
                        "data(quick=True)",
                        f"{both} inputs of the {other} part stand in the {one} part, too: split by what they are of.",
                    )
        findings.fine("data(quick=True)", ", ".join(f"{name} {size:,}" for name, size in sizes.items()))
    _stop_if_wrong(findings)


def _rows(part: Tensors) -> set[bytes]:
    """The inputs, each as bytes."""
    inputs = part.tensors.get("input")
    return set() if inputs is None else {row.tobytes() for row in inputs.flatten(1).numpy(force=True)}


def _training(problem: Problem, data: Splits, findings: _Findings) -> Training:
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
    _stop_if_wrong(findings)
    return training


def _network(problem: Problem, findings: _Findings) -> nn.Module:
    with findings.part("model()"), torch.random.fork_rng(devices=[]):
        networks = []
        for _ in range(2):
            torch.manual_seed(0)
            networks.append(problem.model())
        for network in networks:
            if not isinstance(network, nn.Module):
                findings.wrong("model()", f"It must return a torch.nn.Module, found {type(network).__name__}.")
                raise _StopError
        one, other = (network.state_dict() for network in networks)
        if any(not torch.equal(one[name], other[name]) for name in one):
            findings.doubtful(
                "model()", "The same seed gives other weights: draw them from PyTorch's default generator alone."
            )
        trained = sum(p.numel() for p in networks[0].parameters() if p.requires_grad)
        findings.fine("model()", f"{trained:,} trained parameters")
    return networks[0]


def _batches(problem: Problem, data: Splits, training: Training, findings: _Findings) -> list[Any]:
    with findings.part("loader()"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        started = time.perf_counter()
        loader = problem.loader(data.train, training.batch_size, torch.Generator().manual_seed(0))
        batches = list(itertools.islice(loader, BATCHES))
        seconds = (time.perf_counter() - started) / max(1, len(batches))
        if not batches:
            findings.wrong("loader()", "It yields no batch of the training part.")
            raise _StopError
        findings.fine("loader()", f"{len(loader)} batches of the quick data, {1000 * seconds:.0f} ms each")
    return batches


def _losses(
    problem: Problem, network: nn.Module, batches: list[Any], tasks: list[Task], findings: _Findings
) -> dict[str, Tensor]:
    """Looks at predictions and losses; returns a loss of every task that has one."""
    found: dict[str, Tensor] = {}
    network.train()
    for batch in batches:
        with findings.part("predict()"):
            predictions = problem.predict(network, batch)
        for task in tasks:
            part = f"task {task.name}"
            try:
                with findings.part(part):
                    loss = task.loss(predictions, batch)
            except _StopError as stop:
                if isinstance(predictions, Mapping) and task.name not in predictions:
                    findings.found[-1] = Finding(
                        "wrong",
                        part,
                        f"The network predicts no {task.name!r}; it predicts: {', '.join(map(str, predictions))}.",
                    )
                elif isinstance(batch, Mapping) and task.name not in batch:
                    findings.found[-1] = Finding(
                        "wrong", part, f"A batch holds no {task.name!r}; it holds: {', '.join(map(str, batch))}."
                    )
                raise stop from None
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
            _stop_if_wrong(findings)
    for task in tasks:
        if task.name not in found:
            findings.doubtful(f"task {task.name}", f"No label in the first {len(batches)} batches of train.")
    values = {name: loss.item() for name, loss in found.items()}
    if values:
        shown = ", ".join(f"{name} {value:.3g}" for name, value in itertools.islice(values.items(), 8))
        findings.fine("losses", f"before training: {shown}{', …' if len(values) > 8 else ''}")
    return found


def _labels(batches: list[Any], tasks: list[Task], findings: _Findings) -> None:
    """Looks at labels of the ready-made tasks for other codes for "missing" than theirs."""
    for task in tasks:
        labels = [b[task.name] for b in batches if isinstance(b, Mapping) and isinstance(b.get(task.name), Tensor)]
        if not labels:
            continue
        values, part = torch.cat([label.flatten() for label in labels]), f"task {task.name}"
        if isinstance(task, Classification):
            odd = values[(values < -1) | (values >= task.classes)]
            if values.is_floating_point():
                findings.wrong(part, f"Labels of a Classification are int64, found {values.dtype}.")
            elif len(odd):
                findings.wrong(
                    part,
                    f"A label is {int(odd[0])}; with {task.classes} classes they are 0 to {task.classes - 1}, "
                    "and -1 where there is none.",
                )
        elif isinstance(task, Regression):
            if not values.is_floating_point():
                findings.wrong(part, f"Labels of a Regression are floats, found {values.dtype}: write .float().")
                continue
            known = values[~values.isnan()]
            for code in (-1.0, -9.0, -99.0, -999.0, 999.0, 9999.0):
                share = float((known == code).float().mean()) if len(known) else 0.0
                if share >= MIN_MISSING and code in (known.min(), known.max()):
                    findings.doubtful(
                        part,
                        f"{share:.0%} of the labels are {code:g}, and it is trained on them: write NaN where a number "
                        "is missing.",
                    )
    _stop_if_wrong(findings)


def _metrics(
    problem: Problem, network: nn.Module, data: Splits, training: Training, tasks: list[Task], findings: _Findings
) -> None:
    network.eval()
    with findings.part("loader()"):
        batch = next(iter(problem.loader(data.validation, training.evaluation_batch_size, None)))
    with torch.no_grad(), findings.part("predict()"):
        predictions = problem.predict(network, batch)
    for task in tasks:
        part = f"task {task.name}"
        with torch.no_grad(), findings.part(part):
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
    _stop_if_wrong(findings)


def _sharing(network: nn.Module, losses: Mapping[str, Tensor], findings: _Findings) -> None:
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


def _stop_if_wrong(findings: _Findings) -> None:
    if any(finding.level == "wrong" for finding in findings.found):
        raise _StopError
