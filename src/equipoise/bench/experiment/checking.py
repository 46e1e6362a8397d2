"""What can be wrong with what a comparison is asked to do, found before anything is trained."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from equipoise.bench.errors import did_you_mean
from equipoise.bench.experiment.learner import build_method, make_fabric
from equipoise.bench.experiment.rows import BASELINE, FIXED, STATIC, parts_of, replayed_by, spec_of, task_of
from equipoise.bench.experiment.settings import OWN, PRIORITIES, Settings, SettingsError
from equipoise.bench.experiment.trials import make_trial, start_of
from equipoise.bench.problems import Finding, Problem, Splits
from equipoise.bench.problems._checking import check_first_batch, check_tasks
from equipoise.bench.problems._errors import in_own_code
from equipoise.registry import BASE_OPTIMIZERS, MethodSpec

CONSTANT = ("ew", STATIC, FIXED)
"""Methods whose weights do not move: there is nothing to replay."""

ANNOTATIONS = {
    bool: (inspect.Parameter.empty, bool, "bool"),
    float: (inspect.Parameter.empty, float, int, "float", "int"),
}
"""How a hyperparameter is annotated that takes nothing else."""


def check(settings: Settings, problem: Problem, data: Splits) -> None:
    """Builds every method once, so that a wrong name or value is found before anything is trained.

    Raises:
        SettingsError: something is unknown, out of range, or does not go together.
    """
    _refuse(settings, check_tasks(problem))
    tasks = [task.name for task in problem.tasks]
    given_to = {"single", *settings.methods, *(parts_of(row)[0] for row in settings.methods)}
    unused = [name for name in settings.hyperparameters if name not in given_to]
    if unused:
        raise SettingsError(
            f"Hyperparameters are given for {', '.join(unused)}, which is not compared: "
            f"add it to --methods, or write one of {', '.join((*settings.methods, 'single'))}."
            f"{did_you_mean(unused[0], [*given_to, PRIORITIES])}"
        )
    for task in settings.priorities:
        _check_task(task, tasks, f"--set {PRIORITIES}.{task}")
    if settings.batch_size > len(data.train):
        raise SettingsError(
            f"--batch-size {settings.batch_size} is more than the {len(data.train)} training samples: "
            "give that many or fewer."
        )
    if settings.batch_size % settings.devices:
        raise SettingsError(
            f"--batch-size {settings.batch_size} cannot be shared by {settings.devices} devices: "
            "give a multiple of their number."
        )
    alone = replace(settings, devices=1)
    try:
        make_fabric(make_trial(alone, "ew", 0, start_of(alone, "ew")))
    except (ValueError, TypeError, RuntimeError) as error:
        raise SettingsError(f"--precision {settings.precision}, --strategy {settings.strategy}: {error}") from error
    network = problem.model()
    baselines = [f"{BASELINE}{problem.tasks[0].name}"] if settings.baselines else []
    for row in (*baselines, *settings.methods):
        _check_row(settings, row, problem, network)
    _refuse(settings, check_first_batch(problem, data, settings.batch_size))


def _refuse(settings: Settings, findings: Sequence[Finding]) -> None:
    """Says what `equipoise check` says of a problem that cannot be trained."""
    if findings:
        first = findings[0]
        raise SettingsError(f"{settings.problem} cannot be compared. {first.part}: {first.message}")


def _check_task(name: str, tasks: Sequence[str], where: str) -> None:
    if name not in tasks:
        raise SettingsError(
            f"{where}: there is no task {name!r}; the tasks are {', '.join(tasks)}.{did_you_mean(name, tasks)}"
        )


def _check_row(settings: Settings, row: str, problem: Problem, network: nn.Module) -> None:
    single = task_of(replayed_by(row) or row)
    if single is not None:
        _check_task(single, [task.name for task in problem.tasks], row)
    if task_of(row) is not None and row in settings.methods:
        raise SettingsError(f"{row} is always trained: leave it out of --methods.")
    method, optimizer = parts_of(row)
    if optimizer not in BASE_OPTIMIZERS:
        raise SettingsError(
            f"{row}: there is no optimizer {optimizer!r}; write METHOD@ and one of {', '.join(BASE_OPTIMIZERS)}."
        )
    source = replayed_by(row)
    if source is not None and (method in CONSTANT or replayed_by(source) is not None or task_of(source) is not None):
        raise SettingsError(f"{row}: the weights of {source} do not move, there is nothing to replay.")
    given = settings.hyperparameters_of(row)
    for name in OWN:
        value = given.get(name, 0.0)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise SettingsError(f"{row}.{name} must be a finite number that is not negative, found {value!r}.")
    if given.get("lr", settings.lr) == 0:
        raise SettingsError(f"{row}'s learning rate must be more than 0.")
    if (method == FIXED or source is not None) and (own := sorted(given.keys() - set(OWN))):
        raise SettingsError(f"{row} has no hyperparameter {', '.join(own)}: its weights are found, not given.")
    try:
        spec = spec_of(row)
    except Exception as error:  # whatever a file or a package raises when it is imported
        raise SettingsError(_said_of(row, error)) from error
    if spec is not None:
        _check_values(row, given, spec)
    potentials = {task.name: 0.5 for task in problem.tasks} if spec is not None and spec.needs_potentials else None
    if spec is not None and spec.needs_potentials and not settings.baselines and "potentials" not in given:
        raise SettingsError(
            f"{row} needs single-task accuracies, and --no-baselines leaves their runs out: leave it out too, or give "
            f"{row}.potentials."
        )
    start = start_of(settings, row)
    try:
        build_method(problem, make_trial(settings, row, 0, start, potentials=potentials), network)
    except Exception as error:
        explained = in_own_code(error)
        if explained is None and not isinstance(error, (ImportError, ValueError, TypeError)):
            raise
        raise SettingsError(_said_of(row, explained or error)) from error


def _said_of(row: str, error: Exception) -> str:
    """An error's message, behind the row unless it names that, or begins with its file, by itself."""
    said, (method, _) = str(error), parts_of(row)
    file = method.rpartition(":")[0] or method
    named = repr(row) in said or repr(method) in said or said.startswith((f"{file} ", f"Which method in {file}?"))
    return said if named else f"{row}: {said}"


def _check_values(row: str, given: Mapping[str, Any], spec: MethodSpec) -> None:
    """Checks that numbers are given for what by its default is one, and true or false for what is that.

    An annotation may say that something else is taken, too; then what is given is left to the method.
    """
    for name, parameter in inspect.signature(spec.takes).parameters.items():
        kind = bool if isinstance(parameter.default, bool) else float
        of_kind = isinstance(parameter.default, (int, float)) and parameter.annotation in ANNOTATIONS[kind]
        if name in given and of_kind:
            value = given[name]
            if not isinstance(value, (int, float)) or isinstance(value, bool) is not (kind is bool):
                wanted = "true or false" if kind is bool else "a number"
                raise SettingsError(f"{row}.{name} must be {wanted}, found {value!r}.")
