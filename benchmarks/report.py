"""The benchmark's tables and picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from rich.console import Console
from rich.markdown import Markdown

from equipoise.methods import METHODS

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator

GRAMIAN_LIMITS = {"pcgrad": 2, "cagrad": 2, "mgda": 2, "imtl-g": 2, "nash-mtl": 10}
"""Target for the weights from a 40×40 Gramian, in milliseconds."""

SHOWN = {
    "floor": (None, "--", "black"),
    "equipoise ema": ("^", "-", "#0072b2"),
    "equipoise imtl-g": ("o", "-", "#d55e00"),
    "equipoise pcgrad": ("s", "-", "#009e73"),
    "equipoise mao": ("D", "-", "#cc79a7"),
    "TorchJD imtl-g, one by one": ("o", ":", "#d55e00"),
    "TorchJD imtl-g, vmap": ("v", ":", "#d55e00"),
    "LibMTL pcgrad": ("s", ":", "#009e73"),
}
"""Lines of the picture: marker, line style, colour; a colour a method, solid for ours."""

LOSS_BASED = [f"equipoise {name}" for name, spec in METHODS.items() if spec.passes == "1"]


def write_report(results: Mapping[str, Any], folder: Path) -> None:
    """Prints the tables and writes results.json, results.md and cost.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    text = "\n\n".join(_sections(results)) + "\n"
    (folder / "results.md").write_text(text)
    for device, measured in results["devices"].items():
        _picture(measured["steps"], folder / ("cost.png" if device == "cpu" else f"cost-{device}.png"))
    Console().print(Markdown(text))
    Console().print(f"Written to {folder}/")


def _sections(results: Mapping[str, Any]) -> Iterable[str]:
    yield "# Benchmarks\n\n" + ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    yield "## Weights from a Gramian, milliseconds on the CPU\n\n" + _gramian_table(results["gramian"])
    for device, measured in results["devices"].items():
        where = f"{device.upper()} ({measured['device']})"
        targets = _targets(measured) + (_gramian_targets(results["gramian"]) if device == "cpu" else [])
        yield f"## {where}: targets\n\n" + _table(["what", "target", "measured", ""], targets)
        for workload, rows in measured["steps"].items():
            yield f"## {where}: {workload}\n\n" + _table(
                ["", "ms", "× EW", "quartiles", "× floor", "memory × EW", "copies of the trunk over EW"],
                [_step_row(row) for row in rows],
            )
        yield f"## {where}: optimizer steps, ResNet-18's trunk\n\n" + _table(
            ["", "K", "ms", "× a fused AdamW step", "× K of them"],
            [
                [row["name"], row["K"], f"{row['adamw']['milliseconds']:.1f}", f"{row['adamw']['median']:.2f}",
                 f"{row['k_adamw']['median']:.2f}"]
                for row in measured["optimizer"]
            ],
        )  # fmt: skip
        yield f"## {where}: a whole training step on ResNet-18, memory in copies of the parameters\n\n" + _table(
            ["", "K", "ms", "× EW", "a step holds, over what stays", "moments that stay"],
            [
                [row["name"], row["K"], f"{row['ew']['milliseconds']:.1f}", f"{row['ew']['median']:.2f}",
                 f"{row['step']:.2f}", f"{row['moments']:.1f}"]
                for row in measured["training"]
            ],
        )  # fmt: skip


def _step_row(row: Mapping[str, Any]) -> list[str]:
    if "error" in row:
        return [row["name"], row["error"].splitlines()[0][:60], "", "", "", "", ""]
    ew = row["ew"]
    return [
        row["name"],
        f"{ew['milliseconds']:.2f}",
        f"{ew['median']:.2f}",
        f"{ew['low']:.2f}–{ew['high']:.2f}",
        f"{row['floor']:.2f}",
        f"{row['memory_over_ew']:.2f}",
        f"{row['copies_over_ew']:.1f}",
    ]


def _gramian_table(rows: Sequence[Mapping[str, Any]]) -> str:
    counts = sorted({row["K"] for row in rows})
    names = list(dict.fromkeys(row["name"] for row in rows))
    times = {(row["name"], row["K"]): row["milliseconds"] for row in rows}
    return _table(
        ["", *(f"K={count}" for count in counts)],
        [[name, *(f"{times[name, count]:.2f}" for count in counts)] for name in names],
    )


def _target(what: str, limit: float, value: float | None, unit: str = "×", at_least: bool = False) -> list[str]:
    """A row: what was asked for, what was measured, and whether it is met; None: the alternative failed."""
    target = f"{'≥' if at_least else '≤'} {limit:g} {unit}"
    if value is None:
        return [what, target, "", "failed"]
    met = value >= limit if at_least else value <= limit
    return [what, target, f"{value:.2f} {unit}", "met" if met else f"missed by {abs(value / limit - 1):.1%}"]


def _targets(measured: Mapping[str, Any]) -> list[list[str]]:
    """Each target of the project with what was measured and whether it is met."""
    rows: list[list[str]] = []
    for workload, tasks in (("resnet18, K=3", 3), ("resnet18, K=26", 26)):
        if workload in measured["steps"]:
            rows += _step_targets(workload, tasks, measured["steps"][workload])
    memory = {(row["name"], row["K"]): row["step"] for row in measured["training"]}
    for row in measured["optimizer"]:
        if row["name"] == "equipoise MAO":
            rows.append(_target(f"MAO's step over K fused AdamW steps, K={row['K']}", 1.1, row["k_adamw"]["median"]))
    for (name, tasks), held in memory.items():
        if name == "MAO, streaming":
            over = held - memory["equal weights, AdamW", tasks]
            rows.append(
                _target(f"streaming MAO over equal weights, beside its 2K moments, K={tasks}", 2, over, "copies")
            )
    return rows


def _step_targets(workload: str, tasks: int, measured: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    found = {row["name"]: row for row in measured if "error" not in row}
    tried = [row["name"] for row in measured]
    rows: list[list[str]] = []
    loss_based = [name for name in LOSS_BASED if name in found]
    apart = [name for name in loss_based if name == "equipoise famo"]  # its second forward pass is its definition
    alike = sorted((name for name in loss_based if name not in apart), key=lambda name: found[name]["ew"]["median"])
    if tasks == 3 and alike:
        middle, worst = alike[len(alike) // 2], alike[-1]
        what = f"of {len(alike)} loss-based methods over EW, {workload}"
        rows.append(_target(f"median ({middle}) {what}", 1.02, found[middle]["ew"]["median"]))
        rows.append(_target(f"slowest ({worst}) {what}", 1.02, found[worst]["ew"]["median"]))
    rows += [
        _target(f"{name}, with its second forward pass, over EW", 1.02, found[name]["ew"]["median"]) for name in apart
    ]
    rows.append(
        _target(f"task gradients over the floor, {workload}", 1.10, found.get("task gradients", {}).get("floor"))
    )
    for name in GRAMIAN_LIMITS:
        if f"equipoise {name}" not in tried or tasks != 26:
            continue
        own = found.get(f"equipoise {name}")
        rows.append(_target(f"{name}, whole step over the floor, {workload}", 1.15, own and own["floor"]))
        for library in ("TorchJD", "LibMTL"):
            peers = [row for peer, row in found.items() if peer.startswith(f"{library} {name}")]
            if peers and own:
                gain = min(row["floor"] for row in peers) / own["floor"]
                rows.append(_target(f"{name}, times faster than {library}, {workload}", 1.5, gain, at_least=True))
        held = own and own["copies_over_ew"]
        rows.append(_target(f"{name}, copies of the trunk over EW's memory, {workload}", tasks + 1, held, "copies"))
    return rows


def _gramian_targets(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    own = {row["name"].split()[1]: row for row in rows if row["name"].startswith("equipoise") and row["K"] == 40}
    return [
        _target(f"{name}: weights from a 40×40 Gramian", limit, own[name]["milliseconds"], "ms")
        for name, limit in GRAMIAN_LIMITS.items()
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _picture(steps: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Cost against K for the alternatives that every K has, a panel a model."""
    models: dict[str, dict[int, dict[str, float]]] = {}
    for workload, rows in steps.items():
        model, tasks = workload.split(", K=")
        found = {row["name"]: row["ew"]["median"] for row in rows if "error" not in row}
        models.setdefault(model, {})[int(tasks)] = found
    figure, axes = plt.subplots(1, len(models), figsize=(4 * len(models), 4), squeeze=False, layout="constrained")
    for axis, (model, by_tasks) in zip(axes[0], models.items(), strict=True):
        for name, (marker, line, color) in SHOWN.items():
            points = [(tasks, found[name]) for tasks, found in sorted(by_tasks.items()) if name in found]
            if points:
                axis.loglog(*zip(*points, strict=True), marker=marker, linestyle=line, color=color, label=name)
        axis.set(title=model, xlabel="tasks K")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter("{x:g}")
            side.set_minor_locator(NullLocator())
        axis.set_xticks(sorted(by_tasks))
        axis.set_yticks([ratio for ratio in (1, 2, 5, 10, 20, 50, 100) if ratio < axis.get_ylim()[1]])
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("time of a step, equal weights = 1")
    handles = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
