import math
import re
import shutil
import subprocess
from io import StringIO
from pathlib import Path

import pytest
from comparisons import METHODS, Errors, make_result, tuned
from rich.console import Console

from equipoise.bench.cli._comparing import _show
from equipoise.bench.experiment.judgement import judge_result
from equipoise.bench.experiment.tables import (
    entries,
    notes,
    to_frame,
    to_latex,
    to_markdown,
    to_rich,
    verdict,
)

NASTY = "|a*b_c`<script>&%$#{}~^\\[x](y)"


def test_markdown_has_everything():
    result = make_result()
    lines = to_markdown(result).splitlines()
    assert (
        lines[0]
        == "| method | left MSE ↓ | left R² % ↑ | right MSE ↓ | right R² % ↑ | Δm % ↑ | rank | time × | memory × |"
    )
    assert lines[2].startswith("| single-task | 1.3")
    assert lines[2].endswith("|  |  |  |  |")
    assert "p" not in lines[3].split("|", 2)[2]  # equal weights are what the others are tested against
    assert "\\*\\* p < 0.001 |" in lines[4]
    assert lines[5].startswith("| mao | **0.9")
    assert "**\\*\\* [" in lines[5]
    assert lines[5].endswith("] p < 0.001 | 1.0 | 2.00 | 3.00 |")
    assert all(line.count(" | ") == lines[0].count(" | ") for line in lines[2:6])
    text = "\n".join(lines)
    assert verdict(result)[0] in text.replace("\\", "")


def test_markdown_escapes():
    text = to_markdown(make_result(Errors((NASTY, "a\nb"), measure="m|m")))
    lines = text.splitlines()
    assert lines[0].startswith("| method | \\|a\\*b\\_c\\`\\<script>&%$#{}~^\\\\\\[x](y) m\\|m ↓ |")
    assert "a b m\\|m ↓" in lines[0]
    assert lines[2].startswith("| single-task | ")


def test_notes_say_what_has_to_be_known():
    text = "\n".join(notes(make_result(quick=True, hyperparameters={"mao": {"lr": 3e-4}})))
    for part in (
        "QUICK",
        "4 seeds, 3 epochs at batch size 16",
        "0.001 (mao 0.0003)",
        "2.0 ms",
        "a counter",
        "p < 0.05",
    ):
        assert part in text
    assert "4 seeds cover the true mean at most 88% of the time" in text
    few = "\n".join(notes(make_result(seeds=2)))
    assert "No stars: a paired t-test needs at least 3 seeds, this is 2." in few
    assert "bootstrap" not in few
    assert "95 % bootstrap interval" in "\n".join(notes(make_result(seeds=6)))
    searched = "\n".join(notes(tuned(make_result())))
    assert "with seed 0; the best on validation is compared." in searched
    assert "mao lr 0.001 (of 3)." in searched


def test_the_look_is_told_and_its_p_values_are_corrected_for_it():
    result = make_result(seeds=5, looks=(5, 10, 20))
    [note] = [line for line in notes(result) if "look 1" in line]
    assert note.startswith("This is look 1 of 3: it may spend 8.9e-05 of the 0.05 of error: its p-values are")
    once, looked = judge_result(make_result(seeds=5)).tests, judge_result(result).tests
    for test in looked:
        other = once.of(test.better, test.worse, test.task)
        assert test.raw == other.raw
        assert test.corrected >= min(1.0, 500 * other.corrected)
    assert "as planned up to 20" in verdict(make_result(seeds=5, looks=(5, 10, 20), levels={"ew": 1, "mao": 0.995}))[0]


def test_failures_are_told():
    result = make_result(diverged=[("mao", 1)])
    assert notes(result)[0] == "mao failed in 1 of 4 runs (seed 1: a loss became nan)."
    assert "A result of fewer seeds is neither compared, nor ranked, nor called best." in notes(result)
    assert not any("fewer seeds" in note for note in notes(make_result()))
    assert "Not judged: mao (finished 3 of 4 seeds, failed in 1)." in verdict(result)


def test_where_nothing_finished_the_reason_comes_first_and_nothing_is_explained(capsys):
    every = [(row, seed) for row in ("single:left", "ew", "mao") for seed in range(4)]
    result = make_result(methods=("ew", "mao"), diverged=every)
    _show(result, Path("runs/x"))
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "single:left, ew and mao failed in 4 of 4 runs each (seed 0: a loss became nan)."
    text = " ".join(rest)
    for nothing in ("Δm", "│", "p-values", "Whether longer training", "failed in 4 of 4"):
        assert nothing not in text
    assert "Use: nothing of this. No method finished every seed." in text


def test_why_baselines_failed_stands_before_the_table(capsys):
    _show(make_result(diverged=[("single:left", 2)]), Path("runs/x"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "single:left failed in 1 of 4 runs (seed 2: a loss became nan)."
    assert "without left, of which single-task runs failed." in " ".join(lines)


def terminal(result):
    console = Console(width=200, file=StringIO())
    console.print(to_rich(result))
    return console.file.getvalue()


@pytest.mark.parametrize("write", [to_markdown, to_latex, terminal])
def test_every_format_has_what_its_notes_describe(write):
    result = make_result()
    text = write(result).replace("\\_", "_").replace("\\textless{}", "<").replace("\\[", "[")
    main = [column for column in result.summary.columns if column.main]
    tests = judge_result(result).tests
    shown = [entry for method in METHODS for entry in entries(result, tests, method, main)]
    assert [bool(entry.interval) for entry in shown] == [False, False, True] * 3
    assert [bool(entry.p_value) for entry in shown] == [False] * 3 + [True] * 6
    for entry in shown:
        assert entry.beside in text
    assert len(re.findall(r"p [<=] [01]\.?\d*", text.split("Bold:")[0])) >= 6


@pytest.mark.parametrize("write", [to_markdown, to_latex, terminal])
def test_results_of_fewer_seeds_say_so_and_are_not_the_best(write):
    text = write(make_result(diverged=[("mao", seed) for seed in (1, 2, 3)]))
    [start] = [number for number, line in enumerate(text.splitlines()) if line.lstrip("│| ").startswith("mao ")]
    row = "\n".join(text.splitlines()[start : start + 2]) if write is terminal else text.splitlines()[start]
    assert row.count("1 of 4 seeds") == (5 if write is to_markdown else 3)
    assert "**" not in row
    assert "textbf" not in row


def test_terminal_table_has_main_measures_and_costs():
    table = to_rich(make_result())
    assert len(table.columns) == 1 + 2 + 1 + 3
    assert table.row_count == 1 + len(METHODS)
    wide = to_rich(make_result(Errors([f"task {number}" for number in range(12)])))
    assert len(wide.columns) == 1 + 1 + 3


def test_frame_has_every_number():
    result = make_result()
    frame = to_frame(result).set_index("method")
    delta = result.summary.columns[-1]
    for method in METHODS:
        cell = result.summary.cells[method][delta]
        row = frame.loc[method]
        assert row["Δm mean"] == cell.mean
        assert (row["Δm low"], row["Δm high"]) == cell.interval
        assert row["rank"] == result.summary.ranks[method]
        test = judge_result(result).tests.find(method, "ew")
        assert row["Δm p"] == pytest.approx(test.corrected if test else math.nan, nan_ok=True)
        assert row["Δm raw p"] == pytest.approx(test.raw if test else math.nan, nan_ok=True)
    assert "left R² p" not in frame  # it is not tested, so that nothing has to be corrected for it
    assert math.isnan(frame.loc["single-task"]["Δm mean"])


def test_latex_by_hand():
    lines = to_latex(make_result()).splitlines()
    heads = ["left MSE $\\downarrow$", "right MSE $\\downarrow$", "$\\Delta$m \\% $\\uparrow$", "rank"]
    assert lines[5] == " & ".join(["method", *heads, "time $\\times$", "memory $\\times$ \\\\"])
    assert lines[8] == "\\midrule"
    assert "$^{**}$" in lines[10]
    assert lines[11].startswith("mao & \\textbf{0.9")
    assert (
        to_latex(make_result(Errors((NASTY, "b"))))
        .splitlines()[5]
        .startswith(
            "method & \\textbar{}a*b\\_c`\\textless{}script\\textgreater{}\\&\\%\\$\\#\\{\\}\\textasciitilde{}"
            "\\textasciicircum{}\\textbackslash{}[x](y) MSE $\\downarrow$ &"
        )
    )


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
@pytest.mark.parametrize("tasks", [("left", "right"), (NASTY, "ä±²")])
def test_latex_compiles(tmp_path, tasks):
    table = to_latex(make_result(Errors(tasks), diverged=[("ema", 1)]))
    (tmp_path / "table.tex").write_text(
        "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs}\\begin{document}\n"
        f"{table}\\end{{document}}\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stdout[-2000:]
