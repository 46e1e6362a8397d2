"""Forty tasks: what exact MAO reaches, and what reaches it in less time.

    python benchmarks/many_tasks.py            # about 20 minutes on two CPU cores
    python benchmarks/many_tasks.py --unlike   # every tenth loss times 100: what sharing moments then costs

Each way is tuned over the same learning rates by the best mean F1 on validation, further where the best lies at an end,
then run with more seeds at its own best rate. Writes many_tasks.jsonl, a line a run, and many_tasks.md into
benchmarks/results/ (with --unlike many_tasks-unlike.*); runs that are there are not repeated.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.classification import multilabel_f1_score

import equipoise as eq
from equipoise.bench.problems.digit_attributes import DigitAttributes

RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
FIRST = RATES[2:6]
"""Tried for every way; then further, while the best of a way lies at an end."""
EPOCHS = 8
BATCH = 64
UNLIKE = slice(0, None, 10)
"""The tasks whose losses --unlike multiplies by 100."""
Step = Callable[[Tensor, Tensor], None]
"""Takes the losses `[40]` and the representation `[N, 64]` that they were computed from."""
Make = Callable[[nn.Module, Sequence[str], float], Step]
"""Takes the network, the tasks and the learning rate."""


@dataclass(frozen=True)
class Run:
    """One training run's outcome: mean F1 on validation at its best epoch, and seconds of processor time."""

    way: str
    lr: float
    seed: int
    quality: float
    seconds: float


def stepping(optimizer: Any, backward: Callable[[Tensor, Tensor], object]) -> Step:
    """A step: `backward(losses, representation)`, then the optimizer's."""

    def step(losses: Tensor, representation: Tensor) -> None:
        backward(losses, representation)
        optimizer.step()
        optimizer.zero_grad()

    return step


def adamw(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """The optimizer of the ways that are not MAO's."""
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, fused=True)


def mao(groups: Any = None) -> Make:
    """MAO with moments for every task, or for groups of tasks: a number of them (dealt in turn), or by name."""

    def make(model: nn.Module, tasks: Sequence[str], lr: float) -> Step:
        optimizer = eq.MAO(model.parameters(), tasks, lr=lr, groups=groups)
        return stepping(optimizer, lambda losses, _: optimizer.backward(named(tasks, losses)))

    return make


def by_scale(count: int) -> Make:
    """MAO with a group of the tasks that --unlike changes, the others dealt in turn to the other groups."""

    def make(model: nn.Module, tasks: Sequence[str], lr: float) -> Step:
        rest = [task for task in tasks if task not in tasks[UNLIKE]]
        others = {f"others{index}": rest[index :: count - 1] for index in range(count - 1)}
        return mao({"unlike": tasks[UNLIKE], **others})(model, tasks, lr)

    return make


def similar(count: int) -> Make:
    """MAO with groups of tasks whose gradients are similar after 50 steps with equal weights."""

    def make(model: nn.Module, tasks: Sequence[str], lr: float) -> Step:
        taken = 0
        chosen = stepping(adamw(model, 1e-3), lambda losses, _: losses.sum().backward())

        def step(losses: Tensor, representation: Tensor) -> None:
            nonlocal taken, chosen
            if taken == 50:
                chosen = mao(_groups(tasks, _rows(model, losses), count))(model, tasks, lr)
            taken += 1
            chosen(losses, representation)

        return step

    return make


def subset(size: int, drawn: bool) -> Make:
    """MAO on a subset of the tasks, in rotation or drawn anew at every step, whose contributions count for K/size."""

    def make(model: nn.Module, tasks: Sequence[str], lr: float) -> Step:
        optimizer = eq.MAO(model.parameters(), tasks, lr=lr * len(tasks) / size)
        turn = itertools.cycle(range(len(tasks)))
        random = Random(0)

        def backward(losses: Tensor, representation: Tensor) -> None:
            chosen = random.sample(range(len(tasks)), size) if drawn else itertools.islice(turn, size)
            optimizer.backward({tasks[index]: losses[index] for index in chosen})

        return stepping(optimizer, backward)

    return make


def held_scales(every: int) -> Make:
    """AdamW on losses divided by their gradients' norms, which exact passes renew every so many steps."""

    def make(model: nn.Module, tasks: Sequence[str], lr: float) -> Step:
        scales = torch.ones(len(tasks))
        taken = 0

        def backward(losses: Tensor, representation: Tensor) -> None:
            nonlocal taken, scales
            if taken % every == 0:
                norms = _rows(model, losses).norm(dim=1)
                scales = norms if taken == 0 else torch.lerp(scales, norms, 0.3)
            taken += 1
            (losses / scales).sum().backward()

        return stepping(adamw(model, lr), backward)

    return make


def method(name: str) -> Make:
    """A method of the registry."""

    def make(model: nn.Module, tasks: Sequence[str], lr: float) -> Step:
        made = eq.make_method(name, model, tasks, lr=lr)
        return stepping(made, lambda losses, _: made.backward(named(tasks, losses)))

    return make


def at_representation(aggregator: Callable[[], eq.aggregators.Aggregator]) -> Make:
    """AdamW on the gradient of an aggregator that looks at the gradients at the representation only."""

    def make(model: nn.Module, tasks: Sequence[str], lr: float) -> Step:
        balancer = eq.Balancer(tasks, aggregator=aggregator())
        return stepping(
            adamw(model, lr),
            lambda losses, representation: balancer.backward(named(tasks, losses), representation=representation),
        )

    return make


WAYS: dict[str, Make] = {
    "exact MAO": mao(),
    "MAO, 8 groups": mao(8),
    "MAO, 4 groups": mao(4),
    "MAO, 2 groups": mao(2),
    "MAO, 4 groups of similar gradients": similar(4),
    "MAO, 4 groups by scale": by_scale(4),
    "MAO, 8 tasks in rotation": subset(8, drawn=False),
    "MAO, 8 tasks drawn": subset(8, drawn=True),
    "AdamW, scales held for 25 steps": held_scales(25),
    "equal weights (AdamW)": method("ew"),
    "EMA": method("ema"),
    "IMTL-G": method("imtl-g"),
    "IMTL-G at the representation": at_representation(eq.IMTLG),
    "MGDA at the representation": at_representation(eq.MGDA),
}


def named(tasks: Sequence[str], losses: Tensor) -> dict[str, Tensor]:
    """Task → loss."""
    return dict(zip(tasks, losses.unbind(), strict=True))


def _groups(tasks: Sequence[str], rows: Tensor, count: int) -> dict[str, list[str]]:
    """Clusters tasks by the cosines of their gradients `[K, P]`."""
    directions = functional.normalize(rows, dim=1)
    distances = (1 - directions @ directions.T)[tuple(torch.triu_indices(len(tasks), len(tasks), 1))]
    labels = fcluster(linkage(distances.clamp(min=0).numpy(), "average"), count, "maxclust")
    return {
        f"group{label}": [task for task, own in zip(tasks, labels, strict=True) if own == label]
        for label in sorted(set(labels))
    }


def _rows(model: nn.Module, losses: Tensor) -> Tensor:
    """The tasks' gradients `[K, P]`."""
    parameters = list(model.parameters())
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    return torch.stack([torch.cat([gradient.flatten() for gradient in row]) for row in rows])


def train(way: str, lr: float, seed: int, unlike: bool) -> Run:
    """Trains once on one thread."""
    torch.set_num_threads(1)
    problem = DigitAttributes()
    data = problem.data()
    tasks = [task.name for task in problem.tasks]
    inputs, answers = data.train[range(len(data.train))].values()
    validation, truth = data.validation[range(len(data.validation))].values()
    torch.manual_seed(seed)
    model = problem.model()
    generator = torch.Generator().manual_seed(seed)
    step = WAYS[way](model, tasks, lr)
    scales = torch.ones(len(tasks))
    if unlike:
        scales[UNLIKE] = 100.0
    best = seconds = 0.0
    for _ in range(EPOCHS):
        start = time.process_time()
        for chosen in torch.randperm(len(inputs), generator=generator).split(BATCH):
            representation = model.trunk(inputs[chosen])
            logits = model.answers(representation)
            losses = functional.binary_cross_entropy_with_logits(logits, answers[chosen], reduction="none").mean(0)
            try:
                if not losses.isfinite().all():
                    raise ValueError("diverged")
                step(scales * losses, representation)
            except ValueError:  # it diverged, or a loss that EMA divides by has become 0
                return Run(way, lr, seed, best, seconds + time.process_time() - start)
        seconds += time.process_time() - start
        with torch.no_grad():
            score = multilabel_f1_score(model(validation), truth.long(), len(tasks), average="macro")
        best = max(best, score.item())
    return Run(way, lr, seed, best, seconds)


def best(runs: Sequence[Run]) -> Run:
    """The run of the highest quality."""
    return max(runs, key=lambda run: run.quality)


def beyond(runs: Sequence[Run]) -> list[float]:
    """The rate to try next, if the best of one way's runs lies at an end of those tried."""
    tried = [RATES.index(run.lr) for run in runs]
    top = RATES.index(best(runs).lr)
    return [RATES[index] for index in (top - 1, top + 1) if 0 <= index < len(RATES) and index not in tried]


def main() -> None:
    """Tunes, repeats, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--unlike", action="store_true", help="multiply every tenth task's loss by 100")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    ways = list(dict.fromkeys(["exact MAO", *arguments.ways]))
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept = arguments.out / f"many_tasks{'-unlike' if arguments.unlike else ''}.jsonl"
    runs = [Run(**json.loads(line)) for line in kept.read_text().splitlines()] if kept.exists() else []

    def carry_out(wanted: Sequence[tuple[str, float, int]], what: str) -> None:
        missing = [key for key in wanted if key not in {(run.way, run.lr, run.seed) for run in runs}]
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool, kept.open("a") as file:
            futures = [pool.submit(train, *key, arguments.unlike) for key in missing]
            for future in track(as_completed(futures), what, total=len(futures)):
                runs.append(future.result())
                file.write(json.dumps(asdict(runs[-1])) + "\n")
                file.flush()

    wanted = {(way, lr, 0) for way in ways for lr in FIRST}
    while wanted:
        carry_out(sorted(wanted), "learning rates")
        wanted = {(way, lr, 0) for way in ways for lr in beyond([r for r in runs if r.way == way and r.seed == 0])}
    done = [way for way in WAYS if any(run.way == way for run in runs)]
    tuned = {way: best([run for run in runs if run.way == way and run.seed == 0]) for way in done}
    carry_out([(way, tuned[way].lr, seed) for way in ways for seed in range(1, arguments.seeds)], "seeds")
    final = {way: [run for run in runs if run.way == way and run.lr == tuned[way].lr] for way in done}
    reference = statistics.mean(run.seconds for run in final["exact MAO"])
    lines = ["| | learning rate | mean F1 on validation, % | time, exact MAO = 1 |", "|---|---:|---:|---:|"]
    for way, own in final.items():
        quality = [100 * run.quality for run in own]
        spread = f" ± {statistics.stdev(quality):.1f}" if len(quality) > 1 else ""
        seconds = statistics.mean(run.seconds for run in own)
        lines.append(f"| {way} | {own[0].lr:g} | {statistics.mean(quality):.1f}{spread} | {seconds / reference:.2f} |")
    text = "\n".join(lines) + "\n"
    kept.with_suffix(".md").write_text(text)
    Console().print(Markdown(text))


if __name__ == "__main__":
    main()
