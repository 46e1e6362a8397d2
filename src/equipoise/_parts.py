"""What a Balancer is made of: what is given as objective and aggregator, and its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from equipoise._checks import check_choice
from equipoise.aggregators import Aggregator, GramianAggregator, RowStateAggregator
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
        f"Aggregators go into aggregator={_called(objective)}."
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
        f"Objectives and weightings go into objective={_called(aggregator)}."
    )


def _called(given: object) -> str:
    """What is to be done with a class where an instance is wanted."""
    return f"; a class needs to be called: {given.__name__}()" if inspect.isclass(given) else ""


def describe(module: nn.Module) -> str:
    """Returns the classes of a method, say `GeometricMean(DWA)`."""
    inner = [describe(child) for child in module.children()]
    return type(module).__name__ + (f"({', '.join(inner)})" if inner else "")


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
    aggregator: Aggregator | None, shared: bool, probe: bool, engine: str | None, every: int, model: nn.Module | None
) -> None:
    """Refuses arguments of a Balancer that mean nothing together, and models that it cannot train.

    Raises:
        ValueError: a probe without a Gramian aggregator, shared parameters without an aggregator, state by parameter
            where parameters have no names; `every` is no number of steps, or there are no weights to hold; as
            `refuse_wrappers`.
    """
    if probe and not isinstance(aggregator, GramianAggregator):
        raise ValueError(
            "probe needs an aggregator that finds weights from the Gramian; "
            f"found {'none' if aggregator is None else type(aggregator).__name__}. Leave probe out."
        )
    if isinstance(aggregator, RowStateAggregator) and model is None and not shared:
        raise ValueError(
            f"{type(aggregator).__name__} keeps state by parameter, and saves it under its name: give the Balancer "
            "model=, or shared= with the same parameters in the same order (make_method gives model)."
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
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every must be a number of steps ≥ 1, found {every!r}.")
    if every > 1 and (aggregator is None or not aggregator.weighs):
        found = "no aggregator" if aggregator is None else type(aggregator).__name__
        raise ValueError(
            "every holds an aggregator's weights between the steps that take statistics; it needs one that has "
            f"weights. Found {found}: leave every out."
        )
    if model is not None:
        refuse_wrappers(model)


def check_representation(aggregator: Aggregator | None, shared: bool, accumulates: bool, sharded: bool) -> None:
    """Refuses a representation where it does not go with the rest.

    Args:
        aggregator: what takes statistics.
        shared: a person named what is shared.
        accumulates: there are several micro-batches.
        sharded: parameters are spread over ranks.

    Raises:
        ValueError: it does not.
    """
    if not isinstance(aggregator, GramianAggregator):
        found = "none" if aggregator is None else type(aggregator).__name__
        raise ValueError(
            f"representation needs an aggregator that finds weights from the Gramian; found {found}. Leave it out."
        )
    if shared:
        raise ValueError("representation says what is shared, all that leads to it: make the Balancer without shared.")
    if accumulates:
        raise ValueError(
            "representation balances one batch, whose graph the trunk's backward pass needs: leave it out where "
            "gradients are accumulated over micro-batches."
        )
    if sharded:
        raise ValueError(
            "representation does not go with fully_shard, which has gradients computed from the losses only: leave "
            "it out; probe= takes statistics on a layer."
        )
