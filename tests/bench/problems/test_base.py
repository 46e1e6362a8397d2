import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, r2_score, roc_auc_score
from torch.nn import functional

from equipoise.bench.problems import (
    SCHEDULES,
    BinaryClassification,
    Classification,
    Measure,
    ProblemError,
    Regression,
    Tensors,
    load_problem,
    split_options,
    with_options,
)
from equipoise.bench.problems.digits import Digits


def test_classification_leaves_out_missing_labels():
    task = Classification("kind", 3)
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, -1, 2, 1, -1, 2])
    known = labels != -1
    loss = task.loss({"kind": logits}, {"kind": labels})
    torch.testing.assert_close(loss, -logits.log_softmax(1)[known, labels[known]].mean())
    metrics = task.metrics()
    task.update(metrics, {"kind": logits}, {"kind": labels})
    values = {name: float(value) for name, value in metrics.compute().items()}
    guesses = logits.argmax(1)[known]
    assert values["accuracy"] == pytest.approx((guesses == labels[known]).float().mean().item())
    assert values["F1"] == pytest.approx(f1_score(labels[known], guesses, average="macro"))
    assert task.accuracy(values) == values["accuracy"]


def test_binary_classification_leaves_out_missing_labels():
    task = BinaryClassification("kind")
    logits = torch.randn(30, 1, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % 3 - 1
    known = labels != -1
    scores, truth = logits[known, 0], labels[known]
    loss = task.loss({"kind": logits}, {"kind": labels})
    probabilities = scores.sigmoid()
    torch.testing.assert_close(loss, -torch.where(truth == 1, probabilities, 1 - probabilities).log().mean())
    metrics = task.metrics()
    for rows in (slice(0, 10), slice(10, 30)):
        task.update(metrics, {"kind": logits[rows]}, {"kind": labels[rows]})
    values = {name: float(value) for name, value in metrics.compute().items()}
    assert values["AUC"] == pytest.approx(roc_auc_score(truth, scores))
    assert values["AP"] == pytest.approx(average_precision_score(truth, scores))
    assert task.accuracy(values) == values["AUC"]


def test_regression_leaves_out_missing_labels():
    task = Regression("size", loss=functional.l1_loss)
    values = torch.tensor([[1.0], [2.0], [4.0], [0.0]])
    labels = torch.tensor([1.5, math.nan, 3.0, 1.0])
    assert task.loss({"size": values}, {"size": labels}) == pytest.approx((0.5 + 1 + 1) / 3)
    metrics = task.metrics()
    task.update(metrics, {"size": values}, {"size": labels})
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert found["MSE"] == pytest.approx((0.25 + 1 + 1) / 3)
    assert found["MAE"] == pytest.approx(2.5 / 3)
    assert found["R²"] == pytest.approx(r2_score([1.5, 3, 1], [1, 4, 0]), abs=1e-6)
    assert task.accuracy({"R²": -0.5}) == 0.0


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        (Classification("kind", 3), torch.tensor([-1, -1])),
        (BinaryClassification("kind"), torch.tensor([-1, -1])),
        (Regression("kind"), torch.tensor([math.nan] * 2)),
    ],
)
def test_no_label_at_all_means_no_loss_and_no_update(task, labels):
    predictions = {"kind": torch.zeros(2, 3) if isinstance(task, Classification) else torch.zeros(2)}
    assert task.loss(predictions, {"kind": labels}) is None
    metrics = task.metrics()
    task.update(metrics, predictions, {"kind": labels})
    assert not any(metric.update_called for metric in metrics.values())


def test_measure_writes_numbers():
    share = Measure("accuracy", higher_is_better=True, unit="%", scale=100, digits=1)
    assert share.format(0.98765) == "98.8"
    assert share.label == "accuracy % ↑"
    assert Measure("MSE", higher_is_better=False).label == "MSE ↓"


def test_tensors_are_read_by_batch_and_equally_long():
    data = Tensors(input=torch.arange(6.0).reshape(3, 2), label=torch.tensor([7, 8, 9]))
    assert len(data) == 3
    assert torch.equal(data[[2, 0]]["label"], torch.tensor([9, 7]))
    with pytest.raises(ValueError, match="same length"):
        Tensors(a=torch.zeros(2), b=torch.zeros(3))
    with pytest.raises(ValueError, match="at least one"):
        Tensors()


def test_loader_shuffles_by_generator_and_evaluates_in_order():
    problem, data = Digits(), Tensors(input=torch.arange(10))
    train = [list(b["input"]) for b in problem.loader(data, 4, torch.Generator().manual_seed(0))]
    assert [len(batch) for batch in train] == [4, 4]  # an incomplete last batch is left out of training
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))[:8]
    assert torch.equal(torch.tensor(train).flatten(), order)
    whole = torch.cat([b["input"] for b in problem.loader(data, 4, None)])
    assert torch.equal(whole, torch.arange(10))


def test_to_device_moves_tensors_in_any_nesting():
    moved = Digits().to_device({"a": [torch.zeros(1), "name"], "b": (torch.zeros(2), 3)}, torch.device("meta"))
    assert moved["a"][0].device.type == moved["b"][0].device.type == "meta"
    assert moved["a"][1] == "name"
    assert moved["b"][1] == 3


def test_schedules():
    np.testing.assert_allclose([SCHEDULES["cosine"](p) for p in (0, 0.5, 1)], [1, 0.5, 0], atol=1e-12)
    np.testing.assert_allclose(SCHEDULES["poly"](0.5), 0.5**0.9)
    assert [SCHEDULES["tenth-after-half"](p) for p in (0, 0.49, 0.5)] == [1, 1, 0.1]
    assert SCHEDULES["constant"](0.7) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "Unknown problem 'digit'.*digits"),
        ("nowhere.py:problem", "no file nowhere.py"),
        ("no.such.module:problem", "cannot be imported"),
        ("equipoise.bench.problems:nothing", "nothing named 'nothing'"),
        ("equipoise.bench.problems:SCHEDULES", "of type dict"),
        ("mine.py:other", "it has mine.py:problem, mine.py:Mine"),
        ("mine.py", "Which problem in mine.py. Write mine.py:NAME; it has mine.py:problem, mine.py:Mine"),
    ],
)
def test_load_problem_says_what_is_wrong(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from equipoise.bench.problems.digits import Digits\nproblem = Digits(seed=3)\nclass Mine(Digits): pass\n"
    )
    with pytest.raises(ProblemError, match=message):
        load_problem(name)


def test_load_problem_from_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from equipoise.bench.problems.digits import Digits\nproblem = Digits(seed=3)\n")
    assert load_problem(f"{path}:problem").seed == 3
    assert load_problem(f"{path}:Digits").seed == 0  # a class is called
    assert load_problem("digits").name == "digits"


def test_options_stand_behind_the_name(tmp_path):
    assert load_problem("digits?seed=3").seed == 3
    path = tmp_path / "mine.py"
    path.write_text("from equipoise.bench.problems.digits import Digits\ndef make(seed): return Digits(seed)\n")
    assert load_problem(f"{path}:make?seed=5").seed == 5


@pytest.mark.parametrize(
    "value", ["/data/a b&c=d?e#f%20+ü", "3", "true", "null", "", "[1", 3, 2.5, True, [1, "a&b"], {"a": None}]
)
def test_options_come_back_as_they_were(value):
    name = with_options("celeba", data=value, left_out=None)
    assert split_options(name) == ("celeba", {"data": value})
    assert split_options(with_options(name.partition("?")[0])) == ("celeba", {})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits?size=3", "digits does not take these options: .*'size'; it has: seed"),
        ("digits?sed=3", "it has: seed. Did you mean seed"),
        ("digits?seed", "written digits\\?name=value"),
        ("digits?", "written digits\\?name=value"),
        ("mine.py:problem?seed=4", "takes no options, found seed"),
    ],
)
def test_wrong_options_are_told(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("from equipoise.bench.problems.digits import Digits\nproblem = Digits(seed=3)\n")
    with pytest.raises(ProblemError, match=message):
        load_problem(name)
