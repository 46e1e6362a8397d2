"""How far each task moves the shared layers: equal weights beside MAO, on `rooms` with MTAN.

    python benchmarks/contributions.py         # about 8 minutes on one CPU core

The setting of the MAO paper's Figure 4 on the embedded rooms: MTAN on ResNet-18 from scratch, batches of 4, Adam with a
learning rate of 1e-4 and a weight decay of 1e-4. Prints each task's mean contribution over the shared layers and how
far they are apart, writes contributions.json and contributions.md into benchmarks/results/, and draws
docs/images/rooms-contributions.png.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track

from equipoise.bench.experiment.batches import Batches
from equipoise.bench.experiment.learner import Learner
from equipoise.bench.experiment.trial import Trial
from equipoise.bench.problems import Problem, Splits, load_problem
from equipoise.monitor import BalanceMonitor, Recording

ROOT = Path(__file__).resolve().parent.parent
BATCH = 4
NAMES = {"ew": "equal weights", "mao": "MAO"}
STYLES = (("#0072B2", "-", "o"), ("#D55E00", "--", "s"), ("#009E73", ":", "^"))
"""Colour (Okabe and Ito's, which everybody can tell apart), dashes and marker of each task."""


def record(problem: Problem, data: Splits, method: str, steps: int, every: int) -> Recording:
    """Trains for some steps and returns what the monitor saw."""
    trial = Trial(
        method=method, seed=0, epochs=1, batch_size=BATCH, evaluation_batch_size=BATCH, lr=1e-4, weight_decay=1e-4
    )
    learner = Learner(problem, trial)
    monitor = BalanceMonitor(learner.method, learner.network, every=every)
    batches = Batches(problem, data.train, BATCH, trial.seed)
    endless = (batch for _ in cycle([None]) for batch in batches)
    for batch in track(islice(endless, steps), description=method, total=steps, transient=True):
        learner.step(batch)
    monitor.detach()
    return monitor.recording


def spreads(recording: Recording) -> list[float]:
    """Returns for every shared layer the largest task's mean contribution over the smallest one's."""
    layers = zip(*recording.by_layer("contribution").values(), strict=True)
    return [max(known) / min(known) for layer in layers if len(known := [value for value in layer if value]) > 1]


def table(recordings: dict[str, Recording]) -> str:
    """Returns the numbers as Markdown."""
    tasks = next(iter(recordings.values())).tasks
    head = [
        "method",
        *(f"{task}, share" for task in tasks),
        "largest / smallest",
        "same, median layer",
        "same, worst layer",
        "gradients: largest / smallest",
    ]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for method, recording in recordings.items():
        shares = recording.shares()
        layers = spreads(recording)
        gradients = [statistics.fmean(v for v in values if v) for values in recording.by_layer("gradient").values()]
        cells = [
            method,
            *(f"{100 * shares[task]:.1f} %" for task in tasks),
            f"{recording.imbalance():.2f}",
            f"{statistics.median(layers):.2f}",
            f"{max(layers):.2f}",
            f"{max(gradients) / min(gradients):.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(methods: dict[str, Any]) -> Figure:
    """Draws the mean gradient (left) and contribution (right) of every task by shared layer, a row per method."""
    figure = Figure(figsize=(11, 2.9 * len(methods)), layout="constrained")
    grid = figure.subplots(len(methods), 2, squeeze=False, sharex=True)
    for (gradients, contributions), (method, numbers) in zip(grid, methods.items(), strict=True):
        for axes, quantity in ((gradients, "gradient"), (contributions, "contribution")):
            for (task, values), (colour, dashes, marker) in zip(numbers[quantity].items(), STYLES, strict=True):
                known = [math.nan if value is None else value for value in values]
                layers = range(1, len(known) + 1)
                axes.plot(layers, known, dashes, label=task, color=colour, marker=marker, markersize=3)
            axes.grid(linewidth=0.4)
        name = NAMES.get(method, method)
        gradients.set_title(f"{name}: norm of the gradient", fontsize=10)
        gradients.set_yscale("log")
        apart = f"largest / smallest {numbers['imbalance']:.1f}"
        contributions.set_title(f"{name}: contribution to the update, {apart}", fontsize=10)
        contributions.set_ylim(bottom=0)
        contributions.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes in grid[-1]:
        axes.set_xlabel("shared layer, from the input")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", default="ew,mao", help="comma-separated")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--every", type=int, default=10, help="steps from one sample to the next")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "rooms-contributions.png")
    options = parser.parse_args(arguments)
    problem = load_problem("rooms-mtan")
    data = problem.data(quick=True)
    recordings: dict[str, Recording] = {}
    seconds: dict[str, float] = {}
    for method in options.methods.split(","):
        started = time.perf_counter()
        recordings[method] = record(problem, data, method, options.steps, options.every)
        seconds[method] = time.perf_counter() - started
    text = table(recordings)
    Console().print(Markdown(text))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "contributions.md").write_text(text, encoding="utf-8")
    content: dict[str, Any] = {
        "steps": options.steps,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "methods": {
            method: {
                "shares": recording.shares(),
                "imbalance": recording.imbalance(),
                "layers": recording.shared_layers,
                "gradient": recording.by_layer("gradient"),
                "contribution": recording.by_layer("contribution"),
                "contribution by step": recording.by_step("contribution"),
            }
            for method, recording in recordings.items()
        },
    }
    (options.out / "contributions.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    draw(content["methods"]).savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
