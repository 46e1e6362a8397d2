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

GRAMIAN_LIMITS = {"pcgrad": 2, "cagrad": 2, "mgda": 2, "imtl-g": 2, "nash-mtl": 10}
"""Target for the weights from a 40×40 Gramian, in milliseconds."""

LOSS_BASED = [f"equipoise {name}" for name, spec in METHODS.items() if spec.passes == "1"]


def write_report(results: Mapping[str, Any], folder: Path) -> None:
    """Prints the tables and writes results.json, results.md and cost.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    text = "\n\n".join(_sections(results)) + "\n"
    (folder / "results.md").write_text(text)
    _picture(results["steps"], folder / "cost.png")
    Console().print(Markdown(text))
    Console().print(f"Written to {folder}/")


def _sections(results: Mapping[str, Any]) -> Iterable[str]:
    machine = results["machine"]
    yield "# Benchmarks\n\n" + ", ".join(f"{key} {value}" for key, value in machine.items())
    yield "## Targets\n\n" + _table(["what", "target", "measured", ""], _targets(results))
    for workload, rows in results["steps"].items():
        yield f"## {workload}\n\n" + _table(
            ["", "ms", "× EW", "quartiles", "× floor", "memory × EW", "copies of the trunk over EW"],
            [_step_row(row) for row in rows],
        )
    yield "## Weights from a Gramian, milliseconds on the CPU\n\n" + _gramian_table(results["gramian"])
    yield "## Optimizer steps, ResNet-18's trunk\n\n" + _table(
        ["", "K", "ms", "× a fused AdamW step", "× K of them"],
        [
            [row["name"], row["K"], f"{row['adamw']['milliseconds']:.1f}", f"{row['adamw']['median']:.2f}",
             f"{row['k_adamw']['median']:.2f}"]
            for row in results["optimizer"]
        ],
    )  # fmt: skip
    yield "## Memory of a training step on ResNet-18, in copies of the parameters\n\n" + _table(
        ["", "K", "a step holds, over what stays", "moments that stay"],
        [[row["name"], row["K"], f"{row['step']:.2f}", f"{row['moments']:.1f}"] for row in results["memory"]],
    )


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


def _targets(results: Mapping[str, Any]) -> list[list[str]]:
    """Each target of the project with what was measured and whether it is met."""
    rows: list[list[str]] = []

    def add(what: str, limit: float, value: float, unit: str = "×", at_least: bool = False) -> None:
        met = value >= limit if at_least else value <= limit
        verdict = "met" if met else f"missed by {abs(value / limit - 1):.0%}"
        rows.append([what, f"{'≥' if at_least else '≤'} {limit:g} {unit}", f"{value:.2f} {unit}", verdict])

    for workload, measured in results["steps"].items():
        found = {row["name"]: row for row in measured if "error" not in row}
        if workload.startswith("resnet18"):
            loss_based = [found[name] for name in LOSS_BASED if name in found]
            if loss_based and workload.endswith("K=3"):
                worst = max(loss_based, key=lambda row: row["ew"]["median"])
                add(f"loss-based methods over EW, worst of {len(loss_based)} ({worst['name']}), {workload}", 1.02,
                    worst["ew"]["median"])  # fmt: skip
            if workload.endswith(("K=3", "K=26")):
                add(f"task gradients over the floor, {workload}", 1.10, found["task gradients"]["floor"])
        if workload == "resnet18, K=26":
            for name in GRAMIAN_LIMITS:
                own = found.get(f"equipoise {name}")
                if own is None:
                    continue
                add(f"{name}, whole step over the floor, {workload}", 1.15, own["floor"])
                peers = [row for peer, row in found.items() if peer.startswith((f"TorchJD {name}", f"LibMTL {name}"))]
                if peers:
                    best = min(peers, key=lambda row: row["ew"]["median"])
                    add(f"{name}, times faster than the fastest peer ({best['name']}), {workload}", 1.5,
                        best["ew"]["median"] / own["ew"]["median"], at_least=True)  # fmt: skip
                tasks = int(workload.rpartition("=")[2])
                add(
                    f"{name}, copies of the trunk over EW's memory, {workload}",
                    tasks + 1,
                    own["copies_over_ew"],
                    "copies",
                )
    for row in results["gramian"]:
        library, name = row["name"].split()
        if library == "equipoise" and row["K"] == 40:
            add(f"{name}: weights from a 40×40 Gramian", GRAMIAN_LIMITS[name], row["milliseconds"], "ms")
    for row in results["optimizer"]:
        if row["name"] == "equipoise MAO":
            add(f"MAO's step over K fused AdamW steps, K={row['K']}", 1.1, row["k_adamw"]["median"])
    memory = {(row["name"], row["K"]): row for row in results["memory"]}
    for (name, tasks), row in memory.items():
        if name == "MAO, streaming":
            over = row["step"] - memory["equal weights, AdamW", tasks]["step"]
            add(f"streaming MAO over equal weights, beside its 2K moments, K={tasks}", 2, over, "copies")
    return rows


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
    figure, axes = plt.subplots(1, len(models), figsize=(5 * len(models), 4), squeeze=False, layout="constrained")
    shown = {
        "floor": "--",
        "equipoise ema": "^-",
        "equipoise imtl-g": "o-",
        "equipoise pcgrad": "s-",
        "equipoise mao": "D-",
        "TorchJD pcgrad, one by one": "s:",
        "TorchJD pcgrad, vmap": "v:",
        "LibMTL pcgrad": "P:",
    }
    for axis, (model, by_tasks) in zip(axes[0], models.items(), strict=True):
        for name, style in shown.items():
            points = [(tasks, found[name]) for tasks, found in sorted(by_tasks.items()) if name in found]
            if points:
                axis.loglog(*zip(*points, strict=True), style, label=name, color="black" if name == "floor" else None)
        axis.set(title=model, xlabel="tasks K", ylabel="time of a step, equal weights = 1")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
