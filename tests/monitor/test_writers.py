"""TensorBoard and Lightning: what they wrote, read back."""

import csv

import pytest
from contract.registry import make
from networks import batch

import equipoise as eq
from equipoise.monitor import Recording, read_monitor
from equipoise.monitor.writers import scalars


def train(writers):
    model, method = make("ema")
    monitor = eq.BalanceMonitor(method, model, every=2, writers=writers)
    for index in range(6):
        method.backward(model.losses(batch(index), "ac" if index == 2 else "abc"))
        method.step()
        method.zero_grad()
    return monitor


def expected(monitor):
    """Tag → step → number."""
    found = {}
    for record in monitor.records:
        numbers = {f"weight/{task}": weight for task, weight in record["weights"].items()}
        for quantity in ("gradient", "contribution"):
            for task, values in record[quantity].items():
                for layer, value in zip(monitor.recording.layers, values, strict=True):
                    numbers[f"{quantity}/{task}/{layer}"] = value
        for i, j in ((0, 1), (0, 2), (1, 2)):
            numbers[f"cosine/{'abc'[i]}/{'abc'[j]}"] = record["cosines"][i][j]
        for tag, number in numbers.items():
            if number is not None:
                found.setdefault(tag, {})[record["step"]] = number
    return found


def test_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        monitor = train(writer)
    events = accumulator.EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    events.Reload()
    wanted = expected(monitor)
    assert sorted(events.Tags()["scalars"]) == sorted(wanted)
    for tag, numbers in wanted.items():
        assert {event.step: event.value for event in events.Scalars(tag)} == pytest.approx(numbers, rel=1e-6)
    assert list(wanted["weight/b"]) == [0, 4]


def test_a_lightning_logger_and_a_file_together(tmp_path):
    loggers = pytest.importorskip("lightning.pytorch.loggers")
    logger = loggers.CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    monitor = train([logger, tmp_path / "monitor.jsonl"])
    logger.save()
    with open(f"{logger.log_dir}/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {}
    for row in rows:
        for tag, number in row.items():
            if tag != "step" and number:
                found.setdefault(tag, {})[int(row["step"])] = float(number)
    wanted = expected(monitor)
    assert found.keys() == wanted.keys()
    for tag, numbers in wanted.items():
        assert found[tag] == pytest.approx(numbers)
    assert read_monitor(tmp_path / "monitor.jsonl") == monitor.recording


def test_metrics_are_scalars():
    recording = Recording(["a", "b"], ["one"], 5)
    assert scalars(recording, {"step": 3, "metrics": {"b": 0.5}}) == {"metric/b": 0.5}
