"""What `compare` and `reproduce` do: carry a comparison out, write and show what came of it."""

from __future__ import annotations

from pathlib import Path

import torch
import typer

from equipoise.bench.cli._console import console
from equipoise.bench.defaults import REPORT
from equipoise.bench.experiment.asking import default_workers
from equipoise.bench.experiment.comparison import Comparison, Result
from equipoise.bench.experiment.pictures import draw_all
from equipoise.bench.experiment.progress import ConsoleProgress
from equipoise.bench.experiment.protocol import announced, count
from equipoise.bench.experiment.report import to_html
from equipoise.bench.experiment.settings import Settings
from equipoise.bench.experiment.tables import (
    anything_finished,
    failures,
    notes,
    to_frame,
    to_markdown,
    to_rich,
    verdict,
)


def carry_out(
    settings: Settings,
    folder: Path,
    workers: int | None,
    storage: str | None,
    study: str | None,
    overwrite: bool,
    smoke: bool = False,
) -> Result:
    """Carries a comparison out; writes and shows what came of it, unless the numbers mean nothing."""
    comparison = Comparison(settings, folder, storage, study, overwrite)
    if not smoke:
        for sentence in announced(comparison.settings, comparison.asked, folder):
            console.print(sentence, markup=False, highlight=False)
    cores = torch.get_num_threads()  # OMP_NUM_THREADS decides, else the cores
    if workers is None:
        workers = default_workers(settings.device)
    try:
        with ConsoleProgress(console, comparison.problem, comparison.settings.methods, workers) as progress:
            result = comparison.run(workers, max(1, cores // max(1, workers)), progress, costs=not smoke)
    except KeyboardInterrupt:
        console.print(
            f"Interrupted. {_kept(comparison)}; the same command goes on from there.",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    if not smoke:
        _write(comparison, result)
        _show(result, folder)
    return result


def _kept(comparison: Comparison) -> str:
    """What an interruption leaves, of the runs that the comparison needs: it may hold those of other files too."""
    records = comparison.records()
    found = comparison.planned(records)
    ended = [records[trial.key]["status"] for trial in found.runs if trial.key in records]
    failed = ended.count("failed")
    finished = len(ended) - failed
    are = "is" if finished == 1 else "are"
    again = f" ({failed} failed and will be tried again)" if failed else ""
    return f"{finished} of {count(found.expected, 'run')} {are} finished and kept in {comparison.folder.path}{again}"


def check_some_finished(result: Result) -> None:
    """Ends with exit code 1 if every method failed; the table's notes have said why."""
    if not anything_finished(result):
        raise typer.Exit(1)


def _write(comparison: Comparison, result: Result) -> None:
    comparison.folder.write("table.csv", to_frame(result).to_csv(index=False).encode())
    comparison.folder.write("table.md", to_markdown(result).encode())
    comparison.folder.write(REPORT, to_html(result).encode())
    for name, content in draw_all(result).items():
        comparison.folder.write(name, content)


def _show(result: Result, folder: Path) -> None:
    failed = failures(result)  # first, as what follows is read with it
    for sentence in failed:
        console.print(sentence, markup=False, highlight=False)
    if anything_finished(result):
        console.print(to_rich(result))
    for note in notes(result)[len(failed) :]:
        console.print(note, markup=False, highlight=False)
    console.print(f"Everything is in {folder}: table.md, table.csv, runs.jsonl, report.html, pictures, …", markup=False)
    console.print()
    for sentence in verdict(result):
        console.print(sentence, markup=False, highlight=False)
    console.print(f"\nReport: {folder / REPORT}", markup=False, highlight=False, soft_wrap=True)
