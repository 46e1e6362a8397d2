"""A page a method, made from the registry and the docstrings."""

from __future__ import annotations

import inspect
from pathlib import Path

from equipoise.objectives import GeometricMean
from equipoise.registry import METHODS, MethodSpec
from equipoise.search_space import Range

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


def write_pages(folder: Path) -> None:
    """Writes the pages, and an index, as far as they have changed."""
    folder.mkdir(exist_ok=True)
    pages = {f"{name}.md": page(name, spec) for name, spec in METHODS.items()} | {"index.md": index()}
    for old in folder.glob("*.md"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        place = folder / name
        if not place.exists() or place.read_text(encoding="utf-8") != text:
            place.write_text(text, encoding="utf-8")


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
        f"| `{key}` | {default(value)} | {space(spec, key)} |\n" for key, value in spec.hyperparameters.items()
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
    lines += ["```python", f'method = eq.make_method("{name}", model, tasks, lr=1e-3)', "```", ""]
    if tuned:
        lines += ["| hyperparameter | default | tuned within |", "|---|---|---|", tuned]
    parts = [part for part in (shown, spec.aggregator) if inspect.isclass(part)]
    for part in dict.fromkeys(parts):
        lines += ["```{eval-rst}", f".. autoclass:: {part.__module__}.{part.__name__}", "   :no-index:", "```", ""]
    if "geometric mean" in spec.description:
        lines += ["Its weights go into the weighted geometric mean:", ""]
        module = f"{GeometricMean.__module__}.{GeometricMean.__name__}"
        lines += ["```{eval-rst}", f".. autoclass:: {module}", "   :no-index:", "```", ""]
    return "\n".join(lines)


def shown_class(name: str, spec: MethodSpec) -> object:
    """The class whose docstring tells the formula."""
    return spec.takes if inspect.isclass(spec.takes) else spec.takes.__annotations__.get("return")


def promises(spec: MethodSpec) -> list[str]:
    """What the method's aggregator promises, in words."""
    return [words for name, words in PROPERTIES.items() if getattr(spec.takes, name, False)]


def default(value: object) -> str:
    """A default as it stands in a table."""
    return "" if value is inspect.Parameter.empty else f"`{value!r}`"


def space(spec: MethodSpec, key: str) -> str:
    """Where a hyperparameter is looked for when it is tuned."""
    found = spec.search_space.get(key)
    if found is None:
        return ""
    if isinstance(found, Range):
        return f"{found.low:g} to {found.high:g}{', by its logarithm' if found.log else ''}"
    return ", ".join(f"`{value!r}`" for value in found.values)
