"""What a run's epochs are scored by, and which of them is tested."""

import math
from dataclasses import replace

import pytest
from recorded import REFERENCE, TRIAL, Recording, digest, interrupted, run

from equipoise.bench.experiment.learner import Learner
from equipoise.bench.experiment.training import Outputs, train


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


def test_without_a_reference_epochs_are_scored_against_the_first(tmp_path):
    """Also in a run that goes on."""
    trial = replace(TRIAL, epochs=3)
    outputs = Outputs(tmp_path / "checkpoint.pt")
    interrupted(Recording(), trial, outputs, 7)
    record = train(Recording(), Recording().data(), trial, outputs=outputs)
    first, _, last = ({task: epoch["validation"][task]["MSE"] for task in ("a", "b")} for epoch in record["epochs"])
    assert record["epochs"][0]["score"] == 0
    assert record["epochs"][2]["score"] == pytest.approx(sum(1 - last[task] / first[task] for task in first) / 2)


def test_an_epoch_without_a_number_is_not_the_best(monkeypatch):
    """Such as a correlation of constant predictions, at the beginning."""
    problem, data = Recording(), Recording().data()
    values = iter([math.nan, 0.4, 0.45])

    def scripted(learner, dataset):
        return {task: {"MSE": 1.0 if dataset is data.test else value, "R²": 0.5} for task, value in two(values)}

    def two(values):
        value = next(values, 1.0)
        return [("a", value), ("b", value)]

    monkeypatch.setattr(Learner, "evaluate", scripted)
    record = train(problem, data, replace(TRIAL, epochs=3, reference=REFERENCE))
    assert record["selected"] == 2


def test_a_task_without_a_reference_is_not_scored():
    problem = Recording()
    record = train(problem, problem.data(), replace(TRIAL, epochs=1, reference={"b": 0.5}))
    error = record["epochs"][0]["validation"]["b"]["MSE"]
    assert record["epochs"][0]["score"] == pytest.approx(1 - error / 0.5)
