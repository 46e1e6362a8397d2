"""Runs that are interrupted go on bit for bit; what they write beside their record is whole."""

from dataclasses import replace

import pytest
from recorded import POTENTIALS, REFERENCE, TRIAL, Recording, Stop, interrupted, run

from equipoise.bench.experiment.training import MIN_SAMPLES, Outputs, train
from equipoise.monitor import read_monitor


def stop_at(epoch, told):
    told.append(epoch)
    raise Stop


RESUMED = (
    "ew",
    "rlw",
    "uw",
    "dwa",
    "rema",
    "dtp",
    "amtl",
    "imtl",
    "famo",
    "gradnorm",
    "graddrop",
    "mao",
    "coba",
    "single:b",
)


@pytest.mark.parametrize("method", RESUMED)
@pytest.mark.parametrize("step", [7, 13])
def test_a_run_goes_on_from_its_last_epoch_bit_for_bit(method, step, tmp_path):
    """Dropout, augmentation, schedule, the method's own random state and the best epoch's weights: all go on."""
    given = {} if method.startswith("single:") else {"reference": REFERENCE, "potentials": POTENTIALS}
    if method == "coba":
        given["hyperparameters"] = {"warmup": 4, "history": 6}
    trial = replace(TRIAL, method=method, schedule="cosine", **given)
    problem = Recording()
    whole = train(problem, problem.data(), trial)
    outputs = Outputs(tmp_path / "checkpoint.pt")
    interrupted(Recording(), trial, outputs, step)
    resumed = Recording()
    epochs = []
    record = train(resumed, resumed.data(), trial, lambda epoch, score: epochs.append(epoch), outputs=outputs)
    assert epochs == list(range(step // 5 + 1, 4))
    assert resumed.seen == problem.seen[-len(resumed.seen) :]
    assert len(resumed.seen) == 5 * len(epochs)
    del record["seconds"], whole["seconds"]
    assert record == whole


def test_a_checkpoint_of_another_run_is_left_alone(tmp_path):
    outputs = Outputs(tmp_path / "checkpoint.pt")
    interrupted(Recording(), TRIAL, outputs, 7)
    problem, expected = run(lr=2e-2)
    record = train(problem, problem.data(), replace(TRIAL, lr=2e-2, reference=REFERENCE, potentials=POTENTIALS))
    again = train(
        problem,
        problem.data(),
        replace(TRIAL, lr=2e-2, reference=REFERENCE, potentials=POTENTIALS),
        outputs=outputs,
    )
    for found in (record, again, expected):
        del found["seconds"]
    assert again == record == expected
    interrupted(Recording(), TRIAL, outputs, 7)
    for origin, first in (("", 2), ("another problem", 1)):
        epochs = []
        problem = Recording()
        place = replace(outputs, origin=origin)
        with pytest.raises(Stop):
            train(problem, problem.data(), TRIAL, lambda epoch, score, told=epochs: stop_at(epoch, told), outputs=place)
        assert epochs == [first]


def test_a_checkpoint_is_whole_or_not_at_all(tmp_path, monkeypatch):
    outputs = Outputs(tmp_path / "checkpoint.pt")
    interrupted(Recording(), TRIAL, outputs, 7)
    before = outputs.checkpoint.read_bytes()

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        train(Recording(), Recording().data(), TRIAL, outputs=outputs)
    assert outputs.checkpoint.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize(("method", "every"), [("ew", 50), ("mao", 2), ("pcgrad", 50)])
def test_the_monitor_changes_nothing_and_takes_enough_samples(method, every, tmp_path):
    trial = replace(TRIAL, method=method, epochs=6, reference=REFERENCE)
    problem = Recording()
    plain = train(problem, problem.data(), trial)
    outputs = Outputs(monitor=tmp_path / "monitor" / "ew-0.jsonl", monitor_every=every)
    watched = train(problem, problem.data(), trial, outputs=outputs)
    del plain["seconds"], watched["seconds"]
    assert watched == plain
    recording = read_monitor(outputs.monitor)
    assert recording.tasks == ["a", "b"]
    assert recording.layers == ["trunk.0", "a", "b"]
    assert recording.steps == list(range(0, 30, min(every, 30 // MIN_SAMPLES)))


def test_a_monitored_run_that_goes_on_has_every_sample_once(tmp_path):
    trial = replace(TRIAL, epochs=5, reference=REFERENCE)
    whole = Outputs(monitor=tmp_path / "whole.jsonl", monitor_every=2)
    train(Recording(), Recording().data(), trial, outputs=whole)
    cut = Outputs(tmp_path / "checkpoint.pt", monitor=tmp_path / "cut.jsonl", monitor_every=2)
    interrupted(Recording(), trial, cut, 13)
    train(Recording(), Recording().data(), trial, outputs=cut)
    found, expected = (read_monitor(outputs.monitor) for outputs in (cut, whole))
    assert found.steps == expected.steps == list(range(25))
    for quantity in ("gradient", "contribution"):  # to rounding: it chooses anew which gradient it gets by subtraction
        for task, values in expected.by_step(quantity).items():
            assert found.by_step(quantity)[task] == pytest.approx(values, rel=1e-5)


@pytest.mark.parametrize("before", [0, 1])
def test_a_run_that_goes_on_may_be_watched_otherwise(before, tmp_path):
    trial = replace(TRIAL, epochs=9, reference=REFERENCE)
    outputs = Outputs(tmp_path / "checkpoint.pt", monitor=tmp_path / "monitor.jsonl", monitor_every=2)
    first = replace(outputs, monitor_every=before) if before else replace(outputs, monitor=None)
    interrupted(Recording(), trial, first, 13)
    record = train(Recording(), Recording().data(), trial, outputs=outputs)
    assert record["status"] == "finished"
    recording = read_monitor(outputs.monitor)
    assert recording.every == 2
    assert len(recording.steps) == 18  # of 45 - 10 steps; the first of them is sampled


def test_a_run_says_how_much_of_the_update_each_task_had(tmp_path):
    """As replays of methods without weights need it; also of a run that goes on."""
    trial = replace(TRIAL, method="mao", epochs=4, reference=REFERENCE, shares=True)
    outputs = Outputs(tmp_path / "checkpoint.pt", monitor=tmp_path / "monitor.jsonl")
    interrupted(Recording(), trial, outputs, 13)
    record = train(Recording(), Recording().data(), trial, outputs=outputs)
    assert record["shares"] == read_monitor(outputs.monitor).shares()
    assert sum(record["shares"].values()) == pytest.approx(1)
