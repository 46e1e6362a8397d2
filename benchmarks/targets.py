"""The project's targets: what was asked for, what stood before, what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from measure import relative
from plans import GPU_MODELS, GPU_TASKS, LOSS_BASED, ON_GPU

Row = Mapping[str, Any]
Tables = Mapping[str, Sequence[Row]]
"""The parts that were measured on a device, by name."""

GRAMIAN_LIMITS = {"pcgrad": 2, "cagrad": 2, "mgda": 2, "imtl-g": 2, "nash-mtl": 10}
"""For the weights from a 40×40 Gramian, in milliseconds."""

ALIKE = [f"equipoise {name}" for name in LOSS_BASED if name != "famo"]
"""What makes one pass; FAMO's second forward pass is its definition."""


@dataclass(frozen=True)
class Target:
    """One row of the table.

    Attributes:
        what: what is measured.
        limit: what was asked for.
        value: what was measured; None: it failed, or is missing.
        unit: of both.
        at_least: the limit is the least; else the most.
        before: what stood before.
    """

    what: str
    limit: float
    value: float | None
    unit: str = "×"
    at_least: bool = False
    before: str = ""

    def cells(self) -> list[str]:
        """As it stands in the table."""
        limit = f"{'≥' if self.at_least else '≤'} {self.limit:g} {self.unit}".rstrip()
        if self.value is None:
            return [self.what, limit, self.before, "", "failed"]
        met = self.value >= self.limit if self.at_least else self.value <= self.limit
        missed = f"missed by {abs(self.value / self.limit - 1):.0%}" if self.limit else "missed"
        shown = f"{self.value:.0e}" if 0 < abs(self.value) < 0.01 else f"{self.value:.2f}"
        return [self.what, limit, self.before, f"{shown} {self.unit}".rstrip(), "met" if met else missed]


def cpu_targets(tables: Tables) -> list[Target]:
    """Those that are measured on a CPU, as far as their parts are there."""
    found = [*_wide_mlp(tables), *_small_resnet(tables), *_convolutions(tables), *_mlp(tables, 1.25)]
    return [*found, *_resnet(tables), *_exact(tables)]


def gpu_targets(tables: Tables) -> list[Target]:
    """Those that are measured on a GPU, as far as their parts are there."""
    cells = gpu_cells(tables)
    found: list[Target] = []
    if cells:
        slowest = min(cells, key=lambda cell: cells[cell])
        what = f"times as fast as TorchJD's quicker way, of {len(cells)} cells"
        found = [
            Target(f"slowest ({slowest}), {what}", 1, cells[slowest], at_least=True),
            Target(f"median, {what}", 1.3, statistics.median(cells.values()), at_least=True),
        ]
    for model in GPU_MODELS:
        rows = _rows(tables, f"{model}, K=26")
        ratios = {name: _over_better_floor(rows, f"equipoise {name}") for name in ON_GPU}
        known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
        if known:
            worst = max(known, key=lambda name: known[name])
            found.append(Target(f"slowest ({worst}) over the better floor, {model}, K=26", 1.25, known[worst]))
    found += _mlp(tables, 1.10)
    for row in tables.get("optimizer steps", ()):
        if row["name"] == "equipoise MAO":
            what = f"MAO's step over K fused AdamW steps, K={row['K']}"
            found.append(Target(what, 0.8, row["k_adamw"]["median"], before="1.3 to 2.5 ×"))
    return [*found, *_exact(tables)]


def gpu_cells(tables: Tables) -> dict[str, float]:
    """Returns for every method, model and number of tasks how many times as fast as TorchJD's quicker way it is."""
    cells: dict[str, float] = {}
    for model in GPU_MODELS:
        for tasks in GPU_TASKS:
            rows = _rows(tables, f"{model}, K={tasks}")
            for name in ON_GPU:
                peer = "TorchJD task gradients" if name == "mao" else f"TorchJD {name}"
                gain = _gain(rows, f"equipoise {name}", [f"{peer}, one by one", f"{peer}, vmap"])
                if gain is not None:
                    cells[f"{name}, {model}, K={tasks}"] = gain
    return cells


def gramian_targets(rows: Iterable[Row]) -> list[Target]:
    """Those on the weights from a Gramian."""
    own = {row["name"].split()[1]: row for row in rows if row["name"].startswith("equipoise") and row["K"] == 40}
    what = "weights from a 40×40 Gramian"
    return [
        Target(f"{name}: {what}", limit, own[name]["milliseconds"], "ms")
        for name, limit in GRAMIAN_LIMITS.items()
        if name in own
    ]


def _rows(tables: Tables, part: str) -> dict[str, Row]:
    return {row["name"]: row for row in tables.get(part, ()) if "error" not in row}


def _ratio(rows: Mapping[str, Row], name: str, other: str) -> float | None:
    """Returns the median over rounds of one step's time by another's."""
    if name not in rows or other not in rows:
        return None
    return relative(rows[name]["seconds"], rows[other]["seconds"]).median


def _gain(rows: Mapping[str, Row], name: str, peers: Sequence[str]) -> float | None:
    """Returns how many times as fast as the quickest of its peers a step is."""
    ratios = [ratio for peer in peers if (ratio := _ratio(rows, peer, name)) is not None]
    return min(ratios, default=None)


def _over_better_floor(rows: Mapping[str, Row], name: str) -> float | None:
    ratios = [ratio for base in ("floor", "floor, batched") if (ratio := _ratio(rows, name, base)) is not None]
    return max(ratios, default=None)


def _wide_mlp(tables: Tables) -> list[Target]:
    """What layers are for, which are chosen here."""
    part = "mlp 8×512, K=26"
    rows, own = _rows(tables, part), "equipoise imtl-g"
    if part not in tables:
        return []
    autojac = [f"TorchJD imtl-g, {way}" for way in ("one by one", "vmap")]
    copies, times = rows.get(own, {}).get("copies"), "imtl-g, times as fast as TorchJD's"
    return [
        Target(f"imtl-g, copies of the trunk held, {part}", 6, copies, "", before="29"),
        Target(f"{times} autojac, {part}", 2, _gain(rows, own, autojac), at_least=True, before="1.5 ×"),
        Target(f"{times} autogram, {part}", 1.3, _gain(rows, own, ["TorchJD imtl-g, autogram"]), at_least=True,
               before="0.9 ×"),
    ]  # fmt: skip


def _small_resnet(tables: Tables) -> list[Target]:
    part = "resnet18, 8 images, K=26"
    if part not in tables:
        return []
    over = _ratio(_rows(tables, part), "equipoise imtl-g", "floor")
    return [Target(f"imtl-g over the floor, {part}", 1.3, over, before="1.69 ×")]


def _convolutions(tables: Tables) -> list[Target]:
    part = "convolutions, K=26"
    rows, own, plain = _rows(tables, part), "equipoise imtl-g", "equipoise imtl-g, one by one"
    if part not in tables:
        return []
    held = rows[own]["copies"] / rows[plain]["copies"] if own in rows and plain in rows else None
    return [
        Target(f"imtl-g, memory over that of rows one by one, {part}", 1, held),
        Target(f"imtl-g, time over that of rows one by one, {part}", 1, _ratio(rows, own, plain)),
    ]


def _mlp(tables: Tables, limit: float) -> list[Target]:
    """What a step costs around its operators, which shows on the small MLP."""
    found = []
    for part in ("mlp, K=3", "mlp, K=40"):
        rows = _rows(tables, part)
        base = rows.get("EW, among those of one pass")
        alike = [name for name in ALIKE if name in rows]
        if part not in tables:
            continue
        if base is not None and alike:
            ema = rows.get("equipoise ema", {}).get("ew", {}).get("median")
            found.append(Target(f"ema over EW, {part}", limit, ema, before="1.8 ×" if limit == 1.25 else "1.4 ×"))
            slowest = max(alike, key=lambda name: rows[name]["ew"]["median"])
            what = f"slowest ({slowest.split()[1]}) of {len(alike)} loss-based methods over EW, {part}"
            found.append(Target(what, limit, rows[slowest]["ew"]["median"]))
            most = max(alike, key=lambda name: rows[name]["launches"])
            what = f"most launches ({most.split()[1]}) of a loss-based method beyond EW's, {part}"
            found.append(Target(what, 12, rows[most]["launches"] - base["launches"], ""))
        if limit == 1.25:  # on a GPU it is one of the cells
            peers = [f"TorchJD imtl-g, {way}" for way in ("one by one", "vmap")]
            gain = _gain(rows, "equipoise imtl-g", peers)
            found.append(Target(f"imtl-g, times as fast as TorchJD's quicker way, {part}", 1, gain, at_least=True))
    return found


def _resnet(tables: Tables) -> list[Target]:
    """ResNet-18 with 32 images: nothing is to be slower than it stood before."""
    found = []
    part = "resnet18, K=3"
    rows = _rows(tables, part)
    alike = sorted((name for name in ALIKE if name in rows), key=lambda name: rows[name]["ew"]["median"])
    if alike:
        middle, slowest = alike[len(alike) // 2], alike[-1]
        what = f"of {len(alike)} loss-based methods over EW, {part}"
        found += [
            Target(f"median ({middle.split()[1]}) {what}", 1.02, rows[middle]["ew"]["median"], before="1.01 ×"),
            Target(f"slowest ({slowest.split()[1]}) {what}", 1.02, rows[slowest]["ew"]["median"], before="1.05 ×"),
        ]
    if "equipoise famo" in rows:
        what = f"famo, with its second forward pass, over EW, {part}"
        found.append(Target(what, 1.02, rows["equipoise famo"]["ew"]["median"], before="1.35 ×"))
    for part, before in (("resnet18, K=3", "1.21 ×"), ("resnet18, K=26", "1.03 ×")):
        over = _rows(tables, part).get("task gradients", {}).get("floor")
        if over is not None:
            found.append(Target(f"task gradients over the floor, {part}", 1.1, over, before=before))
    rows = _rows(tables, part)
    stood = {"pcgrad": ("1.25 ×", "1.24 ×"), "imtl-g": ("1.24 ×", "1.38 ×"), "nash-mtl": ("1.28 ×", "")}
    for name, (over_floor, faster) in stood.items():
        own = f"equipoise {name}"
        if own not in rows:
            continue
        found.append(Target(f"{name} over the floor, {part}", 1.15, rows[own]["floor"], before=over_floor))
        gain = _gain(rows, own, [f"TorchJD {name}, one by one"])
        if gain is not None:
            what = f"{name}, times as fast as TorchJD's, {part}"
            found.append(Target(what, 1.5, gain, at_least=True, before=faster))
        gain = _gain(rows, own, [f"LibMTL {name}"])
        if gain is not None:
            what = f"{name}, times as fast as LibMTL's, {part}"
            found.append(Target(what, 1.5, gain, at_least=True, before="4.79 ×"))
        held = rows[own]["copies"] - rows["EW"]["copies"]
        found.append(Target(f"{name}, copies of the trunk beyond EW's, {part}", 27, held, "", before="25"))
    for row in tables.get("optimizer steps", ()):
        if row["name"] == "equipoise MAO":
            stands = {3: "1.05 ×", 26: "1.14 ×"}.get(row["K"], "")
            what = f"MAO's step over K fused AdamW steps, K={row['K']}"
            found.append(Target(what, 1.1, row["k_adamw"]["median"], before=stands))
    for part in tables:
        if part.startswith("training steps"):
            held_by = {row["name"]: row["step"] for row in tables[part]}
            over = held_by["MAO, streaming"] - held_by["equal weights, AdamW"]
            what = f"streaming MAO, copies over equal weights beside its 2K moments, {part.split(', ')[1]}"
            found.append(Target(what, 2, over, "", before="1.7"))
    return found


def _exact(tables: Tables) -> list[Target]:
    limits = {"float64": 1e-10, "float32": 1e-5}
    worst: dict[str, Row] = {}
    for row in tables.get("exactness", ()):
        if row["dtype"] not in worst or row["apart"] > worst[row["dtype"]]["apart"]:
            worst[row["dtype"]] = row
    return [
        Target(f"batches and layers against rows, furthest ({row['way']}, {row['name']}), {dtype}", limits[dtype],
               row["apart"], "")
        for dtype, row in worst.items()
    ]  # fmt: skip
