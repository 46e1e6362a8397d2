"""What a Balancer is made of: what is given as objective and aggregator, its name, and the states that fit it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from equipoise._checks import check_choice
from equipoise._saved import unpacked
from equipoise.aggregators import Aggregator, GramianAggregator
from equipoise.gradients.graph.wrappers import refuse_wrappers
from equipoise.objectives import Equal, Objective, WeightedSum, Weighting


class Library(NamedTuple):
    """Another library whose parts a Balancer takes.

    Attributes:
        has: whether something is a part of it.
        objective: makes an objective of a part; raises TypeError for one that is none.
        aggregator: makes an aggregator of a part; raises TypeError for one that is none.
    """

    has: Callable[[object], bool]
    objective: Callable[[Any], Objective]
    aggregator: Callable[[Any], Aggregator]


LIBRARIES: list[Library] = []
"""Those that `equipoise.integrations` knows."""


def as_objective(objective: nn.Module | None) -> Objective:
    """Takes an `Objective`, a `Weighting`, a scalarizer of TorchJD's, or None as an objective.

    Raises:
        TypeError: it is something else.
    """
    if objective is None:
        return WeightedSum(Equal())
    if isinstance(objective, Weighting):
        return WeightedSum(objective)
    if isinstance(objective, Objective):
        return objective
    for library in LIBRARIES:
        if library.has(objective):
            return library.objective(objective)
    raise TypeError(
        f"objective must be an equipoise Objective or Weighting instance, found {objective!r}. "
        "Aggregators go into aggregator=; a class needs to be called: eq.EMA()."
    )


def as_aggregator(aggregator: nn.Module | None) -> Aggregator | None:
    """Takes an `Aggregator`, an aggregator or weighting of TorchJD's, or None as an aggregator.

    Raises:
        TypeError: it is something else.
    """
    if aggregator is None or isinstance(aggregator, Aggregator):
        return aggregator
    for library in LIBRARIES:
        if library.has(aggregator):
            return library.aggregator(aggregator)
    raise TypeError(
        f"aggregator must be an equipoise Aggregator instance, found {aggregator!r}. "
        "Objectives and weightings go into objective=; a class needs to be called: eq.PCGrad()."
    )


def describe(module: nn.Module) -> str:
    """Returns the classes of a method, say `GeometricMean(DWA)`."""
    inner = [describe(child) for child in module.children()]
    return type(module).__name__ + (f"({', '.join(inner)})" if inner else "")


def check_state(balancer: Any, state: Mapping[str, Any], prefix: str, *_: object) -> None:
    """Refuses the state of another method or other tasks before a Balancer loads any of it.

    Raises:
        ValueError: it is of another, or of no Balancer.
    """
    found = state.get(f"{prefix}_extra_state")
    if not isinstance(found, Tensor):
        if prefix and not any(name.startswith(prefix) for name in state):
            return  # the checkpoint of a module without a Balancer; PyTorch reports it where strict
        raise ValueError("This state_dict holds no Balancer: save and load balancer.state_dict().")
    kept = unpacked(found)
    for what, own in (("tasks", list(balancer.tasks)), ("method", balancer.method)):
        if kept[what] != own:
            raise ValueError(
                f"This state_dict is of other {what}: found {kept[what]!r}, expected {own!r}. "
                "Load it into a Balancer made with the same arguments."
            )


def check_complete(balancer: nn.Module, state: Mapping[str, Any]) -> None:
    """Checks that all of a Balancer's state is there, in the right shapes, before any of it is loaded.

    Raises:
        ValueError: something is missing, too much, or of another shape.
    """
    own = balancer.state_dict()
    own, state = ({n: v for n, v in values.items() if ".part." not in n} for values in (own, state))  # TorchJD's change
    missing, unknown = [name for name in own if name not in state], [name for name in state if name not in own]
    if missing or unknown:
        raise ValueError(
            "This state_dict does not fit the Balancer: "
            f"it lacks {', '.join(map(repr, missing)) or 'nothing'} and has "
            f"{', '.join(map(repr, unknown)) or 'nothing'} that is unknown. Load it into a Balancer made with the "
            "same arguments."
        )
    for name, value in own.items():
        if isinstance(value, Tensor) and getattr(state[name], "shape", None) != value.shape:
            raise ValueError(
                f"This state_dict does not fit the Balancer: {name!r} is {state[name]!r}, expected a tensor of shape "
                f"{tuple(value.shape)}."
            )


def check_prefers(aggregator: Aggregator) -> None:
    """Refuses priorities for an aggregator that takes none.

    Raises:
        ValueError: it takes none.
    """
    if not (aggregator.takes_preferences or isinstance(aggregator, GramianAggregator)):
        raise ValueError(
            f"priorities: {describe(aggregator)} takes no preferences (see Aggregator.takes_preferences). Leave "
            "priorities out, or put factors in front of the losses if it is not scale-invariant."
        )


def check_balancer_arguments(
    aggregator: Aggregator | None, shared: bool, probe: bool, engine: str | None, model: nn.Module | None
) -> None:
    """Refuses arguments of a Balancer that mean nothing together, and models that it cannot train.

    Raises:
        ValueError: a probe without a Gramian aggregator, shared parameters without an aggregator; as
            `refuse_wrappers`.
    """
    if probe and not isinstance(aggregator, GramianAggregator):
        raise ValueError(
            "probe needs an aggregator that finds weights from the Gramian; "
            f"found {'none' if aggregator is None else type(aggregator).__name__}. Leave probe out."
        )
    if shared and aggregator is None:
        raise ValueError(
            "shared= says on which parameters an aggregator balances the tasks' gradients, and there is no aggregator: "
            "an objective alone weighs whole losses. Leave shared out, or give aggregator=."
        )
    if engine is not None:
        check_choice("engine", engine, ["rows", "layers"])
    if engine == "layers" and (probe or not isinstance(aggregator, GramianAggregator)):
        found = "a probe" if probe else "no aggregator" if aggregator is None else type(aggregator).__name__
        raise ValueError(
            "engine='layers' computes the Gramian of all shared parameters; it needs an aggregator that finds weights "
            f"from the Gramian, and no probe. Found {found}: leave engine out."
        )
    if model is not None:
        refuse_wrappers(model)
