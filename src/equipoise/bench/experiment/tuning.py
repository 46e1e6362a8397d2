"""How a row's configuration is chosen: pure functions of the scores that there are."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from scipy.stats import qmc

from equipoise.registry import BASE_OPTIMIZERS, DEFAULT_OPTIMIZER, MethodSpec
from equipoise.search_space import Choice, Range, SearchSpace

MIN_RATE, MAX_RATE = 1e-7, 1.0
"""How far a grid is extended."""

WEIGHT_DECAYS = Range(1e-5, 1e-1, log=True)
"""Where weight decay is searched: from what hardly matters at any usual rate to ten times AdamW's default."""

UNIFORM = Range(1e-3, 1 - 1e-3)
"""What a weight is drawn by: −log of it is exponentially distributed, so that weights are uniformly distributed on the
simplex; the largest is at most 7,000 times the smallest."""

WEIGHT = "weight of "
"""What stands before a task's name in the search space of weights."""

ROUNDS = 4
"""What is not drawn in advance is proposed in so many rounds, each from all results before it."""

DIGITS = 4
"""Significant digits of what is proposed: what differs by rounding between machines is the same number."""


@dataclass(frozen=True)
class Configuration:
    """What is chosen for a row.

    Attributes:
        lr: the learning rate.
        weight_decay: see `equipoise.make_method`.
        epochs: how long it trains.
        hyperparameters: the method's own; `weights` of fixed weights.
    """

    lr: float
    weight_decay: float
    epochs: int
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)


Score = Callable[[Configuration], "float | None"]
"""Returns a configuration's score, higher is better, −∞ if it diverged; None as long as it has not been run."""

Point = tuple[tuple[str, Any], ...]
"""A point of a search space: each name and its value, in the space's order."""


def search_grid(start: Configuration, grid: Sequence[float], score: Score) -> Configuration | None:
    """Follows the search for a learning rate as far as there are scores.

    The grid is extended by a decade beyond the best rate while that lies at an end; if none works, towards smaller
    ones. Of equally good rates one inside is taken before one at an end, and the smallest of those.

    Args:
        start: everything but the rate.
        grid: the rates to begin with.
        score: asked for every rate that is wanted.

    Returns:
        The best one; None as long as one of them has no score.
    """
    rates = sorted(grid)
    while True:
        found = {lr: score(replace(start, lr=lr)) for lr in rates}
        scores = {lr: value for lr, value in found.items() if value is not None}
        if len(scores) < len(found):
            return None
        best = max(rates, key=lambda lr: (scores[lr], lr not in (rates[0], rates[-1]), -lr))
        if scores[best] == -math.inf:
            best = rates[0]
        if best == rates[0] and decade(best, -1) >= MIN_RATE:
            rates.insert(0, decade(best, -1))
        elif best == rates[-1] and decade(best, 1) <= MAX_RATE and scores[best] > -math.inf:
            rates.append(decade(best, 1))
        else:
            return replace(start, lr=best)


def search_space(space: SearchSpace, start: Configuration, budget: int, score: Score) -> Configuration | None:
    """Follows a search with a budget as far as there are scores.

    The first configuration is `start`. With it the first half of the budget is drawn by a scrambled Sobol sequence;
    the rest are proposed by Optuna's tree-structured Parzen estimator, in rounds.

    Args:
        space: what is searched; `lr` and `weight_decay` may be in it.
        start: where the search begins, and what is not searched.
        budget: how many configurations.
        score: asked for every configuration that is wanted.

    Returns:
        The best one, of equals the first; None as long as one of them has no score.

    Source: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011, by `optuna`; the sequence by
    `scipy.stats.qmc`.
    """
    if not space:
        return start
    half = math.ceil(budget / 2)
    candidates = [(start, _nearest(space, start))]
    candidates += [(_at(start, point), point) for point in _drawn(tuple(space.items()), half - 1)]
    while True:
        found = [(configuration, point, score(configuration)) for configuration, point in candidates]
        scored = [(configuration, point, value) for configuration, point, value in found if value is not None]
        if len(scored) < len(found):
            return None
        left = budget - len(candidates)
        if left <= 0:
            return max(scored, key=lambda one: one[2])[0]
        count = min(left, math.ceil((budget - half) / ROUNDS))
        history = tuple((point, value) for _, point, value in scored if point is not None)
        candidates += [(_at(start, point), point) for point in _proposed(tuple(space.items()), history, count)]


def space_of(
    optimizer: str, spec: MethodSpec | None, tasks: Sequence[str], given: Mapping[str, Any], rates: bool
) -> SearchSpace:
    """Returns what is searched for a row.

    Args:
        optimizer: decides where learning rates are searched: a decade beyond its grid's ends.
        spec: declares the method's own hyperparameters, if there are any.
        tasks: whose weights are searched; none for a row that is not `fixed`.
        given: what is given by hand, and so not searched.
        rates: search the learning rate and what goes with it; else weights alone.
    """
    space: SearchSpace = {f"{WEIGHT}{task}": UNIFORM for task in tasks}
    if rates:
        grid = BASE_OPTIMIZERS[optimizer].grid
        space |= {"lr": Range(decade(min(grid), -1), decade(max(grid), 1), log=True), "weight_decay": WEIGHT_DECAYS}
        space |= {} if spec is None else spec.search_space
    return {name: values for name, values in space.items() if name not in given}


def defaults_of(spec: MethodSpec | None) -> dict[str, Any]:
    """Returns the defaults of what a method lets be searched, where it has any."""
    if spec is None:
        return {}
    defaults = {name: spec.hyperparameters.get(name, inspect.Parameter.empty) for name in spec.search_space}
    return {name: value for name, value in defaults.items() if value not in (inspect.Parameter.empty, None)}


def start_rate(optimizer: str, own: float) -> float:
    """Returns the learning rate of a row that is not tuned.

    That is the problem's `own`, which is meant for AdamW; for an optimizer whose rates are others, its grid's middle.
    """
    grid = BASE_OPTIMIZERS[optimizer].grid
    return own if grid == BASE_OPTIMIZERS[DEFAULT_OPTIMIZER].grid else grid[len(grid) // 2]


def decade(lr: float, direction: int) -> float:
    """Returns ten times as much or a tenth, as a person would write it: a rate is the same number every time."""
    return float(f"{lr * 10.0**direction:.12g}")


def _at(start: Configuration, point: Point) -> Configuration:
    """The configuration at a point, with the start's values for what is not searched."""
    values = dict(point)
    drawn = {name.removeprefix(WEIGHT): -math.log(values.pop(name)) for name in list(values) if name.startswith(WEIGHT)}
    lr, weight_decay = values.pop("lr", start.lr), values.pop("weight_decay", start.weight_decay)
    hyperparameters = {**start.hyperparameters, **values}
    if drawn:
        scale = len(drawn) / sum(drawn.values())
        hyperparameters["weights"] = {task: _rounded(scale * value) for task, value in drawn.items()}
    return replace(start, lr=lr, weight_decay=weight_decay, hyperparameters=hyperparameters)


def _nearest(space: SearchSpace, start: Configuration) -> Point | None:
    """The point of a space next to where its search begins; None if there is no such point."""
    values = {"lr": start.lr, "weight_decay": start.weight_decay, **start.hyperparameters}
    point = []
    for name, allowed in space.items():
        value = math.exp(-1) if name.startswith(WEIGHT) else values.get(name)
        if isinstance(allowed, Range) and isinstance(value, (int, float)):
            value = min(max(value, allowed.low), allowed.high)
        elif isinstance(allowed, Range) or value not in allowed.values:
            return None
        point.append((name, value))
    return tuple(point)


@lru_cache(maxsize=1024)
def _drawn(space: tuple[tuple[str, Range | Choice], ...], count: int) -> list[Point]:
    """Points of low discrepancy."""
    if count < 1:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer SciPy calls it `rng`
        sequence = qmc.Sobol(len(space), scramble=True, seed=0)
    cube = sequence.random_base2(math.ceil(math.log2(count)))[:count]
    return [tuple((name, _scaled(allowed, u)) for (name, allowed), u in zip(space, row, strict=True)) for row in cube]


def _scaled(allowed: Range | Choice, u: float) -> Any:
    """What stands at u, between 0 and 1, of all that is allowed."""
    if isinstance(allowed, Choice):
        return allowed.values[min(int(u * len(allowed.values)), len(allowed.values) - 1)]
    if allowed.log:
        return _rounded(allowed.low * (allowed.high / allowed.low) ** u)
    return _rounded(allowed.low + (allowed.high - allowed.low) * u)


@lru_cache(maxsize=1024)
def _proposed(
    space: tuple[tuple[str, Range | Choice], ...], history: tuple[tuple[Point, float], ...], count: int
) -> list[Point]:
    """Points that Optuna proposes after what has been seen; the same for the same history."""
    distributions: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(allowed.values)
        if isinstance(allowed, Choice)
        else FloatDistribution(allowed.low, allowed.high, log=allowed.log)
        for name, allowed in space
    }
    worst = min((value for _, value in history if value > -math.inf), default=0.0) - 1.0
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=1,
            multivariate=True,
            constant_liar=True,
            seed=len(history),
        )
        study = optuna.create_study(sampler=sampler, direction="maximize")
        for point, value in history:
            study.add_trial(
                optuna.create_trial(params=dict(point), distributions=distributions, value=max(value, worst))
            )
        asked = [study.ask(distributions).params for _ in range(count)]
    return [tuple((name, _kept(allowed, found[name])) for name, allowed in space) for found in asked]


def _kept(allowed: Range | Choice, value: Any) -> Any:
    return min(max(_rounded(value), allowed.low), allowed.high) if isinstance(allowed, Range) else value


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
