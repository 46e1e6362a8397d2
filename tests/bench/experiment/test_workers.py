"""Workers of their own on one study: killed, interrupted, too early, on a PostgreSQL server and on SQLite."""

import multiprocessing
import os
import platform
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections import Counter
from contextlib import closing

import pandas as pd
import pytest
import torch
from bench.experiment.postgres import postgresql
from optuna.trial import TrialState

from equipoise.bench.experiment import execution as execution_module
from equipoise.bench.experiment import store as store_module
from equipoise.bench.experiment.comparison import Comparison, load_result
from equipoise.bench.experiment.database import sqlite_url
from equipoise.bench.experiment.execution import DONE, STATE, WorkerError, serve
from equipoise.bench.experiment.planning import Planner
from equipoise.bench.experiment.processes import NAME, UNGUARDED, GuardError, check_guard
from equipoise.bench.experiment.settings import Settings
from equipoise.bench.experiment.store import Store
from equipoise.bench.experiment.tables import to_frame
from equipoise.bench.experiment.view import key_of

PROBLEM = """
import time
import torch
from torch import nn
from equipoise.bench.problems import Problem, Regression, Splits, Tensors, Training


class Slow(Problem):
    name, description = "slow", "a line, a step of which takes its time"
    tasks = (Regression("a"), Regression("b"))

    def data(self, quick=False):
        generator = torch.Generator().manual_seed(0)
        splits = []
        for size in (64, 32, 32):
            x = torch.randn(size, 4, generator=generator)
            splits.append(Tensors(input=x, a=x.sum(1), b=30 * x[:, 0] * x[:, 1]))
        return Splits(*splits)

    def model(self):
        return Both()

    def training(self, quick=False):
        return Training(epochs=4, batch_size=16)


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.2), nn.ReLU())
        self.a, self.b = nn.Linear(16, 1), nn.Linear(16, 1)

    def forward(self, x):
        if self.training:
            time.sleep(SECONDS)
        features = self.trunk(x)
        return {"a": self.a(features)[:, 0], "b": self.b(features)[:, 0]}


problem = Slow()
"""


class Quiet:
    """Tells nobody."""

    def start(self, runs, done, epochs): ...
    def state(self, runs, begun): ...
    def run(self, record): ...
    def costs(self): ...


def settings(place, seconds, **changes):
    (place / "slow.py").write_text(textwrap.dedent(PROBLEM).replace("SECONDS", str(seconds)))
    given = {"problem": f"{place / 'slow.py'}:problem", "methods": ("ew", "ema", "mao"), "seeds": 3, "quick": False}
    given |= {"epochs": 4, "batch_size": 16, "evaluation_batch_size": 32, "lr": 1e-2, "weight_decay": 0.0}
    return Settings(**{**given, "schedule": "cosine", **changes})


def start_worker(place, storage, *arguments):
    """A worker in this folder, where it keeps what is under way."""
    command = [sys.executable, "-m", "equipoise", "worker", "--storage", storage, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=place
    )


def until(condition, processes=(), seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    return found


def under_way(store, process):
    """The trial that a worker process has made an epoch of."""
    for trial in store.view().trials:
        mine = str(trial.user_attrs.get("worker")).endswith(f":{process.pid}")
        if mine and trial.state is TrialState.RUNNING and trial.intermediate_values:
            return trial
    return None


def numbers(result):
    """The table without what a clock says."""
    frame = to_frame(result)
    return frame[[name for name in frame if not any(word in name for word in ("ms per", "time", "MB", "memory"))]]


def outcomes(result):
    return {(r["method"], r["seed"], r["lr"]): (r["epochs"], r["selected"], r["test"]) for r in result.records}


@pytest.mark.slow
def test_four_workers_on_postgresql_and_one_killed_give_what_one_worker_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "GRACE_SECONDS", 8)
    asked = settings(tmp_path, 0.06)
    with postgresql() as storage:
        workers = [start_worker(tmp_path, storage) for _ in range(4)]  # before there is a study
        try:
            comparison = Comparison(asked, tmp_path / "four", storage)
            killed = []

            class Killing(Quiet):
                def state(self, runs, begun):
                    assert all(worker.poll() is None for worker in workers[1:])
                    if not killed and (trial := under_way(comparison.store, workers[0])):
                        workers[0].kill()
                        workers[0].wait()
                        killed.append(trial)

            four = comparison.run(0, 1, Killing())
            for worker in workers[1:]:
                output, _ = worker.communicate(timeout=60)  # they end: all is done
                assert worker.returncode == 0, output
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()
        trials = comparison.store.view().trials
    (victim,) = killed
    states = {trial.number: trial.state for trial in trials}
    assert states[victim.number] is TrialState.FAIL
    again = [trial for trial in trials if key_of(trial) == key_of(victim) and trial.number != victim.number]
    assert [trial.state for trial in again] == [TrialState.COMPLETE]
    counted = Counter(key_of(trial) for trial in trials if trial.state is TrialState.COMPLETE)
    assert set(counted.values()) == {1}
    assert len(counted) == 15
    assert Counter(states.values()) == {TrialState.COMPLETE: 15, TrialState.FAIL: 1}
    assert len({trial.user_attrs["worker"] for trial in trials}) == 4
    one = Comparison(asked, tmp_path / "one").run(1, 1, Quiet())
    pd.testing.assert_frame_equal(numbers(four), numbers(one), check_exact=True)
    assert outcomes(four) == outcomes(one)
    assert outcomes(load_result(tmp_path / "four")) == outcomes(one)


def test_a_worker_that_is_interrupted_gives_its_run_back(tmp_path):
    asked = settings(tmp_path, 0.1, methods=("ew",), seeds=1, epochs=20)
    comparison = Comparison(asked, tmp_path / "out")
    comparison.store.set("settings", asked.to_json())
    comparison.store.set("state", "open")
    runs = plan_of(comparison)
    comparison.store.enqueue(runs)
    storage = sqlite_url(tmp_path / "out" / "study.db")
    for end in (signal.SIGINT, signal.SIGTERM):
        worker = start_worker(tmp_path, storage)
        trial = until(lambda worker=worker: under_way(comparison.store, worker), [worker])
        worker.send_signal(end)
        output, _ = worker.communicate(timeout=60)
        assert worker.returncode == 130, output
        assert "Traceback" not in output
        assert "in the queue again" in output
        states = [found.state for found in comparison.store.view().trials]
        assert states == [TrialState.WAITING] * len(runs)
        assert trial.number == 0


def test_an_interrupt_inside_of_an_executed_string_can_be_caught_for_good(tmp_path):
    """Of a plain KeyboardInterrupt there Python remembers to end by the signal: dataclasses are made by `exec`."""
    program = """
        import signal, sys
        from equipoise.bench.interrupts import watch_interrupts
        with watch_interrupts() as interrupted:
            try:
                exec("signal.raise_signal(signal.SIGINT)")
            except KeyboardInterrupt:
                sys.exit(130 if interrupted.is_set() else 1)
    """
    (tmp_path / "interrupted.py").write_text(textwrap.dedent(program))
    command = [sys.executable, "-m", "interrupted"]  # as `python -m equipoise`; a file's exit code always comes through
    assert subprocess.run(command, cwd=tmp_path, timeout=100).returncode == 130


def plan_of(comparison):
    """The definitions that the comparison would enqueue first."""
    found = Planner(comparison.settings, comparison.problem.tasks, {}).plan({})
    return [comparison._definition(trial) for trial in found.missing]


def test_a_worker_may_end_with_the_queue(tmp_path, monkeypatch):
    asked = settings(tmp_path, 0, methods=("ew",), seeds=1)
    storage = sqlite_url(tmp_path / "out" / "study.db")
    too_early = start_worker(tmp_path, storage, "--once-empty")
    output, _ = too_early.communicate(timeout=60)
    assert too_early.returncode == 2
    assert output.startswith("error: There is no study")
    comparison = Comparison(asked, tmp_path / "out")
    comparison.store.enqueue(plan_of(comparison))
    worker = start_worker(tmp_path, storage, "--once-empty", "--study", "out")
    output, _ = worker.communicate(timeout=60)
    assert worker.returncode == 0, output
    assert "single:b, seed 0, lr 0.01" in output
    assert [trial.state for trial in comparison.store.view().trials] == [TrialState.COMPLETE] * 2
    monkeypatch.setattr(execution_module, "versions", lambda device: {"torch": torch.__version__, "device": "a GPU"})
    result = comparison.run(1, 1, Quiet())
    assert [record["method"] for record in result.records] == ["single:a", "single:b", "ew"]
    for found in (result, load_result(tmp_path / "out")):
        assert found.versions["torch"] == torch.__version__
        assert found.versions["device"] == f"mixed: {platform.machine()}, a GPU"


def test_a_machine_without_the_problem_leaves_the_runs_alone(tmp_path):
    asked = settings(tmp_path, 0, methods=("ew",), seeds=1)
    comparison = Comparison(asked, tmp_path / "out")
    comparison.store.enqueue(plan_of(comparison))
    (tmp_path / "slow.py").unlink()
    worker = start_worker(tmp_path, comparison.store.url)
    output, _ = worker.communicate(timeout=60)
    assert worker.returncode == 2
    assert "no file" in output
    assert "Traceback" not in output
    assert [trial.state for trial in comparison.store.view().trials] == [TrialState.WAITING] * 2


def test_local_worker_processes_that_are_killed_are_replaced(tmp_path):
    asked = settings(tmp_path, 0.05, seeds=1)
    comparison = Comparison(asked, tmp_path / "out")
    killed = []

    class Killing(Quiet):
        def state(self, runs, begun):
            for trial in comparison.store.view().trials:
                if len(killed) < 2 and trial.state is TrialState.RUNNING and trial.intermediate_values:
                    process = int(trial.user_attrs["worker"].rpartition(":")[2])
                    if process not in killed and process != os.getpid():
                        os.kill(process, signal.SIGKILL)
                        killed.append(process)

    result = comparison.run(2, 1, Killing())
    assert len(killed) == 2
    trials = comparison.store.view().trials
    victims = [trial for trial in trials if trial.state is TrialState.FAIL]
    assert len(victims) == 2
    for victim in victims:  # the run went on after its last epoch
        (again,) = [trial for trial in trials if key_of(trial) == key_of(victim) and trial not in victims]
        assert min(again.intermediate_values) > max(victim.intermediate_values)
    assert len(result.records) == 5
    assert all(record["status"] == "finished" for record in result.records)
    assert outcomes(result) == outcomes(Comparison(asked, tmp_path / "whole").run(1, 1, Quiet()))


def end_by_itself(*arguments):
    os._exit(3)


def be_killed(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("process", "words"),
    [(end_by_itself, "ended with exit code 3"), (be_killed, "3 worker processes were killed before .* by signal 9")],
)
def test_local_worker_processes_that_cannot_work_end_the_comparison(tmp_path, monkeypatch, process, words):
    monkeypatch.setattr(execution_module, "_work_here", process)
    comparison = Comparison(settings(tmp_path, 0), tmp_path / "out")
    with pytest.raises(WorkerError, match=words):
        comparison.run(2, 1, Quiet())


def test_a_comparison_that_was_killed_goes_on_at_once_from_the_last_epoch(tmp_path):
    """Not after the grace period: the process that had the run is known to be gone."""
    asked = settings(tmp_path, 0.05, methods=("ew",), seeds=1, epochs=10)
    comparison = Comparison(asked, tmp_path / "out")
    comparison.store.enqueue(plan_of(comparison))
    worker = start_worker(tmp_path, comparison.store.url, "--checkpoints", str(tmp_path / "out" / "checkpoints"))
    until(lambda: under_way(comparison.store, worker), [worker])
    worker.kill()
    worker.wait()
    (victim,) = [trial for trial in comparison.store.view().trials if trial.state is TrialState.RUNNING]
    started = time.monotonic()
    others = tmp_path / "out" / "checkpoints" / "of-another-study"
    others.mkdir()
    result = comparison.run(1, 1, Quiet())
    assert time.monotonic() - started < store_module.GRACE_SECONDS / 2
    (again,) = [t for t in comparison.store.view().trials if key_of(t) == key_of(victim) and t.number != victim.number]
    assert min(again.intermediate_values) > max(victim.intermediate_values)
    assert outcomes(result) == outcomes(Comparison(asked, tmp_path / "whole").run(1, 1, Quiet()))
    assert list((tmp_path / "out" / "checkpoints").iterdir()) == [others]


def test_baselines_that_diverge_do_not_end_the_comparison(tmp_path):
    """Here every run does: what is left is said, and workers know that there will be no more."""
    comparison = Comparison(settings(tmp_path, 0, methods=("ew",), seeds=1, lr=1e15), tmp_path / "out")
    result = comparison.run(1, 1, Quiet())
    assert [(record["method"], record["status"]) for record in result.records] == [
        ("single:a", "diverged"),
        ("single:b", "diverged"),
        ("ew", "diverged"),
    ]
    assert comparison.store.get(STATE) == DONE
    assert (tmp_path / "out" / "runs.jsonl").exists()
    serve(comparison.store, tmp_path / "checkpoints", wait=True, on_run=lambda record: None)  # ends


def test_nothing_is_pickled(tmp_path):
    asked = settings(tmp_path, 0, methods=("ew",), seeds=1)
    comparison = Comparison(asked, tmp_path / "out")
    comparison.run(1, 1, Quiet())
    trials = Store(comparison.store.url, "out").view().trials
    assert sorted(trial.user_attrs["record"]["method"] for trial in trials) == ["ew", "single:a", "single:b"]
    with closing(sqlite3.connect(tmp_path / "out" / "study.db")) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        cells = [cell for table in tables for row in database.execute(f'SELECT * FROM "{table}"') for cell in row]
    assert any(isinstance(cell, str) and '"method": "ew"' in cell for cell in cells)
    assert not any(isinstance(cell, bytes) for cell in cells)


@pytest.mark.slow
def test_a_server_that_goes_away_ends_a_worker_in_one_line(tmp_path):
    asked = settings(tmp_path, 0.05, methods=("ew",), seeds=1, epochs=10)
    with postgresql() as storage:
        comparison = Comparison(asked, tmp_path / "out", storage)
        comparison.store.enqueue(plan_of(comparison))
        worker = start_worker(tmp_path, storage, "--checkpoints", str(tmp_path / "checkpoints"))
        until(lambda: under_way(comparison.store, worker), [worker])
    output, _ = worker.communicate(timeout=60 + store_module.GRACE_SECONDS)  # it tries again for so long
    assert worker.returncode == 2, output
    assert "Traceback" not in output
    assert "cannot be used" in output.splitlines()[-1]
    assert list((tmp_path / "checkpoints").rglob("checkpoint.pt"))


UNGUARDED_SCRIPT = """
import equipoise.bench

if __name__ != "__main__":
    print("begun anew")
equipoise.bench.compare("mine.py:problem", "ew", seeds=1, workers=2, out="out", progress=False)
"""


def test_a_script_without_a_guard_is_told_so_in_one_line(tmp_path):
    """Its workers import it anew and would compare themselves: they end without a word, and it says why."""
    (tmp_path / "mine.py").write_text(PROBLEM.replace("SECONDS", "0"))
    (tmp_path / "script.py").write_text(UNGUARDED_SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.splitlines()[-1].startswith(
        "equipoise.bench.experiment.processes.GuardError: Worker processes import the script anew, which calls "
        '`compare` outside of `if __name__ == "__main__":`. Put the call below that line'
    )
    assert "begun anew" in done.stdout


def test_another_spawned_process_is_told_of_the_guard(monkeypatch):
    process = multiprocessing.current_process()
    monkeypatch.setattr(process, "_inheriting", True, raising=False)
    with pytest.raises(GuardError, match="if __name__"):
        check_guard()
    monkeypatch.setattr(process, "_name", NAME)
    with pytest.raises(SystemExit) as ended:
        check_guard()
    assert ended.value.code == UNGUARDED
