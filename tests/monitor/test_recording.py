"""What is made of samples, and their way into a file and back."""

import json
import math

import pytest
from contract.registry import make
from networks import batch

import equipoise as eq
from equipoise.monitor import Recording, read_monitor


def record(step, a, b, cosine=0.5, weight=1.0):
    """A sample of the tasks a and b on two shared layers and b's head; None for an absent task."""
    none = [None, None, None]
    return {
        "step": step,
        "weights": {"a": None if a is None else weight, "b": None if b is None else 1.0},
        "gradient": {"a": none if a is None else [a[0], a[1], None], "b": none if b is None else list(b)},
        "contribution": {
            "a": none if a is None else [a[0] / 10, a[1] / 10, None],
            "b": none if b is None else [value / 10 for value in b],
        },
        "cosines": [[None, None]] * 2 if None in (a, b) else [[1.0, cosine], [cosine, 1.0]],
    }


@pytest.fixture
def recording():
    records = [record(0, (1, 3), (4, 8, 100), cosine=-0.5), record(5, None, (2, 6, 1)), record(10, (3, 5), (6, 1, 1))]
    return Recording(["a", "b"], ["one", "two", "head"], 5, records)


def test_means(recording):
    assert recording.steps == [0, 5, 10]
    assert recording.shared_layers == ["one", "two"]
    assert recording.by_layer("gradient") == {"a": [2, 4], "b": [4, 5]}
    assert recording.by_step("gradient") == {"a": [2, None, 4], "b": [6, 4, 3.5]}
    assert recording.by_layer("contribution")["b"] == pytest.approx([0.4, 0.5])
    assert recording.weights() == {"a": [1, None, 1], "b": [1, 1, 1]}
    assert recording.mean_cosines() == [[1, 0], [0, 1]]
    assert recording.shares() == pytest.approx({"a": 3 / 7.5, "b": 4.5 / 7.5})
    assert recording.imbalance() == pytest.approx(1.5)


def test_extremes():
    assert math.isnan(Recording(["a", "b"], ["one"], 5).imbalance())
    silent = Recording(["a", "b"], ["one", "two", "head"], 5, [record(0, (0, 0), (1, 1, 1))])
    assert silent.imbalance() == math.inf
    alone = Recording(["b"], ["one", "two", "head"], 5, [record(0, None, (1, 2, 3))])
    assert alone.shared_layers == ["one", "two", "head"]
    assert alone.imbalance() == 1
    with pytest.raises(ValueError, match="quantity must be one of 'gradient', 'contribution', found 'weights'"):
        silent.by_layer("weights")


def test_equal_weights_are_unbalanced_and_mao_is_not():
    imbalance = {}
    for name in ("ew", "mao"):
        model, method = make(name)
        monitor = eq.BalanceMonitor(method, model, every=5)
        for index in range(100):
            method.backward(model.losses(batch(index, size=32)))
            method.step()
            method.zero_grad()
        imbalance[name] = monitor.recording.imbalance()
    assert imbalance["ew"] > 100
    assert imbalance["mao"] < 1.5


def train(path, steps, name="ema", **options):
    """Trains, and writes to a file; returns the monitor."""
    model, method = make(name)
    monitor = eq.BalanceMonitor(method, model, every=2, writers=path, **options)
    for index in range(steps):
        tasks = "ac" if index == 2 else "abc"
        method.backward(model.losses(batch(index), tasks))
        method.step()
        method.zero_grad()
    return monitor


KEYS = ("step", "weights", "gradient", "contribution", "cosines", "layer_cosines")


def test_a_file_round_trips(tmp_path):
    path = tmp_path / "monitor" / "ema-0.jsonl"
    monitor = train(path, 7)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {
        "format": 1,
        "tasks": ["a", "b", "c"],
        "layers": ["trunk", "frozen", "branch", "own", "heads.a", "heads.b", "heads.c", "unused"],
        "every": 2,
    }
    assert [list(line) for line in lines[1:]] == [[*KEYS]] * 4
    assert lines[2]["weights"]["b"] is None
    assert lines[2]["gradient"]["b"] == [None] * 8
    assert lines[2]["cosines"][1] == [None] * 3
    assert lines[1]["gradient"]["c"][4] is None
    assert read_monitor(str(path)) == monitor.recording


@pytest.mark.parametrize("cut", [1, 10, 200])
def test_a_cut_last_line_is_left_out_and_written_over(tmp_path, cut):
    path = tmp_path / "ema.jsonl"
    monitor = train(path, 6)
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    assert read_monitor(path).records == monitor.records[:2]
    model, method = make("ema")
    again = eq.BalanceMonitor(method, model, every=2, writers=path)
    again.load_state_dict({"step": 4})
    method.backward(model.losses(batch(0)))
    method.step()
    found = read_monitor(path)
    assert found.steps == [0, 2, 4]
    assert found.records[2] == again.records[0]


def test_of_a_step_taken_anew_the_later_sample_counts(tmp_path):
    path = tmp_path / "ema.jsonl"
    train(path, 8)
    model, method = make("ew")
    again = eq.BalanceMonitor(method, model, every=2, writers=path)
    again.load_state_dict({"step": 3})
    for index in range(2):
        method.backward(model.losses(batch(index)))
        method.step()
        method.zero_grad()
    assert read_monitor(path).steps == [0, 2, 4]
    assert read_monitor(path).records[-1] == again.records[-1]


def test_a_cut_header_is_written_anew(tmp_path):
    path = tmp_path / "ema.jsonl"
    path.write_text('{"format": 1, "tas')
    monitor = train(path, 3)
    assert read_monitor(path) == monitor.recording


def test_another_recording_is_not_appended_to(tmp_path):
    path = tmp_path / "ema.jsonl"
    train(path, 1)
    content = path.read_text()
    model, method = make("ema", tasks=("a", "b"))
    with pytest.raises(ValueError, match="another recording"):
        eq.BalanceMonitor(method, model, every=2, writers=path)
    assert path.read_text() == content
    eq.BalanceMonitor(method, model, every=2)  # not attached then


@pytest.mark.parametrize("content", ["", "step,weight\n", '{"format": 2}\n', "[1]\n"])
def test_what_is_no_recording_is_said(tmp_path, content):
    path = tmp_path / "other.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"other\.csv"):
        read_monitor(path)


def test_damage_in_the_middle_is_said(tmp_path):
    path = tmp_path / "ema.jsonl"
    train(path, 4)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:50], lines[2], ""]))
    with pytest.raises(ValueError, match="line 2: expected JSON"):
        read_monitor(path)


def test_what_is_not_finite_is_null_in_a_file(tmp_path):
    path = tmp_path / "ew.jsonl"
    model, method = make("ew")
    monitor = eq.BalanceMonitor(method, model, every=1, writers=path)
    losses = model.losses(batch(0))
    losses["a"] = losses["a"] + (0 * model.trunk.weight).sum().sqrt()  # whose derivative at 0 is infinite
    method.backward(losses)
    method.step()
    assert not math.isfinite(monitor.records[0]["gradient"]["a"][0])
    found = read_monitor(path).records[0]
    assert found["gradient"]["a"][0] is None
    assert found["gradient"]["c"] == monitor.records[0]["gradient"]["c"]
    assert None not in found["gradient"]["c"][:1]


def test_metrics_round_trip_and_steps_taken_anew_have_metrics_anew(tmp_path):
    path = tmp_path / "ema.jsonl"
    monitor = train(path, 4)
    monitor.log_metrics({"a": 0.5, "c": 2})
    assert monitor.recording.metrics == [{"step": 4, "metrics": {"a": 0.5, "c": 2.0}}]
    assert read_monitor(path) == monitor.recording
    with pytest.raises(ValueError, match="Metrics are of the tasks a, b, c; found 'left'"):
        monitor.log_metrics({"left": 1.0})
    model, method = make("ema")
    again = eq.BalanceMonitor(method, model, every=2, writers=path)
    again.load_state_dict({"step": 2})
    again.log_metrics({"b": 0.25})
    assert read_monitor(path).metrics == [{"step": 2, "metrics": {"b": 0.25}}]
    assert read_monitor(path).steps == [0]
    method.backward(model.losses(batch(0)))
    method.step()
    assert read_monitor(path).steps == [0, 2]
    assert read_monitor(path).metrics == [{"step": 2, "metrics": {"b": 0.25}}]
    again.log_metrics({"b": 0.125})
    assert [logged["step"] for logged in read_monitor(path).metrics] == [2, 3]
