"""What a run's epochs are scored by, and which of them is tested."""

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


def test_without_a_reference_epochs_are_scored_over_the_one_that_is_tested(tmp_path):
    """Also in a run that goes on: on the scale of the runs that this one is the reference of."""
    trial = replace(TRIAL, epochs=3)
    outputs = Outputs(tmp_path / "checkpoint.pt")
    interrupted(Recording(), trial, outputs, 7)
    record = train(Recording(), Recording().data(), trial, outputs=outputs)
    errors = [{task: epoch["validation"][task]["MSE"] for task in ("a", "b")} for epoch in record["epochs"]]
    tested = errors[record["selected"] - 1]
    expected = [sum(1 - found[task] / tested[task] for task in tested) / 2 for found in errors]
    assert [epoch["score"] for epoch in record["epochs"]] == pytest.approx(expected)
    assert max(expected) == expected[record["selected"] - 1] == 0
    reference = {task: tested[task] for task in tested}
    again = train(Recording(), Recording().data(), replace(trial, reference=reference))
    assert [epoch["score"] for epoch in again["epochs"]] == pytest.approx(expected)
    assert again["selected"] == record["selected"]


@pytest.mark.parametrize(
    ("script", "selected"),
    [
        ([(8.0, 1.0), (2.0, 0.9), (1.0, 1.2), (0.95, 1.3)], 3),  # over the first epoch the second would be best
        ([(1.0, 1.0), (0.5, 2.1), (0.4, 1.5)], 3),
        ([(1.0, 1.0), (1.0, 1.0)], 1),
    ],
)
def test_without_a_reference_no_later_epoch_is_better_than_the_one_that_is_tested(script, selected, monkeypatch):
    """By its gain over that: of a task whose measure has fallen a lot, a little more is still worth something."""
    problem, data = Recording(), Recording().data()
    values = iter(script)

    def scripted(learner, dataset):
        a, b = (1.0, 1.0) if dataset is data.test else next(values)
        return {"a": {"MSE": a, "R²": 0.5}, "b": {"MSE": b, "R²": 0.5}}

    monkeypatch.setattr(Learner, "evaluate", scripted)
    record = train(problem, data, replace(TRIAL, epochs=len(script)))
    assert record["selected"] == selected
    assert all(epoch["score"] <= 0 for epoch in record["epochs"][selected - 1 :])


def test_a_task_without_a_reference_is_not_scored():
    problem = Recording()
    record = train(problem, problem.data(), replace(TRIAL, epochs=1, reference={"b": 0.5}))
    error = record["epochs"][0]["validation"]["b"]["MSE"]
    assert record["epochs"][0]["score"] == pytest.approx(1 - error / 0.5)
