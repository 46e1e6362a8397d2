"""The benchmark's tables and picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from rich.console import Console
from rich.markdown import Markdown
from targets import Row, cpu_targets, gpu_cells, gpu_targets, gramian_targets

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator

SHOWN = {
    "floor": (None, "--", "black"),
    "equipoise ema": ("^", "-", "#0072b2"),
    "equipoise imtl-g": ("o", "-", "#d55e00"),
    "equipoise pcgrad": ("s", "-", "#009e73"),
    "equipoise mao": ("D", "-", "#cc79a7"),
    "TorchJD imtl-g, one by one": ("o", ":", "#d55e00"),
    "TorchJD imtl-g, vmap": ("v", ":", "#d55e00"),
    "TorchJD imtl-g, autogram": ("P", ":", "#e69f00"),
    "LibMTL pcgrad": ("s", ":", "#009e73"),
}
"""Lines of the picture: marker, line style, colour; a colour a method, solid for ours."""


def write_tables(results: Mapping[str, Any], folder: Path) -> str:
    """Writes results.json, results.md and targets.md (for the README); returns the text of results.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    targets = "\n\n".join(_target_tables(results["measured"]))
    tables = "\n\n".join(_tables(results["measured"]))
    machine = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    minutes = sum(results["seconds"].values()) / 60
    text = f"# Benchmarks\n\n{machine}; {minutes:.1f} minutes\n\n{targets}\n\n{tables}\n"
    (folder / "targets.md").write_text(f"{machine}; {minutes:.1f} minutes.\n\n{targets}\n")
    (folder / "results.md").write_text(text)
    return text


def write_report(results: Mapping[str, Any], folder: Path) -> None:
    """Prints the tables and writes them and cost.png."""
    text = write_tables(results, folder)
    for device, measured in results["measured"].items():
        _picture(measured, folder / ("cost.png" if device == "cpu" else f"cost-{device}.png"))
    Console().print(Markdown(text))
    Console().print(f"Written to {folder}/")


def _target_tables(measured: Mapping[str, Any]) -> Iterable[str]:
    gramian = gramian_targets(measured.get("host", {}).get("weights from a Gramian", ()))
    found = {
        "CPU": [*cpu_targets(measured.get("cpu", {})), *gramian],
        "GPU": gpu_targets(measured.get("cuda", {})),
    }
    for where, targets in found.items():
        if targets:
            head = ["what", "target", "before", "measured", ""]
            yield f"### {where}: targets\n\n" + _table(head, [target.cells() for target in targets])
    cells = gpu_cells(measured.get("cuda", {}))
    if cells:
        yield "### GPU: times as fast as TorchJD's quicker way\n\n" + _table(
            ["method, model, number of tasks", "×"], [[cell, f"{gain:.2f}"] for cell, gain in cells.items()]
        )


def _tables(measured: Mapping[str, Mapping[str, Sequence[Row]]]) -> Iterable[str]:
    for device, parts in measured.items():
        where = "Host" if device == "host" else "GPU" if device == "cuda" else device.upper()
        for part, rows in parts.items():
            yield f"## {where}: {part}\n\n{_part_table(part, rows)}"


def _part_table(part: str, rows: Sequence[Row]) -> str:
    if part == "weights from a Gramian":
        return "Milliseconds on the CPU.\n\n" + _gramian_table(rows)
    if part == "optimizer steps":
        return "Of ResNet-18's trunk.\n\n" + _table(
            ["", "K", "ms", "× a fused AdamW step", "× K of them", "launches"],
            [
                [row["name"], row["K"], f"{row['adamw']['milliseconds']:.1f}", f"{row['adamw']['median']:.2f}",
                 f"{row['k_adamw']['median']:.2f}", row["launches"]]
                for row in rows
            ],
        )  # fmt: skip
    if part.startswith("training steps"):
        return "A whole step on ResNet-18, memory in copies of the parameters.\n\n" + _table(
            ["", "ms", "× EW", "a step holds, over what stays", "moments that stay"],
            [
                [row["name"], f"{row['ew']['milliseconds']:.1f}", f"{row['ew']['median']:.2f}", f"{row['step']:.2f}",
                 f"{row['moments']:.1f}"]
                for row in rows
            ],
        )  # fmt: skip
    if part == "exactness":
        return "How far IMTL-G's gradients are from those by rows, one by one.\n\n" + _table(
            ["", "way", "dtype", "largest relative difference"],
            [[row["name"], row["way"], row["dtype"], f"{row['apart']:.1e}"] for row in rows],
        )
    return _table(
        ["", "ms", "× EW", "quartiles", "× floor", "launches", "memory × EW", "copies of the trunk held"],
        [_step_row(row) for row in rows],
    )


def _step_row(row: Row) -> list[Any]:
    if "error" in row:
        return [row["name"], row["error"].splitlines()[0][:60], "", "", "", "", "", ""]
    ew = row["ew"]
    return [
        row["name"],
        f"{ew['milliseconds']:.2f}",
        f"{ew['median']:.2f}",
        f"{ew['low']:.2f}–{ew['high']:.2f}",
        "" if row["floor"] is None else f"{row['floor']:.2f}",
        row["launches"],
        f"{row['memory_over_ew']:.2f}",
        f"{row['copies']:.1f}",
    ]


def _gramian_table(rows: Sequence[Row]) -> str:
    counts = sorted({row["K"] for row in rows})
    names = list(dict.fromkeys(row["name"] for row in rows))
    times = {(row["name"], row["K"]): row["milliseconds"] for row in rows}
    return _table(
        ["", *(f"K={count}" for count in counts)],
        [[name, *(f"{times[name, count]:.2f}" for count in counts)] for name in names],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _picture(parts: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Cost against K of the models that were measured with more than one, a panel a model."""
    models: dict[str, dict[int, dict[str, float]]] = {}
    for part, rows in parts.items():
        if any("floor" in row for row in rows):
            model, tasks = part.split(", K=")
            found = {row["name"]: row["ew"]["median"] for row in rows if "error" not in row}
            models.setdefault(model, {})[int(tasks)] = found
    models = {model: by_tasks for model, by_tasks in models.items() if len(by_tasks) > 1}
    if not models:
        return
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
