"""What a comparison does, in words: before it begins, and below its table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.bench.experiment.rows import FIXED, parts_of, replayed_by, spec_of, task_of
from equipoise.bench.experiment.settings import Settings
from equipoise.bench.experiment.trials import FIXED_BUDGET, SELECTION_SEED, selection_seed
from equipoise.bench.experiment.tuning import Configuration
from equipoise.bench.experiment.wording import join
from equipoise.registry import BASE_OPTIMIZERS, DEFAULT_OPTIMIZER

if TYPE_CHECKING:
    from equipoise.bench.experiment.comparison import Result

MANY = 8
"""Of more rows than this the table's notes do not name every configuration; `runs.jsonl` has them."""


def announced(settings: Settings, asked: Settings, folder: Path) -> list[str]:
    """Returns what will be done, a sentence each.

    Args:
        settings: the comparison's.
        asked: what was asked for; the comparison may have had more methods and seeds before.
        folder: the run folder.
    """
    seeds = count(settings.looks[0] if settings.looks else settings.seeds, "seed")
    longer = ", twice as many as long as runs still rise at their end" if settings.extend_epochs else ""
    lines = [f"Compares {join(settings.methods)} over {seeds}, {count(settings.epochs, 'epoch')} each{longer}."]
    more = [row for row in settings.methods if row not in asked.methods]
    more += [count(settings.seeds, "seed")] if settings.seeds > asked.seeds else []
    if more:
        lines.append(
            f"The comparison in {folder} has {join(more)} already, and is finished with all that it has; another "
            "folder with --out compares only what is asked for."
        )
    if settings.looks:
        lines.append(_looks(settings))
    lines += [sentence for sentence in (_search(settings), _time(settings)) if sentence]
    if not settings.baselines:
        lines.append("No single-task runs: gains are over equal weights.")
    return lines


def protocol_notes(result: Result) -> list[str]:
    """Returns how configurations, epochs and seeds came about, a sentence each."""
    settings = result.settings
    lines = [sentence for sentence in (_search(settings), _chosen(result)) if sentence]
    if settings.looks:
        lines.append(f"{_looks(settings)} It came to {settings.seeds}.")
    if settings.extend_epochs:
        lines.append(
            f"Epochs were doubled as long as runs with seed 0 rose at their end: it came to {settings.epochs}."
        )
    if settings.match_time:
        found = {row: result.configurations[row].epochs for row in settings.methods if row in result.configurations}
        lines.append(f"{_time(settings)} Epochs: {', '.join(f'{row} {epochs}' for row, epochs in found.items())}.")
    for row in settings.methods:
        if (source := replayed_by(row)) is not None:
            lines.append(
                f"{row} trains with the mean weights of {source}'s run of the same seed, fixed from the start."
            )
    return lines


def rates_of(result: Result) -> str:
    """Returns learning rates that were not chosen, a comma before them: the common one, and those that differ."""
    settings = result.settings
    rates = {
        "single" if task_of(row) is not None else row: rate
        for row, rate in result.rates.items()
        if not result.spent.get(row) and replayed_by(row) is None
    }
    own = ", ".join(f"{row} {rate:g}" for row, rate in rates.items() if rate != settings.lr)
    common = f", learning rate {settings.lr:g}" if settings.lr in rates.values() else ""
    return f"{common} ({own})" if common and own else common or (f", learning rates {own}" if own else "")


def what_it_does(row: str) -> str:
    """Returns what a row is, for somebody who does not know its name."""
    method, optimizer = parts_of(row)
    source, spec = replayed_by(row), spec_of(row)
    text = f"{spec.description} ({spec.source})" if spec is not None else "one task alone"
    if source is not None:
        text = f"the mean weights of {source}'s run of the same seed, fixed"
    elif method == FIXED:
        text = "the best fixed weights that a search found"
    return text if optimizer == DEFAULT_OPTIMIZER else f"{text}; {BASE_OPTIMIZERS[optimizer].description}"


def count(number: int, what: str) -> str:
    """Returns "1 seed", "2 seeds"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _looks(settings: Settings) -> str:
    numbers = join([str(look) for look in settings.looks])
    return f"Planned are looks at {numbers} seeds; the first at which the verdict decides is the last."


def _time(settings: Settings) -> str:
    return (
        "Methods train equally long: each as many epochs as take the dearest one's time." if settings.match_time else ""
    )


def _search(settings: Settings) -> str:
    """How configurations are chosen; nothing where they are given."""
    fixed = [row for row in settings.methods if parts_of(row)[0] == FIXED]
    seed = selection_seed(settings)
    apart = f"with a seed of its own ({seed})" if seed == SELECTION_SEED else f"with seed {seed}"
    if settings.budget is not None:
        rows = "method and single-task baseline" if settings.baselines else "method"
        tried = f"{count(settings.budget, 'configuration')} of learning rate, weight decay and hyperparameters"
        also = f" (of {join(fixed)}: of the weights too)" if fixed else ""
        return f"Of every {rows} {tried}{also} are tried {apart}; the best on validation is compared."
    parts = [f"every row is tried at several learning rates {apart}"] if settings.tune else []
    if fixed:
        parts.append(f"{FIXED_BUDGET} weightings are tried {apart} for {join(fixed)}")
    return f"{' and '.join(parts).capitalize()}; the best on validation is compared." if parts else ""


def _chosen(result: Result) -> str:
    """What was chosen for each row that was searched."""
    found = {row: result.configurations[row] for row, spent in result.spent.items() if spent}
    shown = {row: chosen for row, chosen in found.items() if not row.startswith("single:") or len(found) <= MANY}
    if not shown:
        return ""
    said = [f"{row} {_in_words(chosen, result)} (of {result.spent[row]})" for row, chosen in shown.items()]
    return f"Chosen, and of how many runs: {'; '.join(said)}."


def _in_words(chosen: Configuration, result: Result) -> str:
    parts = [f"lr {chosen.lr:g}"]
    if result.settings.budget is not None:
        parts.append(f"weight decay {chosen.weight_decay:g}")
    for name, value in chosen.hyperparameters.items():
        if name != "weights":
            parts.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
        else:
            parts.append(f"weights {', '.join(f'{task} {weight:g}' for task, weight in value.items())}")
    return ", ".join(parts)
