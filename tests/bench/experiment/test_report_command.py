"""`equipoise compare` ends with the verdict and the report's path, and `equipoise report` makes the same again."""

import io
import sqlite3
from contextlib import closing

import pandas as pd
import pytest
from typer.testing import CliRunner

from equipoise.bench.cli import app
from equipoise.bench.experiment.comparison import load_result
from equipoise.bench.experiment.tables import to_rich

COMPARE = ["compare", "digits", "--quick", "--epochs", "1", "--methods", "ew,mao", "--seeds", "1", "--workers", "1"]


def run(*arguments, code=0):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return folder, run(*COMPARE, "--out", folder).output


def test_compare_ends_with_the_verdict_and_the_path(compared):
    folder, output = compared
    *_, use, verdict, seen, length, empty, path = output.rstrip("\n").splitlines()
    assert use == "Use: nothing yet. Add seeds, in a new comparison with --seeds 5 and another --out."
    assert verdict.startswith("1 seed is too few for a paired t-test, which needs at least 3: no difference")
    assert seen.startswith("Mean Δm, highest first: ")
    assert length.startswith("Whether longer training would change this is not known")
    assert (empty, path) == ("", f"Report: {folder / 'report.html'}")
    assert verdict in (folder / "report.html").read_text(encoding="utf-8")


def test_report_is_made_again_without_training(compared, tmp_path):
    folder, _ = compared
    before = (folder / "report.html").read_text(encoding="utf-8")
    (folder / "report.html").unlink()
    runs = (folder / "runs.jsonl").read_bytes()
    assert run("report", folder).output == f"{folder / 'report.html'}\n"
    assert (folder / "report.html").read_text(encoding="utf-8") == before
    assert (folder / "runs.jsonl").read_bytes() == runs
    run("report", folder, "--out", tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8") == before


def test_tables_go_to_the_terminal_or_a_file(compared, tmp_path):
    folder, _ = compared
    assert run("report", folder, "--format", "md").output == (folder / "table.md").read_text(encoding="utf-8")
    frame = pd.read_csv(io.StringIO(run("report", folder, "--format", "csv").output))
    assert list(frame.method) == ["single-task", "ew", "mao"]
    latex = run("report", folder, "--format", "latex").output
    assert "\\begin{tabular}" in latex
    assert run("report", folder, "--format", "latex", "--out", tmp_path / "t.tex").output == f"{tmp_path / 't.tex'}\n"
    assert (tmp_path / "t.tex").read_text(encoding="utf-8") == latex


@pytest.mark.parametrize(("runs", "says"), [(1, "1 of 5 runs"), (4, "4 of 5 runs")])
def test_an_unfinished_comparison_shows_what_there_is(compared, tmp_path, runs, says):
    """Single-task training of one task alone; all of it and one method."""
    folder, _ = compared
    (tmp_path / "settings.json").write_bytes((folder / "settings.json").read_bytes())
    lines = (folder / "runs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "runs.jsonl").write_text("".join(lines[:runs]))
    line = f"Unfinished: {says}."
    run("report", tmp_path)
    assert f'<p class="quick">{line}' in (tmp_path / "report.html").read_text(encoding="utf-8")
    markdown = run("report", tmp_path, "--format", "md").output
    assert markdown.startswith(f"**{line}")
    assert "mao (finished 0 of 1 seeds)" in markdown.replace("\\", "")
    assert f"\\caption{{{line}" in run("report", tmp_path, "--format", "latex").output
    assert len(pd.read_csv(io.StringIO(run("report", tmp_path, "--format", "csv").output))) == 3
    assert to_rich(load_result(tmp_path)).title.plain.splitlines()[1].startswith(line)


def test_a_comparison_under_way_is_read_from_its_study_in_which_nothing_is_written(compared, tmp_path):
    folder, _ = compared
    for name in ("settings.json", "study.db", "costs.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "runs.jsonl").write_text("")  # of an interrupted go before
    (tmp_path / "study.db").chmod(0o400)
    before = (tmp_path / "study.db").read_bytes()
    with closing(sqlite3.connect(folder / "study.db")) as worker:  # of which one is being taken
        worker.execute("BEGIN IMMEDIATE")
        assert run("report", folder, "--format", "md").output == (folder / "table.md").read_text(encoding="utf-8")
    assert run("report", tmp_path, "--format", "md").output == (folder / "table.md").read_text(encoding="utf-8")
    assert (tmp_path / "study.db").read_bytes() == before


def test_what_is_no_comparison_is_said(compared, tmp_path):
    folder, _ = compared
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "settings.json").write_bytes((folder / "settings.json").read_bytes())
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "settings.json").write_text("{")
    for name, message in {
        "nowhere": "holds no comparison: `equipoise compare` makes one",
        "empty": "holds no comparison",
        "file": "is a file, and a folder is needed",
        "cut": "is finished yet: `equipoise compare` goes on with it",
        "damaged": "settings.json is damaged",
    }.items():
        done = run("report", tmp_path / name, code=2)
        assert message in done.output
        assert len(done.output.splitlines()) == 1
        assert not (tmp_path / name / "report.html").exists()
    done = run("report", folder, "--out", tmp_path / "empty", code=2)
    assert done.output == f"error: {tmp_path / 'empty'} cannot be written: Is a directory.\n"
    assert "Invalid value for '--format'" in run("report", folder, "--format", "pdf", code=2).output
