"""Methods by name, ready to train a model."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import entry_points
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
from equipoise.balancer import Balancer
from equipoise.gradients.graph.wrappers import refuse_wrappers
from equipoise.integrations import torchjd
from equipoise.registry import (
    BASE_OPTIMIZERS,
    DEFAULT_OPTIMIZER,
    GROUP,
    METHODS,
    MethodSpec,
    find_own,
    spec_of,
    split_optimizer,
)


def list_methods() -> list[str]:
    """Returns the methods' names, those of installed packages' entry points `equipoise.methods` at the end.

    Beside them there is `single:<task>`, the baseline of one task alone.

    Example:
        >>> import equipoise as eq
        >>> eq.list_methods()[:3]
        ['ew', 'static', 'rlw']
    """
    return [*METHODS, *(entry.name for entry in entry_points(group=GROUP) if entry.name not in METHODS)]


def make_method(
    name: str | object,
    model: nn.Module,
    tasks: Iterable[str],
    *,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    potentials: Mapping[str, float] | None = None,
    probe: nn.Module | Iterable[nn.Parameter] | None = None,
    chunk_size: int | None = None,
    engine: Literal["rows", "layers"] | None = None,
    every: int | None = None,
    check_finite: bool | None = None,
    process_group: Any = None,
    priorities: Mapping[str, float] | None = None,
    **hyperparameters: Any,
) -> Method:
    """Makes a method by name, ready to train `model`: the balancing and its optimizer.

    The optimizer is `torch.optim.AdamW` over the model's parameters; `mao`, `adatask` and `mtadam` are optimizers
    themselves, and with one task the same. Another one is asked for behind an @: `ema@sgd` is `torch.optim.SGD` with
    momentum 0.9, and `ema@muon` is `equipoise.optim.MuonAndAdamW`, with embeddings' tables among AdamW's parameters;
    `mao@sgd` and `mao@muon` are `PerTask` of these. An objective's own parameters (`uw`, `imtl-l`, `imtl`) are learned
    in a group without decay, by the same optimizer; beside Muon they are AdamW's. Their learning rate is the
    hyperparameter `weights_lr`; None, the default: `lr`.

    Args:
        name: one of `list_methods()`, `single:<task>`, or `torchjd:<class>` for an aggregator, a Gramian weighting or
            a scalarizer of TorchJD's, such as `torchjd:UPGrad`; behind any of these `@adamw`, `@sgd` or `@muon`.
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
        every: as in `Balancer`; above 1 for methods with an aggregator that has weights. None: 10 for `lr-annealing`,
            as in its authors' code, else 1.
        check_finite: as in `Balancer`.
        process_group: as in `Balancer`.
        priorities: as in `Balancer` and `MAO`; a single task has none.
        **hyperparameters: as the method's class takes them, for example `beta=0.2` for `ema`. (For TorchJD's, lists
            become tensors, and the number of tasks is filled in.)

    Raises:
        ImportError: the method is TorchJD's, which is not installed; or PyTorch is older than 2.9 and has no Muon.
        TypeError: the name is no string, or the model no module.
        ValueError: unknown method, optimizer or hyperparameter, a value out of range, potentials missing or outside
            (0, 1]; a model in FullyShardedDataParallel, DataParallel or a DeepSpeed engine.

    Example:
        >>> import torch, equipoise as eq
        >>> model = torch.nn.Linear(4, 2)
        >>> method = eq.make_method("ema", model, ["left", "right"], lr=1e-3, beta=0.2)
        >>> left, right = model(torch.randn(8, 4)).square().mean(0)
        >>> weights = method.backward({"left": left, "right": right})
        >>> method.step()
        >>> method.zero_grad()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, found {model!r}.")
    refuse_wrappers(model)
    names = check_tasks(tasks)
    check_number("lr", lr, at_least=0)
    check_number("weight_decay", weight_decay, at_least=0)
    check_priorities(priorities, names)
    if engine is not None:
        check_choice("engine", engine, ["rows", "layers"])
    if isinstance(name, str):
        method, optimizer_name = split_optimizer(name, names)
        spec = None if method.startswith(SINGLE) else _spec(method, len(names))
    else:
        own = name
        name = method = own.__name__ if inspect.isclass(own) else type(own).__name__
        spec, optimizer_name = spec_of(own, method), DEFAULT_OPTIMIZER
    statistics = {"probe": probe is not None, "engine='layers'": engine == "layers", "every": every not in (None, 1)}
    for option, given in statistics.items():
        if given and (spec is None or spec.optimizer is not None):
            raise ValueError(f"Method {name!r} takes no gradient statistics: leave {option} out.")
    base = BASE_OPTIMIZERS[optimizer_name]
    groups = base.groups(model)
    if spec is None:
        task = method.removeprefix(SINGLE)
        check_known(f"Method {name!r}", [task], names)
        _check_hyperparameters(name, hyperparameters, ())
        alone = Balancer(
            [task], chunk_size=chunk_size, model=model, check_finite=check_finite, process_group=process_group
        )
        return SingleTask(name, task, names, model, base.make(groups, lr, weight_decay), alone)
    if spec.optimizer is not None and optimizer_name != DEFAULT_OPTIMIZER:
        if spec.with_base is None:
            raise ValueError(f"Method {method!r} is an optimizer itself: leave @{optimizer_name} out.")
        make = partial(spec.with_base, base.takes, **base.options)
        spec = replace(spec, takes=spec.with_base, optimizer=make)
    _check_hyperparameters(name, hyperparameters, spec.hyperparameters)
    if spec.optimizer is not None:
        hyperparameters |= {"weight_decay": weight_decay, "check_finite": check_finite, "process_group": process_group}
        optimizer = spec.optimizer(
            groups, names, lr=lr, priorities=priorities, chunk_size=chunk_size, **hyperparameters
        )
        return Method(name, names, model, optimizer, None)
    weights_lr = hyperparameters.pop("weights_lr", None) if spec.learns_weights else None
    if weights_lr is not None:
        check_number("weights_lr", weights_lr, at_least=0)
    if spec.needs_potentials:
        if potentials is None:
            raise ValueError(
                f"Method {name!r} needs potentials: a mapping from each task to its single-task accuracy in (0, 1]."
            )
        hyperparameters["potentials"] = potentials
    if method == "static":
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
        every=spec.every if every is None else every,
        model=model,
        check_finite=check_finite,
        process_group=process_group,
    )
    if any(True for _ in balancer.parameters()):
        balancer.to(next((p.device for p in model.parameters()), torch.device("cpu")))  # which may make new ones
        own_lr = {} if weights_lr is None else {"lr": weights_lr}
        groups.append({"params": list(balancer.parameters()), "weight_decay": 0.0, **own_lr})
    return Method(name, names, model, base.make(groups, lr, weight_decay), balancer)


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
        ImportError: it is TorchJD's, and TorchJD is not installed; or what it is in cannot be imported.
        TypeError: what is there is no method.
        ValueError: there is no such method.
    """
    if name in METHODS:
        return METHODS[name]
    if name.startswith(torchjd.PREFIX):
        return torchjd.spec_of(name, count)
    found = find_own(name)
    if found is None:
        near = difflib.get_close_matches(name, METHODS)
        known = ", ".join([*METHODS, f"{SINGLE}<task>", f"{torchjd.PREFIX}<class>", "FILE.py:NAME"])
        meant = f"Did you mean {' or '.join(map(repr, near))}? list_methods() names all." if near else ""
        raise ValueError(f"Unknown method {name!r}. {meant or f'The methods are {known}.'}")
    return spec_of(found, name)


def _check_hyperparameters(name: str, given: Iterable[str], accepted: Iterable[str]) -> None:
    unknown = sorted(set(given) - set(accepted))
    if unknown:
        takes = ", ".join(accepted) or "none"
        raise ValueError(f"Method {name!r} has no hyperparameter {', '.join(unknown)}; it takes: {takes}.")
