"""The registry: every method by name, ready to train a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from equipoise._checks import (
    check_choice,
    check_known,
    check_number,
    check_priorities,
    check_tasks,
)
from equipoise._method import SINGLE, Method, SingleTask
from equipoise.aggregators import IMTLG, MGDA, Aggregator, CAGrad, GradDrop, GradNorm, NashMTL, PCGrad
from equipoise.balancer import Balancer
from equipoise.gradients.graph.wrappers import refuse_wrappers
from equipoise.integrations import torchjd
from equipoise.objectives import (
    DTP,
    DWA,
    DWEMA,
    EMA,
    FAMO,
    IMTLL,
    REMA,
    RLW,
    UW,
    Achievement,
    Equal,
    GeometricMean,
    Objective,
    Static,
    Weighting,
)
from equipoise.optim import MAO
from equipoise.optim.mao import FUSED_DEVICES

ONE_PASS = "1"
PASS_PER_TASK = "K"


@dataclass(frozen=True)
class MethodSpec:
    """What the registry knows of a method.

    Attributes:
        description: one line.
        source: the paper.
        passes: backward passes through the shared part in a step, "1" or "K".
        takes: the class (or classes) whose arguments are the method's hyperparameters.
        objective: makes the objective from the hyperparameters; None: equal weights.
        aggregator: makes the aggregator; None: there is none.
        needs_potentials: the method wants every task's single-task accuracy.
        probes_last_layer: its paper takes gradient statistics on the last shared layer.
    """

    description: str
    source: str
    passes: str
    takes: Callable[..., Any]
    objective: Callable[..., nn.Module] | None = None
    aggregator: Callable[..., nn.Module] | None = None
    needs_potentials: bool = False
    probes_last_layer: bool = False

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Name → default of what the method can be given; no default is `inspect.Parameter.empty`."""
        parameters = inspect.signature(self.takes).parameters.values()
        own = (
            {"params", "tasks", "lr", "weight_decay", "chunk_size", "check_finite", "process_group"}
            if self.takes is MAO
            else {"potentials"}
        )
        return {p.name: p.default for p in parameters if p.name not in own}


def _objective(
    takes: Callable[..., Objective | Weighting], description: str, source: str, **details: Any
) -> MethodSpec:
    return MethodSpec(description, source, ONE_PASS, takes, objective=takes, **details)


def _mean_of(takes: Callable[..., Weighting], description: str, source: str, **details: Any) -> MethodSpec:
    def objective(**hyperparameters: Any) -> Objective:
        return GeometricMean(takes(**hyperparameters))

    return MethodSpec(description, source, ONE_PASS, takes, objective=objective, **details)


def _aggregator(takes: Callable[..., Aggregator], description: str, source: str, **details: Any) -> MethodSpec:
    return MethodSpec(description, source, PASS_PER_TASK, takes, aggregator=takes, **details)


def _famo(
    weights_lr: float = 0.025, weights_decay: float = 1e-3, lower_bounds: Mapping[str, float] | None = None
) -> FAMO:
    """FAMO by names that leave `lr` and `weight_decay` to the model."""
    check_number("weights_lr", weights_lr, above=0)
    check_number("weights_decay", weights_decay, at_least=0)
    return FAMO(weights_lr, weights_decay, lower_bounds)


def _gradnorm(alpha: float = 1.5, weights_lr: float = 0.025) -> GradNorm:
    """GradNorm by names that leave `lr` to the model."""
    return GradNorm(alpha, check_number("weights_lr", weights_lr, above=0))


METHODS: dict[str, MethodSpec] = {
    "ew": _objective(Equal, "equal weights: the plain sum of the losses", "baseline"),
    "static": _objective(Static, "fixed weights that you give; 1 for every task if you give none", "baseline"),
    "rlw": _objective(RLW, "random weights, drawn anew each step", "Lin et al. 2022"),
    "uw": _objective(UW, "uncertainty weighting: a variance per task is learned with the model", "Kendall et al. 2018"),
    "dwa": _objective(DWA, "more weight for losses that fall slowly", "Liu et al. 2019"),
    "ema": _objective(EMA, "each loss divided by its moving average", "Lakkapragada et al. 2023"),
    "rema": _objective(REMA, "EMA, times the loss's training rate", "Lakkapragada et al. 2023"),
    "dwema": _objective(DWEMA, "EMA, times DWA's weights", "Lakkapragada et al. 2023"),
    "gls": _mean_of(Equal, "geometric mean of the losses", "Chennupati et al. 2019"),
    "dwa-g": _mean_of(DWA, "geometric mean with DWA's weights", "Yun & Cho 2023"),
    "rlw-g": _mean_of(RLW, "geometric mean with random weights", "Yun & Cho 2023"),
    "dtp": _objective(DTP, "more weight for tasks with low accuracy", "Guo et al. 2018"),
    "dtp-g": _mean_of(DTP, "geometric mean with DTP's weights", "Yun & Cho 2023"),
    "amtl": _mean_of(
        Achievement,
        "geometric mean, more weight far below single-task accuracy",
        "Yun & Cho 2023",
        needs_potentials=True,
    ),
    "amtl-a": _objective(
        Achievement, "weighted sum, more weight far below single-task accuracy", "Yun & Cho 2023", needs_potentials=True
    ),
    "imtl-l": _objective(IMTLL, "loss scales learned so that all losses stand near one", "Liu et al. 2021"),
    "famo": _objective(_famo, "equal rate of improvement, from loss values alone", "Liu et al. 2023"),
    "gradnorm": _aggregator(
        _gradnorm,
        "gradient norms on the model's last shared layer, where it names one, drawn together, by training rate",
        "Chen et al. 2018",
        probes_last_layer=True,
    ),
    "imtl-g": _aggregator(IMTLG, "equal projections on every task's gradient", "Liu et al. 2021"),
    "imtl": MethodSpec(
        "IMTL-L's loss scales, then IMTL-G", "Liu et al. 2021", PASS_PER_TASK, IMTLG, objective=IMTLL, aggregator=IMTLG
    ),
    "mgda": _aggregator(MGDA, "shortest vector in the convex hull of the gradients", "Sener & Koltun 2018"),
    "pcgrad": _aggregator(PCGrad, "conflicting parts projected away", "Yu et al. 2020"),
    "graddrop": _aggregator(GradDrop, "one random sign kept per element", "Chen et al. 2020"),
    "cagrad": _aggregator(CAGrad, "the worst task's improvement near the mean gradient", "Liu et al. 2021"),
    "nash-mtl": _aggregator(NashMTL, "Nash bargaining between the gradients", "Navon et al. 2022"),
    "mao": MethodSpec("Adam with moments per task and parameter", "Hervella et al. 2024", PASS_PER_TASK, MAO),
}


def list_methods() -> list[str]:
    """Returns the methods' names; beside them there is `single:<task>`, the baseline of one task alone.

    Example:
        >>> import equipoise as eq
        >>> eq.list_methods()[:3]
        ['ew', 'static', 'rlw']
    """
    return list(METHODS)


def make_method(
    name: str,
    model: nn.Module,
    tasks: Iterable[str],
    *,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    potentials: Mapping[str, float] | None = None,
    probe: nn.Module | Iterable[nn.Parameter] | None = None,
    chunk_size: int | None = None,
    engine: Literal["rows", "layers"] | None = None,
    check_finite: bool | None = None,
    process_group: Any = None,
    priorities: Mapping[str, float] | None = None,
    **hyperparameters: Any,
) -> Method:
    """Makes a method by name, ready to train `model`: the balancing and its optimizer.

    The optimizer is `torch.optim.AdamW` over the model's parameters, and for `mao` MAO, which with one
    task is the same. An objective's own parameters (`uw`, `imtl-l`, `imtl`) are learned in a group without decay.

    Args:
        name: one of `list_methods()`, `single:<task>`, or `torchjd:<class>` for an aggregator, a Gramian weighting or
            a scalarizer of TorchJD's, such as `torchjd:UPGrad`.
        model: what is trained; on its device already, as for any optimizer.
        tasks: the tasks' names.
        lr: learning rate, at least 0.
        weight_decay: decoupled weight decay, at least 0.
        potentials: task → single-task accuracy in (0, 1]; for `amtl` and `amtl-a`.
        probe: as in `Balancer`, for methods with an aggregator. None: for `gradnorm` what the model's
            `last_shared_layer()` returns (`equipoise.bench.models` have one), unless that layer is frozen;
            else all shared parameters.
        chunk_size: as in `Balancer`: how many tasks go at once through what they share.
        engine: as in `Balancer`; "layers" is for methods that find weights from the Gramian.
        check_finite: as in `Balancer`.
        process_group: as in `Balancer`.
        priorities: as in `Balancer` and `MAO`; a single task has none.
        **hyperparameters: as the method's class takes them, for example `beta=0.2` for `ema`. (For TorchJD's, lists
            become tensors, and the number of tasks is filled in.)

    Raises:
        ImportError: the method is TorchJD's, which is not installed.
        TypeError: the name is no string, or the model no module.
        ValueError: unknown method or hyperparameter, a value out of range, potentials missing or outside (0, 1]; a
            model in FullyShardedDataParallel, DataParallel or a DeepSpeed engine.

    Example:
        >>> import torch, equipoise as eq
        >>> model = torch.nn.Linear(4, 2)
        >>> method = eq.make_method("ema", model, ["left", "right"], lr=1e-3, beta=0.2)
        >>> left, right = model(torch.randn(8, 4)).square().mean(0)
        >>> weights = method.backward({"left": left, "right": right})
        >>> method.step()
        >>> method.zero_grad()
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be one of list_methods(), found {name!r}.")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, found {model!r}.")
    refuse_wrappers(model)
    names = check_tasks(tasks)
    check_number("lr", lr, at_least=0)
    check_number("weight_decay", weight_decay, at_least=0)
    check_priorities(priorities, names)
    if engine is not None:
        check_choice("engine", engine, ["rows", "layers"])
    for option, given in (("probe", probe is not None), ("engine='layers'", engine == "layers")):
        if given and (name.startswith(SINGLE) or name == "mao"):
            raise ValueError(f"Method {name!r} takes no gradient statistics: leave {option} out.")
    parameters = list(model.parameters())  # frozen ones too: they may be unfrozen
    fused = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)
    if name.startswith(SINGLE):
        task = name.removeprefix(SINGLE)
        check_known(f"Method {name!r}", [task], names)
        _check_hyperparameters(name, hyperparameters, ())
        alone = Balancer(
            [task], chunk_size=chunk_size, model=model, check_finite=check_finite, process_group=process_group
        )
        optimizer = torch.optim.AdamW(parameters, lr, weight_decay=weight_decay, fused=fused)
        return SingleTask(task, names, model, optimizer, alone)
    spec = _spec(name, len(names))
    _check_hyperparameters(name, hyperparameters, spec.hyperparameters)
    if spec.takes is MAO:
        hyperparameters |= {"weight_decay": weight_decay, "check_finite": check_finite, "process_group": process_group}
        mao = MAO(parameters, names, lr, priorities=priorities, chunk_size=chunk_size, **hyperparameters)
        return Method(name, names, model, mao, None)
    if spec.needs_potentials:
        if potentials is None:
            raise ValueError(
                f"Method {name!r} needs potentials: a mapping from each task to its single-task accuracy in (0, 1]."
            )
        hyperparameters["potentials"] = potentials
    if name == "static":
        hyperparameters.setdefault("weights", dict.fromkeys(names, 1.0))
    given_to_objective = {} if spec.aggregator else hyperparameters
    objective = None if spec.objective is None else spec.objective(**given_to_objective)
    aggregator = None if spec.aggregator is None else spec.aggregator(**hyperparameters)
    balancer = Balancer(
        names,
        objective,
        aggregator,
        priorities=priorities,
        probe=_last_shared_layer(model) if spec.probes_last_layer and probe is None else probe,
        chunk_size=chunk_size,
        engine=engine,
        model=model,
        check_finite=check_finite,
        process_group=process_group,
    )
    groups: list[dict[str, Any]] = [{"params": parameters}]
    learned = list(balancer.parameters())
    if learned:
        device = next((p.device for p in parameters), torch.device("cpu"))
        balancer.to(device)
        groups.append({"params": learned, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr, weight_decay=weight_decay, fused=fused)
    return Method(name, names, model, optimizer, balancer)


def _last_shared_layer(model: nn.Module) -> nn.Module | None:
    """Returns the layer that the model names, wrapped or not; None if it names none, or that one is frozen."""
    while isinstance(model, DistributedDataParallel) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, DistributedDataParallel) else cast("nn.Module", model._orig_mod)
    named = getattr(model, "last_shared_layer", None)
    layer: nn.Module | None = named if named is None or isinstance(named, nn.Module) else named()
    return layer if layer is not None and any(p.requires_grad for p in layer.parameters()) else None


def _spec(name: str, count: int) -> MethodSpec:
    """Returns what is known of a method for `count` tasks.

    Raises:
        ImportError: it is TorchJD's, and TorchJD is not installed.
        ValueError: there is no such method.
    """
    if name.startswith(torchjd.PREFIX):
        found = torchjd.find_class(name)
        make = partial(torchjd.make, found, count)
        if torchjd.is_scalarizer(found):
            return MethodSpec(f"TorchJD's {found.__name__}", "TorchJD", ONE_PASS, found, objective=make)
        return MethodSpec(f"TorchJD's {found.__name__}", "TorchJD", PASS_PER_TASK, found, aggregator=make)
    if name not in METHODS:
        known = ", ".join([*METHODS, f"{SINGLE}<task>", f"{torchjd.PREFIX}<class>"])
        raise ValueError(f"Unknown method {name!r}; the methods are {known}.")
    return METHODS[name]


def _check_hyperparameters(name: str, given: Iterable[str], accepted: Iterable[str]) -> None:
    unknown = sorted(set(given) - set(accepted))
    if unknown:
        takes = ", ".join(accepted) or "none"
        raise ValueError(f"Method {name!r} has no hyperparameter {', '.join(unknown)}; it takes: {takes}.")
