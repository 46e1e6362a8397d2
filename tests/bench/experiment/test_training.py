import hashlib
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from equipoise.bench.experiment.batches import Batches
from equipoise.bench.experiment.learner import Learner
from equipoise.bench.experiment.training import MIN_SAMPLES, Outputs, train
from equipoise.bench.experiment.trial import Trial
from equipoise.bench.problems import SCHEDULES, Measure, Problem, Regression, Splits, Tensors, Training
from equipoise.monitor import read_monitor

TRIAL = Trial("ew", 0, epochs=3, batch_size=8, evaluation_batch_size=16, lr=1e-2, weight_decay=0.0)
REFERENCE = {"a": 0.5, "b": 0.5}
POTENTIALS = {"a": 0.5, "b": 0.5}


class Noisy(Dataset):
    """Every read draws noise, as augmentation does."""

    def __init__(self, tensors):
        self.tensors = tensors

    def __len__(self):
        return len(self.tensors)

    def __getitem__(self, index):
        sample = self.tensors[index]
        return {**sample, "input": sample["input"] + 0.1 * torch.randn(3)}


class Recording(Problem):
    """Two regressions on a line, with dropout; keeps the initial weights and every training batch."""

    name, description = "recording", "for tests"
    tasks = (Regression("a"), Regression("b"))

    def __init__(self, partial=False):
        self.partial = partial
        self.seen = []
        self.initial = None

    def data(self, quick=False):
        generator = torch.Generator().manual_seed(0)
        splits = []
        for size in (42, 20, 20):
            x = torch.randn(size, 3, generator=generator)
            splits.append(Tensors(input=x, a=x.sum(1), b=100 * x[:, 0]))
        if self.partial:
            splits[0].tensors["a"][::2] = math.nan
            splits[0].tensors["a"][1:9] = math.nan
        return Splits(Noisy(splits[0]), *splits[1:])

    def model(self):
        model = nn.ModuleDict(
            {
                "trunk": nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.ReLU()),
                "a": nn.Linear(8, 1),
                "b": nn.Linear(8, 1),
            }
        )
        self.initial = digest(*model.state_dict().values())
        return model

    def training(self, quick=False):
        return Training(epochs=3, batch_size=8)

    def predict(self, model, batch):
        if model.training and torch.is_grad_enabled():
            self.seen.append(digest(batch["input"], batch["a"], batch["b"]))
        features = model["trunk"](batch["input"])
        return {"a": model["a"](features), "b": model["b"](features)}


def digest(*tensors):
    return hashlib.sha256(b"".join(t.double().numpy().tobytes() for t in tensors)).hexdigest()


def run(problem=None, **changes):
    problem = problem or Recording()
    method = changes.get("method", "ew")
    given = {} if method.startswith("single:") else {"reference": REFERENCE, "potentials": POTENTIALS}
    record = train(problem, problem.data(), replace(TRIAL, **given, **changes))
    return problem, record


@pytest.mark.parametrize("method", ["rlw", "mao", "pcgrad", "graddrop", "famo", "amtl", "coba", "single:a"])
def test_every_method_has_the_same_initial_weights_and_batches(method):
    """Dropout and random methods draw too, and must not shift what the data draws."""
    expected, _ = run()
    problem, _ = run(method=method)
    assert problem.initial == expected.initial
    assert problem.seen == expected.seen
    assert len(set(problem.seen)) == len(problem.seen) == 15


def test_another_seed_has_other_weights_and_batches():
    first, _ = run()
    second, _ = run(seed=1)
    assert first.initial != second.initial
    assert not set(first.seen) & set(second.seen)


@pytest.mark.parametrize("method", ["ew", "rlw", "mao", "gradnorm"])
def test_a_run_is_repeatable(method):
    _, first = run(method=method)
    _, second = run(method=method)
    del first["seconds"], second["seconds"]
    assert first == second


def test_reading_data_leaves_the_default_generator_alone():
    problem = Recording()
    batches = Batches(problem, problem.data().train, 8, 0)
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    assert len(list(batches)) == len(batches) == 5
    assert torch.equal(torch.get_rng_state(), expected)


def test_the_epoch_with_the_best_mean_relative_gain_is_tested(monkeypatch):
    """Validation is scripted; the weights tested are those at the end of the best epoch, the first of equals."""
    problem = Recording()
    data = problem.data()
    script = iter([(0.50, 0.40), (0.30, 0.45), (0.45, 0.30), (0.9, 0.9)])  # gains 0.1, 0.25, 0.25, < 0
    weights = []

    def scripted(learner, dataset):
        weights.append(digest(*learner.network.state_dict().values()))
        if dataset is data.test:
            return {"a": {"MSE": 1.0, "R²": 0.5}, "b": {"MSE": 1.0, "R²": 0.5}}
        a, b = next(script)
        return {"a": {"MSE": a, "R²": 0.5}, "b": {"MSE": b, "R²": 0.5}}

    monkeypatch.setattr(Learner, "evaluate", scripted)
    record = train(problem, data, replace(TRIAL, epochs=4, reference=REFERENCE))
    assert record["selected"] == 2
    assert [epoch["score"] for epoch in record["epochs"]] == pytest.approx([0.1, 0.25, 0.25, -0.8])
    assert weights[-1] == weights[1]
    assert len(set(weights[:-1])) == 4


def test_single_task_is_selected_and_evaluated_on_its_own():
    _, record = run(method="single:b")
    errors = [epoch["validation"]["b"]["MSE"] for epoch in record["epochs"]]
    assert record["selected"] == errors.index(min(errors)) + 1
    assert set(record["test"]) == set(record["epochs"][0]["loss"]) == {"b"}


def test_evaluation_is_over_all_samples_without_dropout():
    problem = Recording()
    data = problem.data()
    learner = Learner(problem, TRIAL)
    values, model = learner.evaluate(data.test), learner.network
    assert model.training
    model.eval()
    with torch.no_grad():
        predictions = problem.predict(model, data.test.tensors)
    expected = (predictions["b"][:, 0] - data.test.tensors["b"]).square().mean().item()
    assert values["b"]["MSE"] == pytest.approx(expected, rel=1e-5)


def test_tasks_without_a_label_in_a_batch_are_left_out():
    _, record = run(Recording(partial=True), method="ema")
    assert record["status"] == "finished"
    assert all(math.isfinite(value) for epoch in record["epochs"] for value in epoch["loss"].values())


def test_a_task_without_a_label_in_a_split_is_nan():
    problem = Recording()
    data = problem.data()
    data.test.tensors["a"][:] = math.nan
    learner = Learner(problem, TRIAL)
    values = learner.evaluate(data.test)
    assert math.isnan(values["a"]["MSE"])
    assert math.isfinite(values["b"]["MSE"])


def test_schedule_multiplies_the_learning_rate(monkeypatch):
    """With a rate of 0 from half on, nothing moves in the second half."""
    monkeypatch.setitem(SCHEDULES, "stop", lambda progress: 1.0 if progress < 0.5 else 0.0)
    weights = []

    class Watching(Recording):
        def predict(self, model, batch):
            if model.training:
                weights.append(digest(*model.state_dict().values()))
            return super().predict(model, batch)

    run(Watching(), schedule="stop", epochs=2)
    assert len(weights) == 10
    assert len(set(weights[:6])) == 6
    assert len(set(weights[5:])) == 1


def test_a_method_that_follows_validation_losses_sees_a_batch_before_every_step(monkeypatch):
    """Without dropout; the batches are validation's, in an order of their own that begins anew after 2 of 8."""
    problem, seen = Recording(), []
    data = problem.data()
    observe = Learner.observe

    def recording(learner, batch):
        with torch.no_grad():
            predictions = problem.predict(learner.network.eval(), batch)
        expected = {task.name: task.loss(predictions, batch).item() for task in problem.tasks}
        learner.network.train()
        monkeypatch.setattr(learner.method, "observe_validation", lambda losses: seen.append((batch, expected, losses)))
        observe(learner, batch)
        assert learner.network.training

    monkeypatch.setattr(Learner, "observe", recording)
    trial = replace(TRIAL, method="coba", epochs=1, reference=REFERENCE)
    train(problem, data, trial)
    assert [len(batch["a"]) for batch, _, _ in seen] == [8] * 5
    for start in (0, 2):
        both = torch.cat([batch["a"] for batch, _, _ in seen[start : start + 2]])
        assert set(both.tolist()) <= set(data.validation.tensors["a"].tolist())
        assert len(both.unique()) == 16
    for _, expected, losses in seen:
        assert {task: loss.item() for task, loss in losses.items()} == expected
    seen.clear()
    train(Recording(), data, replace(trial, method="ew"))
    assert not seen


def test_a_validation_loss_that_is_not_finite_ends_the_run(monkeypatch):
    class Exploding(Recording):
        def predict(self, model, batch):
            predictions = super().predict(model, batch)
            return {**predictions, "b": predictions["b"] * (1 if torch.is_grad_enabled() else math.inf)}

    _, record = run(Exploding(), method="coba")
    assert record["status"] == "diverged"
    assert "validation loss of 'b'" in record["message"]


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_task():
    class Exploding(Recording):
        def predict(self, model, batch):
            predictions = super().predict(model, batch)
            return {**predictions, "b": predictions["b"] * (math.inf if len(self.seen) == 7 else 1)}

    _, record = run(Exploding())
    assert record["status"] == "diverged"
    assert "'b'" in record["message"]
    assert "epoch 2" in record["message"]
    assert len(record["epochs"]) == 1


def test_measures_need_not_be_all_that_metrics_compute():
    class Narrow(Recording):
        tasks = (Regression("a"), Regression("b"))

    Narrow.tasks[0].measures = (Measure("MAE", higher_is_better=False),)
    _, record = run(Narrow())
    assert record["status"] == "finished"
    assert record["epochs"][0]["score"] == pytest.approx(
        sum(1 - record["epochs"][0]["validation"][t][m] / 0.5 for t, m in (("a", "MAE"), ("b", "MSE"))) / 2
    )


class Stop(Exception):
    pass


def interrupted(problem, trial, outputs, step):
    """Trains until a step, and as if the process had died there."""
    steps = iter(range(step))

    def on_step():
        if next(steps, None) is None:
            raise Stop

    with pytest.raises(Stop):
        train(problem, problem.data(), trial, on_step=on_step, outputs=outputs)
    torch.manual_seed(99)  # another process: whatever its generator is at


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


def test_without_a_reference_epochs_are_scored_against_the_first(tmp_path):
    trial = replace(TRIAL, epochs=3)
    outputs = Outputs(tmp_path / "checkpoint.pt")
    interrupted(Recording(), trial, outputs, 7)
    record = train(Recording(), Recording().data(), trial, outputs=outputs)
    first, _, last = ({task: epoch["validation"][task]["MSE"] for task in ("a", "b")} for epoch in record["epochs"])
    assert record["epochs"][0]["score"] == 0
    assert record["epochs"][2]["score"] == pytest.approx(sum(1 - last[task] / first[task] for task in first) / 2)


def test_a_task_without_a_reference_is_not_scored():
    problem = Recording()
    record = train(problem, problem.data(), replace(TRIAL, epochs=1, reference={"b": 0.5}))
    error = record["epochs"][0]["validation"]["b"]["MSE"]
    assert record["epochs"][0]["score"] == pytest.approx(1 - error / 0.5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precision_is_fabrics(precision):
    _, plain = run()
    _, other = run(precision=precision)
    assert other["status"] == "finished"
    assert other["epochs"][-1]["loss"] != plain["epochs"][-1]["loss"]
    assert other["epochs"][-1]["loss"] == pytest.approx(plain["epochs"][-1]["loss"], rel=0.1)


def test_priorities_reach_the_method_and_no_single_task_run():
    problem = Recording()
    learner = Learner(problem, replace(TRIAL, priorities={"a": 3.0}))
    outputs = {task: learner.network[task](torch.ones(4, 8)).square().mean() for task in ("a", "b")}
    assert {task: float(weight) for task, weight in learner.method.backward(outputs).items()} == {"a": 3.0, "b": 1.0}


class Apart(Recording):
    """The two tasks share nothing."""

    def predict(self, model, batch):
        x = batch["input"]
        return {"a": model["a"](model["trunk"](x)), "b": x[:, :1] * model["b"].weight[0, 0]}


def test_a_run_says_how_much_of_the_network_tasks_share():
    _, record = run()
    assert record["shared_parameters"] == 3 * 8 + 8
    _, record = run(Recording(partial=True), method="mao")
    assert record["shared_parameters"] == 3 * 8 + 8
    _, record = run(Apart())
    assert record["shared_parameters"] == 0
    _, record = run(method="single:a")
    assert "shared_parameters" not in record
