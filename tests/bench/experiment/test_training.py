import math
from dataclasses import replace

import pytest
import torch
from recorded import REFERENCE, TRIAL, Recording, digest, run

from equipoise.bench.experiment.batches import Batches
from equipoise.bench.experiment.learner import Learner
from equipoise.bench.experiment.training import train
from equipoise.bench.problems import SCHEDULES, Measure, Regression


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
