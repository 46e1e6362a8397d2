"""What is said while a comparison goes on, and how long it will take."""

import io
import multiprocessing
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from bench.experiment.comparisons import Errors
from rich.console import Console

from equipoise.bench.experiment.estimate import Estimate, in_words
from equipoise.bench.experiment.processes import start_process
from equipoise.bench.experiment.progress import ConsoleProgress
from equipoise.bench.experiment.trial import Run


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def record(method, seconds, seed=0, status="finished"):
    found = {
        "run": f"{method}-{seed}",
        "method": method,
        "seed": seed,
        "lr": 1e-3,
        "status": status,
        "epochs": [{}] * 4,
        "seconds": seconds,
    }
    return found if status == "finished" else {**found, "message": "a loss became nan"}


def test_what_is_left_is_each_methods_own_time_over_the_workers():
    """2 methods + 2 baselines, 3 seeds, 4 epochs each; an epoch of ew takes 2 s, of pcgrad 6 s, of a baseline 1 s."""
    clock = Clock()
    estimate = Estimate(["single:a", "single:b", "ew", "pcgrad"], 2, 4, clock)
    assert estimate.left(12, 1) is None
    for method, seconds in (("single:a", 4), ("single:b", 4), ("ew", 8), ("pcgrad", 24)):
        estimate.finished(record(method, seconds))
    assert estimate.left(12, 1) == pytest.approx(2 * (4 + 4 + 8 + 24))
    assert estimate.left(12, 4) == pytest.approx(24)  # no sooner than the longest run that waits
    running = {Run("ew-1", "ew"): 1}
    estimate.under_way(running)
    assert estimate.left(12, 1) == pytest.approx(80 - 2)
    assert estimate.first() == pytest.approx(6)
    clock.now += 1
    assert estimate.left(12, 1) == pytest.approx(80 - 3)


def test_what_a_method_takes_of_which_nothing_is_known_follows_from_its_passes():
    clock = Clock()
    estimate = Estimate(["single:a", "single:b", "ew", "pcgrad"], 2, 4, clock)
    estimate.finished(record("single:a", 4))
    estimate.finished(record("single:b", 40, status="diverged"))  # says nothing about time
    assert estimate.left(4, 1) == pytest.approx(4 * 1 + 4 * 2)


def test_epochs_under_way_are_measured_from_the_first_that_is_seen():
    clock = Clock()
    estimate = Estimate(["ew"], 2, 10, clock)
    fresh, resumed = Run("ew-0", "ew"), Run("ew-1", "ew")
    estimate.under_way({fresh: 0})
    assert estimate.first() is estimate.left(2, 2) is None
    clock.now = 3.0
    estimate.under_way({fresh: 1})
    assert estimate.first() == pytest.approx(27)
    estimate = Estimate(["ew"], 2, 10, clock)
    estimate.under_way({resumed: 0})
    clock.now = 4.0
    estimate.under_way({resumed: 8})  # 7 of them came from a checkpoint
    assert estimate.first() is None
    clock.now = 6.0
    estimate.under_way({resumed: 9})
    assert estimate.first() == pytest.approx(2)


def test_after_a_resume_recorded_times_count_and_not_how_long_workers_take_to_start():
    """Of a run that is gone on with the first epoch begins long after the run is seen; what is recorded is better."""
    clock = Clock()
    estimate, resumed = Estimate(["ew"], 2, 10, clock), Run("ew-1", "ew")
    estimate.under_way({resumed: 7})  # its worker loads the data
    clock.now = 20.0
    estimate.under_way({resumed: 8})
    assert estimate.first() is None
    clock.now = 22.0
    estimate.under_way({resumed: 9})
    assert estimate.first() == pytest.approx(2)
    estimate = Estimate(["ew"], 2, 4, clock)
    estimate.finished(record("ew", 4))
    estimate.under_way({resumed: 0})
    clock.now += 20
    estimate.under_way({resumed: 1})
    assert estimate.first() == pytest.approx(3)


def test_nothing_is_foretold_before_a_worker_has_taken_a_run():
    written = io.StringIO()
    with ConsoleProgress(Console(file=written), Errors(("a",)), ["ew"], 2) as progress:
        progress.start(3, [record("ew", 120)], 4)
        progress.state(3, {})
        assert "first results" not in written.getvalue()
        progress.state(3, {Run("ew-1", "ew"): 2})
    assert written.getvalue().splitlines()[1:] == [
        "2 runs, starting 2 workers.",
        "The first results in about 60 s, all in about 2 min.",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.1, "5 s"), (18, "20 s"), (88, "90 s"), (90, "2 min"), (5000, "83 min"), (5400, "2 h"), (1e6, "278 h")],
)
def test_times_in_words(seconds, words):
    assert in_words(seconds) == f"about {words}"


def test_a_log_file_has_a_line_a_run_and_what_is_left():
    written = io.StringIO()
    with ConsoleProgress(Console(file=written, width=60), Errors(("a",)), ["ew"], 2) as progress:
        progress.start(4, [record("single:a", 120)], 4)
        progress.state(4, {Run("single:a-1", "single:a"): 2})
        progress.run({**record("single:a", 120, 1), "test": {"a": {"MSE": 0.5}}})
        progress.run(record("ew", 0, 0, "diverged"))
        progress.run(record("ew", 240, 1))
    assert written.getvalue().splitlines() == [
        "1 of 4 runs are in the folder already.",
        "3 runs, starting 2 workers.",
        "The first results in about 60 s, all in about 2 min.",
        "[2/4] single:a, seed 1, lr 0.001 (120.0 s): a MSE 0.500; about 2 min left",
        "[3/4] ew, seed 0, lr 0.001 (diverged: a loss became nan); about 2 min left",
        "[4/4] ew, seed 1, lr 0.001 (240.0 s)",
    ]


def test_nothing_that_is_done_is_told_as_to_be_done():
    written = io.StringIO()
    with ConsoleProgress(Console(file=written), Errors(("a",)), ["ew"], 1) as progress:
        progress.start(1, [record("single:a", 120)], 4)
    assert written.getvalue().splitlines() == ["1 of 1 run is in the folder already."]


def test_an_interrupt_does_not_reach_a_process_that_starts():
    """It is blocked there from the first instruction on; here it waits until the process has all it needs."""
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0,))

    def start():
        os.kill(os.getpid(), signal.SIGINT)
        process.start()
        status = Path(f"/proc/{process.pid}/status")
        if status.exists():
            (blocked,) = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("SigBlk")]
            assert int(blocked, 16) & 1 << signal.SIGINT - 1

    with pytest.raises(KeyboardInterrupt):
        start_process(SimpleNamespace(start=start))
    process.join()
    assert process.exitcode == 0
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
