"""What goes wrong in a person's own code is shown where it stands, with what was expected."""

import io
import re
import textwrap
from pathlib import Path

import pytest
import torch
from rich.console import Console

from equipoise.bench.experiment.comparison import Comparison
from equipoise.bench.experiment.progress import ConsoleProgress
from equipoise.bench.experiment.settings import Settings
from equipoise.bench.experiment.training import train
from equipoise.bench.experiment.trial import Trial
from equipoise.bench.problems import load_problem
from equipoise.bench.problems._errors import ProblemCodeError, place_of, problem_code

PROBLEM = """
import torch
from torch import nn
from torchmetrics import MeanSquaredError, MetricCollection
from equipoise.bench.problems import Measure, Problem, Regression, Splits, Task, Tensors, Training


class Weight(Task):
    name = "weight"
    measures = (Measure("RMSE", higher_is_better=False),)

    def loss(self, predictions, batch):
        return (predictions["weight"] - batch["weight"]).square().mean()

    def metrics(self):
        return MetricCollection({"rmse": MeanSquaredError(squared=False)})

    def update(self, metrics, predictions, batch):
        metrics.update(predictions["weight"], batch["weight"])


class Mine(Problem):
    name, description = "mine", "for tests"
    tasks = (Regression("height"), Weight())

    def data(self, quick=False):
        x = torch.linspace(-1, 1, 16)[:, None]
        return Splits(*(Tensors(input=x, height=x[:, 0], weight=-x[:, 0]) for _ in range(3)))

    def model(self):
        return nn.Linear(1, 2)

    def training(self, quick=False):
        return Training(epochs=1, batch_size=8)

    def predict(self, model, batch):
        both = model(batch["input"])
        return {"height": both[:, 0], "weight": both[:, 1]}


problem = Mine()
"""
TRIAL = Trial("ew", 0, 1, 8, 16, 1e-2, 0.0, reference={"height": 1.0, "weight": 1.0})
FINE = PROBLEM.replace('{"rmse"', '{"RMSE"')


def written(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(textwrap.dedent(text))
    return f"{tmp_path / 'mine.py'}:problem"


@pytest.mark.parametrize(
    ("text", "line", "block"),
    [
        (
            FINE.replace('"weight": both[:, 1]}', '"size": both[:, 1]}'),
            'return (predictions["weight"]',
            [
                "KeyError: 'weight' in the loss of task 'weight'",
                '    return (predictions["weight"] - batch["weight"]).square().mean()',
                "  The network predicts no 'weight'; it predicts: height, size.",
            ],
        ),
        (
            FINE.replace('"height": both[:, 0], ', ""),
            None,  # in a ready-made task: no line of the person's own
            ["task height: The network predicts no 'height'; it predicts: weight."],
        ),
        (
            FINE.replace('batch["input"]', 'batch["image"]'),
            'model(batch["image"])',
            [
                "KeyError: 'image' in predict",
                '    both = model(batch["image"])',
                "  A batch holds no 'image'; it holds: input, height, weight.",
            ],
        ),
        (
            PROBLEM,
            "def metrics",
            ["Task 'weight' has the measure 'RMSE'", "  `metrics()` computes no 'RMSE'; it computes: rmse."],
        ),
        (
            FINE.replace(
                "    def training", "    def loader(self, dataset, *_):\n        yield 1 / 0\n\n    def training"
            ),
            "yield 1 / 0",
            ["ZeroDivisionError: division by zero in the loader", "    yield 1 / 0"],
        ),
    ],
)
def test_an_error_is_a_block_with_its_place_and_what_was_expected(text, line, block, tmp_path, monkeypatch):
    monkeypatch.setattr("equipoise.bench.experiment.batches.Batches.__len__", lambda self: 2)  # a generator has none
    problem = load_problem(written(tmp_path, monkeypatch, text))
    with pytest.raises(ProblemCodeError) as found:
        train(problem, problem.data(), TRIAL)
    if line is None:
        assert found.value.block.splitlines() == [str(found.value)] == block
        return
    first, place, *rest = found.value.block.splitlines()
    assert [first, *rest] == block
    (number,) = [n for n, one in enumerate(text.splitlines(), 1) if line in one]
    assert place == f"  mine.py, line {number}"
    assert str(found.value).startswith(f"{first} ({place.strip()})")
    assert "\n" not in str(found.value)


def test_a_comparison_shows_the_block_once_and_where_the_traceback_is(tmp_path, monkeypatch):
    fails = (
        "        assert not model.training or next(passes) < 1, 'not trained'\n"  # the first pass is looked at before
    )
    text = FINE.replace("        both =", f"{fails}        both =").replace(
        "class Mine", "passes = count()\n\n\nclass Mine"
    )
    text = f"from itertools import count\n{text}"
    settings = Settings(written(tmp_path, monkeypatch, text), ("ew",), 2, False, 1, 8, 16, 1e-2, 0.0, "constant")
    comparison = Comparison(settings, tmp_path / "out")
    said = io.StringIO()
    progress = ConsoleProgress(Console(file=said, width=200), comparison.problem, ["ew"], 1)
    with progress:
        result = comparison.run(1, 1, progress)
    reason = result.summary.failures["ew"][0]
    assert re.search(r"AssertionError: not trained in predict \(mine.py, line \d+\)", reason)
    lines = said.getvalue().splitlines()
    assert lines.count("AssertionError: not trained in predict") == 1
    (place,) = [line.removeprefix("  The whole traceback: ") for line in lines if "The whole traceback" in line]
    assert re.fullmatch(r"single-height-0-\w+\.txt", Path(place).name)
    assert Path(place).parent == tmp_path / "out" / "errors"
    traceback = Path(place).read_text()
    assert traceback.startswith("Traceback")
    assert "AssertionError: not trained" in traceback


def test_what_is_no_error_of_the_problem_passes():
    with pytest.raises(KeyboardInterrupt), problem_code("anything"):
        raise KeyboardInterrupt
    with pytest.raises(StopIteration), problem_code("anything"):
        next(iter(()))


def test_the_place_is_the_innermost_of_ones_own_lines():
    try:
        torch.zeros(2).reshape(3, 5)
    except RuntimeError as error:
        place, code = place_of(error)
    assert re.search(r"test_errors_in_a_problem\.py, line \d+$", place)
    assert code == "torch.zeros(2).reshape(3, 5)"
