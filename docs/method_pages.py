"""A page a method, made from the registry and the docstrings."""

from __future__ import annotations

import inspect
from pathlib import Path

import pandas as pd
from pages import write_changed

import equipoise as eq
from equipoise.monitor.diagnosis.regimes import OPPOSED, SIZE, SPEED
from equipoise.monitor.diagnosis.rules import BY_SCALE, RULES
from equipoise.objectives import GeometricMean
from equipoise.registry import METHODS, MethodSpec

FAMILIES = {
    "objective": "Objectives: the losses decide, one backward pass",
    "aggregator": "Aggregators: the tasks' gradients decide, a backward pass a task",
    "optimizer": "Optimizers: moments a task, a backward pass a task",
}
PROPERTIES = {
    "non_conflicting": "never against a task",
    "permutation_invariant": "the order of tasks does not matter",
    "homogeneous": "all gradients times a number give the result times it",
    "scale_invariant": "no task's scale matters",
}


WORDS = {
    SIZE: "gradients of unlike size after the optimizer",
    BY_SCALE: "gradients of unlike size, as their losses are",
    OPPOSED: "opposed directions",
    SPEED: "losses of unlike speed",
}
LEADERBOARD = Path(__file__).parent / "leaderboard"


def write_pages(folder: Path) -> None:
    """Writes the pages, and an index, as far as they have changed."""
    pages = {f"{name}.md": page(name, spec) for name, spec in METHODS.items()} | {"index.md": index()}
    write_changed(folder, pages)


def index() -> str:
    """The methods by family, and what each promises."""
    lines = [
        "# Methods",
        "",
        "Each by name, for `eq.make_method(name, …)` and `equipoise compare … --methods name`.",
        "K is the number of tasks.",
        "",
    ]
    for family, title in FAMILIES.items():
        members = {name: spec for name, spec in METHODS.items() if spec.family == family}
        lines += [f"## {title}", "", "| method | what it does | promises | source |", "|---|---|---|---|"]
        lines += [
            f"| [`{name}`]({name}.md) | {spec.description} | {'; '.join(promises(spec))} | {spec.source} |"
            for name, spec in members.items()
        ]
        lines += [""]
    return "\n".join([*lines, "```{toctree}", ":hidden:", "", *METHODS, "```", ""])


def page(name: str, spec: MethodSpec) -> str:
    """A method's page."""
    shown = shown_class(name, spec)
    tuned = "".join(
        f"| `{key}` | {default(value)} | {spec.search_space.get(key, '')} |\n"
        for key, value in spec.hyperparameters.items()
    )
    cost = (
        "One backward pass a step, as without balancing."
        if spec.passes == "1"
        else "One backward pass a task through what the tasks share (K)."
    )
    lines = [f"# `{name}`", "", f"{spec.description[0].upper()}{spec.description[1:]}. {spec.source}.", ""]
    lines += [f"**Cost.** {cost}", ""]
    if promises(spec):
        lines += [f"**It promises**, and is tested for: {'; '.join(promises(spec))}.", ""]
    if spec.needs_potentials:
        lines += ["It needs `potentials`: every task's single-task accuracy.", ""]
    lines += when(name)
    lines += ["```python", f'method = eq.make_method("{name}", model, tasks, lr=1e-3)', "```", ""]
    lines += [
        "`model` is your network, `tasks` the names of its losses: [the quick start](../quick-start.md#by-name).",
        "",
    ]
    if tuned:
        lines += ["| hyperparameter | default | tuned within |", "|---|---|---|", tuned]
    parts = [part for part in (shown, spec.aggregator) if inspect.isclass(part)]
    for part in dict.fromkeys(parts):
        lines += ["```{eval-rst}", f".. autoclass:: {public(part)}", "   :no-index:", "```", ""]
    if "geometric mean" in spec.description:
        lines += ["Its weights go into the weighted geometric mean:", ""]
        lines += ["```{eval-rst}", f".. autoclass:: {public(GeometricMean)}", "   :no-index:", "```", ""]
    return "\n".join([*lines, *results(name)])


def when(name: str) -> list[str]:
    """What `equipoise diagnose` recommends the method for."""
    reasons = [
        f"{' and '.join(WORDS[regime] for regime in sorted(rule.when)) or 'nothing to balance'}: {rule.methods[name]}"
        for rule in RULES
        if name in rule.methods
    ]
    if not reasons:
        return []
    return [
        "**When.** [Diagnosing](../diagnose.md) recommends it where it finds",
        "",
        *(f"- {reason}" for reason in reasons),
        "",
    ]


def results(name: str) -> list[str]:
    """The method's rows of the leaderboard."""
    found = []
    for place in sorted(LEADERBOARD.glob("*.csv")):
        table = pd.read_csv(place).set_index("method")
        delta = next(column for column in table if column.startswith("Δm") and column.endswith(" mean"))
        if name in table.index:
            row, order = table.loc[name], table[delta].drop("single-task", errors="ignore")
            place_of = int((order > row[delta]).sum()) + 1
            found.append(f"| {place.stem} | {row[delta]:+.1f} | {place_of} of {order.count()} | {row['time ×']:.2f} |")
    if not found:
        return []
    head = ["| problem | Δm % | place | time × |", "|---|---:|---:|---:|"]
    return ["**On the [leaderboard](../leaderboard.md):**", "", *head, *found, ""]


def public(part: type) -> str:
    """Where a class is found: `equipoise.CAGrad`, where it is among the public names."""
    return f"{'equipoise' if getattr(eq, part.__name__, None) is part else part.__module__}.{part.__name__}"


def shown_class(name: str, spec: MethodSpec) -> object:
    """The class whose docstring tells the formula."""
    return spec.takes if inspect.isclass(spec.takes) else spec.takes.__annotations__.get("return")


def promises(spec: MethodSpec) -> list[str]:
    """What the method's aggregator promises, in words."""
    if spec.aggregator is None:
        return []
    aggregator = spec.aggregator()
    return [words for name, words in PROPERTIES.items() if getattr(aggregator, name, False)]


def default(value: object) -> str:
    """A default as it stands in a table."""
    return "" if value is inspect.Parameter.empty else f"`{value!r}`"
