"""The command line, run as a process."""

import contextlib
import importlib.metadata
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest

TUNED = ["compare", "digits", "--quick", "--epochs", "1", "--seeds", "2"]
TINY = ["compare", "digits", "--quick", "--epochs", "1", "--seeds", "1", "--methods", "ew,mao"]


def command(*arguments):
    return [sys.executable, "-m", "equipoise", *arguments]


def run(*arguments, cwd, code=0, environment=None):
    done = subprocess.run(
        command(*arguments),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", **(environment or {})},
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def runs_in(folder):
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def finished_in(folder):
    """How many runs the folder's study has finished, asked without Optuna."""
    if not (folder / "study.db").exists():
        return 0
    with contextlib.closing(sqlite3.connect(folder / "study.db", timeout=60)) as database:
        try:
            return database.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()[0]
        except sqlite3.OperationalError:  # its tables are being made
            return 0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny comparison: its folder and what was printed."""
    place = tmp_path_factory.mktemp("tiny")
    return place / "out", run(*TINY, "--out", "out", cwd=place).stdout


def test_compare_writes_and_shows_everything(tiny):
    folder, output = tiny
    for name in ("settings.json", "costs.json", "table.csv", "table.md", "results.png", "training.png", "weights.png"):
        assert (folder / name).stat().st_size > 0
    assert (folder / "predictions" / "mao.png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.rglob(".*"))
    for part in ("single-task", "ew", "mao", "Δm", "time ×", "memory ×", "QUICK", "at least 3 seeds, this is 1"):
        assert part in output
    runs = runs_in(folder)
    assert [record["method"] for record in runs] == ["single:left", "single:right", "single:sum", "ew", "mao"]
    assert all(record["status"] == "finished" for record in runs)


def test_the_table_is_what_the_runs_say(tiny):
    folder, _ = tiny
    runs = {record["method"]: record for record in runs_in(folder)}
    table = pd.read_csv(folder / "table.csv").set_index("method")
    for method in ("ew", "mao"):
        test = runs[method]["test"]
        assert table.loc[method, "left accuracy mean"] == pytest.approx(test["left"]["accuracy"])
        assert table.loc[method, "sum MAE mean"] == pytest.approx(test["sum"]["MAE"])
        gains = [
            test[task]["accuracy"] / runs[f"single:{task}"]["test"][task]["accuracy"] - 1 for task in ("left", "right")
        ] + [1 - test["sum"]["MSE"] / runs["single:sum"]["test"]["sum"]["MSE"]]
        assert table.loc[method, "Δm mean"] == pytest.approx(100 * sum(gains) / 3)
    assert table.loc["single-task", "right accuracy mean"] == pytest.approx(
        runs["single:right"]["test"]["right"]["accuracy"]
    )
    assert table.loc["ew", "time ×"] == table.loc["ew", "memory ×"] == 1
    assert table.loc["mao", "memory ×"] > 1
    markdown = (folder / "table.md").read_text()
    assert len(re.findall(r"^\|", markdown, re.MULTILINE)) == 2 + 3
    assert "QUICK" in markdown


def test_the_same_again_trains_nothing(tiny):
    folder, output = tiny
    before = (folder / "runs.jsonl").read_bytes()
    again = run(*TINY, "--out", folder.name, cwd=folder.parent).stdout
    assert (folder / "runs.jsonl").read_bytes() == before
    assert "5 of 5 runs are in the folder already." in again
    assert again.splitlines()[-10:] == output.splitlines()[-10:]


def test_more_seeds_and_methods_extend(tiny, tmp_path):
    folder, _ = tiny
    copy = tmp_path / "out"
    copy.mkdir()
    for name in ("settings.json", "study.db", "runs.jsonl", "costs.json"):
        (copy / name).write_bytes((folder / name).read_bytes())
    before = (copy / "runs.jsonl").read_text().splitlines()
    wanted = [*TINY[:-3], "2", "--methods", "ema", "--set", "ema.beta=0.2"]
    run(*wanted, "--out", "out", cwd=tmp_path)
    after = (copy / "runs.jsonl").read_text().splitlines()
    assert set(before) < set(after)
    keys = [(record["method"], record["seed"]) for record in runs_in(copy)]
    assert len(keys) == len(set(keys))
    assert set(keys) == {
        (name, seed) for name in ("single:left", "single:right", "single:sum", "ew", "mao", "ema") for seed in (0, 1)
    }
    assert list(pd.read_csv(copy / "table.csv").method) == ["single-task", "ew", "mao", "ema"]


def test_another_folder_with_the_same_study_is_held_to_its_settings(tiny, tmp_path):
    folder, _ = tiny
    storage = ["--storage", f"sqlite:///{folder / 'study.db'}", "--study", "out"]
    done = run(*TINY, "--lr", "0.01", *storage, "--out", "other", cwd=tmp_path, code=2)
    assert "Study 'out' in sqlite:" in done.stderr
    assert "lr is 0.003 there and 0.01 here. Take another study with --study" in done.stderr
    assert not (tmp_path / "other").exists()
    again = run(*TINY, *storage, "--out", "other", cwd=tmp_path).stdout
    assert "5 of 5 runs are in the folder already." in again
    assert (tmp_path / "other" / "runs.jsonl").read_bytes() == (folder / "runs.jsonl").read_bytes()
    assert (tmp_path / "other" / "predictions" / "mao.png").read_bytes().startswith(b"\x89PNG")


def test_other_settings_are_refused(tiny):
    folder, _ = tiny
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    done = run(*TINY, "--lr", "0.01", "--out", folder.name, cwd=folder.parent, code=2)
    assert "lr is 0.003 there and 0.01 here" in done.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_workers_give_the_same_runs(tiny, tmp_path):
    folder, _ = tiny
    run(*TINY, "--out", "out", "--workers", "2", cwd=tmp_path, environment={"OMP_NUM_THREADS": "1"})
    alone, together = ({record["method"]: record for record in runs_in(place)} for place in (folder, tmp_path / "out"))
    assert alone.keys() == together.keys()
    for method, record in alone.items():
        for task, values in record["test"].items():
            assert together[method]["test"][task] == pytest.approx(values, rel=0.02, abs=0.02)


def test_tuning(tmp_path):
    """Each method and baseline gets the rate of its best run; that run is one of the seeds'."""
    given = ["--tune", "--grid", "1e-3,1e-2", "--set", "mao.lr=3e-3"]
    output = run(*TUNED, "--methods", "ew,mao", *given, "--out", "out", cwd=tmp_path).stdout
    runs = runs_in(tmp_path / "out")
    keys = [(record["method"], record["seed"], record["lr"]) for record in runs]
    assert len(keys) == len(set(keys))
    chosen = {}
    for method in ("single:left", "single:right", "single:sum", "ew"):
        tried = {r["lr"]: r["epochs"][0]["score"] for r in runs if r["method"] == method and r["seed"] == 0}
        chosen[method] = max(tried, key=tried.get)
        assert {1e-3, 1e-2} < set(tried)
        assert min(tried) < chosen[method] < max(tried)
        assert [r["lr"] for r in runs if r["method"] == method and r["seed"] == 1] == [chosen[method]]
        assert f"{method} lr {chosen[method]:g} (of " in " ".join(output.split())
    assert [record["lr"] for record in runs if record["method"] == "mao"] == [3e-3, 3e-3]
    table = pd.read_csv(tmp_path / "out" / "table.csv").set_index("method")
    at_rate = {(r["method"], r["seed"]): r for r in runs if r["lr"] == chosen.get(r["method"])}
    assert table.loc["single-task", "sum MSE mean"] == pytest.approx(
        sum(at_rate["single:sum", seed]["test"]["sum"]["MSE"] for seed in (0, 1)) / 2
    )
    assert table.loc["ew", "left accuracy mean"] == pytest.approx(
        sum(at_rate["ew", seed]["test"]["left"]["accuracy"] for seed in (0, 1)) / 2
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.release), "2"])
def test_interrupted_and_gone_on_with(tmp_path, workers):
    """Ctrl-C in the middle keeps what was finished; the same command does the rest and gives what one go gives."""
    arguments = ["compare", "digits", "--quick", "--epochs", "2", "--seeds", "2", "--methods", "ew,ema,mao"]
    arguments += ["--workers", workers]
    process = subprocess.Popen(
        command(*arguments, "--out", "cut"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    runs = tmp_path / "cut" / "runs.jsonl"
    deadline = time.monotonic() + 200
    while finished_in(tmp_path / "cut") < 7:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 130, output
    assert "Interrupted." in output
    assert "goes on from there" in output
    assert "Traceback" not in output
    kept = runs.read_text().splitlines()
    assert 7 <= len(kept) < 12
    assert f"{len(kept)} of 12 runs are finished and kept in cut" in output
    run(*arguments, "--out", "cut", cwd=tmp_path)
    assert set(kept) <= set(runs.read_text().splitlines())
    run(*arguments, "--out", "whole", cwd=tmp_path)
    cut, whole = (
        {(record["method"], record["seed"]): record["test"] for record in runs_in(tmp_path / name)}
        for name in ("cut", "whole")
    )
    assert len(runs_in(tmp_path / "cut")) == 12
    assert cut == whole


def test_interrupted_while_workers_start(tmp_path):
    """Which would end with a traceback each: Ctrl-C in a terminal reaches all processes."""
    (tmp_path / "mine.py").write_text(DIVERGING)
    arguments = ["compare", "mine.py:problem", "--methods", "ew", "--seeds", "1", "--workers", "2", "--out", "out"]
    process = subprocess.Popen(
        command(*arguments),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    lines = [process.stdout.readline() for _ in range(3)]
    assert [lines[0], lines[2]] == ["Loading PyTorch and mine.py:problem.\n", "3 runs, starting 2 workers.\n"]
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while children.exists() and len(children.read_text().split()) < 3:  # two workers, the resource tracker
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 130, output
    assert output == "Interrupted. 0 of 3 runs are finished and kept in out; the same command goes on from there.\n"


@pytest.mark.slow
def test_killed_workers_parent_leaves_no_orphans(tmp_path):
    process = subprocess.Popen(
        command(
            "compare", "digits", "--epochs", "50", "--seeds", "1", "--methods", "ew", "--workers", "2", "--out", "o"
        ),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def members():
        found = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == process.pid and fields[0] != "Z":
                found.append(status.parent.name)
        return found

    deadline = time.monotonic() + 100
    while len(members()) < 4 and time.monotonic() < deadline:  # itself, two workers, the resource tracker
        time.sleep(0.1)
    process.kill()
    process.wait()
    while members() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert members() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "digit"], "Unknown problem 'digit'"),
        (["compare", "nowhere.py:problem"], "no file nowhere.py"),
        (["compare", "digits", "--methods", "ew,uww"], "uww"),
        (["compare", "digits", "--methods", " ,"], "--methods is empty"),
        (["compare", "digits", "--methods", "single:left"], "always trained"),
        (["compare", "digits", "--set", "ema.beta"], "METHOD.NAME=VALUE"),
        (["compare", "digits", "--set", "ema.beta=2"], "beta must be"),
        (["compare", "digits", "--set", "ema.gamma=2"], "gamma"),
        (["compare", "digits", "--set", "ema.lr=fast"], "ema.lr must be a finite number"),
        (["compare", "digits", "--methods", "ew", "--set", "ema.beta=0.2"], "not compared"),
        (["compare", "digits", "--config", "missing.toml"], "missing.toml"),
        (["compare", "digits", "--lr", "-1"], "--lr must be"),
        (["compare", "digits", "--set", "ema.lr=inf"], "ema.lr must be a finite number"),
        (["compare", "digits", "--set", "ema.lr=0"], "ema's learning rate must be more than 0"),
        (["compare", "digits", "--device", "cpu:1"], "write --device cpu"),
        (["compare", "digits", "--device", "nonsense"], "--device nonsense"),
        (["compare", "digits", "--out", "file"], "file"),
        (["compare", "digits", "--batch-size", "9000"], "--batch-size 9000 is more than the 8000 training samples"),
        (["compare", "digits", "--tune", "--lr", "1e-3"], "leave --lr out"),
        (["compare", "digits", "--grid", "1e-3"], "--grid is for --tune"),
        (["compare", "digits", "--tune", "--grid", "1e-3,fast"], "--grid takes learning rates"),
        (["compare", "digits", "--tune", "--grid", "1e-3,10"], "between 1e-07 and 1"),
        (["compare", "digits", "--storage", "here"], "--storage 'here' is no database"),
        (["compare", "digits", "--storage", "sqlite:////nowhere/at/all.db"], "cannot be used: unable to open"),
        (["compare", "digits", "--seeds", "0"], "--seeds"),
        (["compare", "broken.py:problem"], "broken.py"),
    ],
)
def test_errors_are_one_clear_line(tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    done = run(*arguments, cwd=tmp_path, code=2, environment={"PYTHONDONTWRITEBYTECODE": "1"})
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    if "--seeds" not in arguments:
        assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.py", "file"]


def test_lists_and_help(tmp_path):
    assert run("--version", cwd=tmp_path).stdout.strip() == f"equipoise {importlib.metadata.version('equipoise')}"
    methods = run("methods", cwd=tmp_path).stdout
    assert all(name in methods for name in ("ew", "nash-mtl", "mao", "Kendall et al. 2018"))
    problems = run("problems", cwd=tmp_path).stdout
    assert "digits" in problems
    assert "left, right, sum" in problems
    mao = run("methods", "mao", cwd=tmp_path).stdout
    assert all(words in mao for words in ("MAO: Adam", "Source: ", "--set mao.eps", "in a step: K."))
    health = run("problems", "health", cwd=tmp_path).stdout
    assert all(words in health for words in ("RAND", "inpatient", "D² ↑", "20 epochs at batch size 256"))
    assert "my_problem.py:problem" in run("compare", "--help", cwd=tmp_path).stdout
    assert "compare" in run(cwd=tmp_path, code=2).stdout


def test_without_the_extra_it_says_what_to_install(tmp_path):
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError(\"No module named 'typer'\", name='typer')\n")
    done = run("methods", cwd=tmp_path, code=2, environment={"PYTHONPATH": str(tmp_path)})
    assert 'pip install "equipoise[bench]"' in done.stderr
    assert "Traceback" not in done.stderr


DIVERGING = textwrap.dedent(
    """
    import torch
    from torch import nn
    from equipoise.bench.problems import Problem, Regression, Splits, Tensors, Training


    class Diverging(Problem):
        name, description = "diverging", "squared errors that grow without bound at a large learning rate"
        tasks = (Regression("a"), Regression("b"))

        def data(self, quick=False):
            x = torch.linspace(-1, 1, 64)[:, None]
            return Splits(*(Tensors(input=x, a=x[:, 0], b=-x[:, 0]) for _ in range(3)))

        def model(self):
            return Both()

        def training(self, quick=False):
            return Training(epochs=2, batch_size=16)


    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(1, 2)

        def forward(self, x):
            y = self.line(x).pow(5)
            return {"a": y[:, 0], "b": y[:, 1]}


    problem = Diverging()
    """
)


def test_a_method_that_diverges_is_told_and_the_rest_goes_on(tmp_path):
    (tmp_path / "mine.py").write_text(DIVERGING)
    arguments = ["compare", "mine.py:problem", "--methods", "ew,mao", "--seeds", "1", "--out", "out"]
    output = run(*arguments, "--set", "mao.lr=1e9", cwd=tmp_path).stdout
    assert "mao failed in 1 of 1 runs" in output
    statuses = {record["method"]: record["status"] for record in runs_in(tmp_path / "out")}
    assert statuses == {"single:a": "finished", "single:b": "finished", "ew": "finished", "mao": "diverged"}


def test_methods_that_all_fail_are_no_success(tmp_path):
    (tmp_path / "mine.py").write_text(DIVERGING)
    arguments = ["compare", "mine.py:problem", "--methods", "ew", "--seeds", "1", "--out", "out[x]"]
    output = run(*arguments, "--set", "ew.lr=1e9", cwd=tmp_path, code=1).stdout
    assert "ew failed in 1 of 1 runs" in output
    (tmp_path / "out[x]" / "settings.json").write_text("[1, 2]")
    done = run(*arguments, cwd=tmp_path, code=2)
    assert "settings.json is not a comparison's" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_problem_that_was_edited_is_another(tmp_path):
    (tmp_path / "mine.py").write_text(DIVERGING)
    arguments = ["compare", "mine.py:problem", "--methods", "ew", "--seeds", "1", "--out", "out"]
    run(*arguments, cwd=tmp_path)
    (tmp_path / "mine.py").write_text(DIVERGING.replace("pow(5)", "pow(3)"))
    done = run(*arguments, cwd=tmp_path, code=2)
    assert "the file of mine.py:problem was another one there" in done.stderr


def test_where_all_baselines_diverge_gains_are_over_equal_weights(tmp_path):
    (tmp_path / "mine.py").write_text(DIVERGING)
    arguments = ["compare", "mine.py:problem", "--methods", "mao", "--seeds", "1", "--out", "out"]
    output = run(*arguments, "--set", "single.lr=1e9", cwd=tmp_path).stdout
    statuses = {record["method"]: record["status"] for record in runs_in(tmp_path / "out")}
    assert statuses == {"single:a": "diverged", "single:b": "diverged", "ew": "finished", "mao": "finished"}
    assert "over equal weights of the same seed, as no task's single-task runs went through" in " ".join(output.split())
    assert list(pd.read_csv(tmp_path / "out" / "table.csv")["Δm over ew mean"].round(6))[1] == 0
