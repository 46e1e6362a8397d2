"""`check_problem` finds what is wrong with a person's problem, and says what to do."""

import dataclasses
import re
import time

import pytest
import torch
from torch import nn
from torchmetrics import MeanSquaredError, MetricCollection
from typer.testing import CliRunner

from equipoise.bench.cli import app
from equipoise.bench.problems import (
    Classification,
    Problem,
    Regression,
    Splits,
    Tensors,
    Training,
    check_problem,
    load_problem,
)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(3, 4)
        self.heads = nn.ModuleDict({"kind": nn.Linear(4, 2), "weight": nn.Linear(4, 1)})

    def forward(self, x):
        return {task: head(self.trunk(x)) for task, head in self.heads.items()}


class Fine(Problem):
    name, description = "fine", "nothing is wrong"
    tasks = (Classification("kind", 2), Regression("weight"))

    def data(self, quick=False):
        return Splits(*(self.part(seed) for seed in range(3)))

    def part(self, seed):
        x = torch.randn(64, 3, generator=torch.Generator().manual_seed(seed))
        return Tensors(input=x, kind=self.kind(x), weight=self.weight(x))

    def kind(self, x):
        return (x[:, 0] > 0).long()

    def weight(self, x):
        return x[:, 1]

    def model(self):
        return Network()

    def training(self, quick=False):
        return Training(epochs=1, batch_size=16)


class Unseeded(Network):
    def __init__(self):
        super().__init__()
        self.trunk.weight.data.uniform_(generator=torch.Generator().manual_seed(time.perf_counter_ns()))


class Silent(Network):
    def forward(self, x):
        return {"kind": super().forward(x)["kind"]}


class Apart(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = nn.ModuleDict({"kind": nn.Linear(3, 2), "weight": nn.Linear(3, 1)})

    def forward(self, x):
        return {task: own(x) for task, own in self.own.items()}


class Unmeasured(Regression):
    def metrics(self):
        return MetricCollection({"mse": MeanSquaredError()})


class Raising(Regression):
    def loss(self, predictions, batch):
        return predictions["weight"].squeeze(1) @ batch["kind"].float()[:3]


class Vector(Regression):
    def loss(self, predictions, batch):
        return (predictions["weight"][:, 0] - batch["weight"]) ** 2


class Unbounded(Regression):
    def accuracy(self, values):
        return 100 * max(0.02, values["R²"])


def with_tasks(*tasks):
    return {"tasks": tasks}


KIND = Classification("kind", 2)
CASES = {
    "no prediction": ({"model": lambda self: Silent()}, "wrong", "predicts no 'weight'; it predicts: kind."),
    "no label": (with_tasks(KIND, Regression("height")), "wrong", "'height'"),
    "labels out of range": (
        {"kind": lambda self, x: 1 + (x[:, 0] > 0).long()},
        "wrong",
        "Target 2 is out of bounds|A label is 2; with 2 classes",
    ),
    "minus one for a missing number": (
        {"weight": lambda self, x: torch.where(x[:, 1] < 0.5, x[:, 1].abs(), -1)},
        "doubtful",
        r"\d+% of the labels are -1, and it is trained on them: write NaN",
    ),
    "integers": ({"weight": lambda self, x: x[:, 1].long()}, "wrong", "floats, found torch.int64"),
    "not finite": ({"weight": lambda self, x: x[:, 1] / 0}, "wrong", "The loss is (inf|nan)"),
    "no measure of that name": (with_tasks(KIND, Unmeasured("weight")), "wrong", "no 'MSE', 'MAE', 'R²'; it computes"),
    "an error in the person's code": (
        with_tasks(KIND, Raising("weight")),
        "wrong",
        r"RuntimeError: .*\(.*test_checking.py, line \d+: return predictions\[",
    ),
    "a loss a sample": (with_tasks(KIND, Vector("weight")), "wrong", r"found shape \(16,\): take the mean"),
    "accuracies above 1": (with_tasks(KIND, Unbounded("weight")), "doubtful", "accuracy.. is 2; .*from 0 to 1"),
    "nothing shared": ({"model": lambda self: Apart()}, "doubtful", "share no trained parameter"),
    "one task": (with_tasks(KIND), "doubtful", "nothing to balance"),
    "two of a name": (with_tasks(KIND, KIND), "wrong", "found twice: kind"),
    "the same part twice": (
        {"part": lambda self, seed: Fine().part(min(seed, 1))},
        "doubtful",
        "64 inputs of the test",
    ),
    "an empty part": (
        {"part": lambda self, seed: Fine.part(self, seed) if seed != 1 else Tensors(input=torch.zeros(0, 3))},
        "wrong",
        "The validation part is empty",
    ),
    "no seed": (
        {"model": lambda self: Unseeded()},
        "doubtful",
        "The same seed gives other weights",
    ),
    "a batch too large": ({"training": lambda self, quick=False: Training(1, 65)}, "wrong", "batch of 65 is more than"),
    "no such schedule": (
        {"training": lambda self, quick=False: Training(1, 16, schedule="cosin")},
        "wrong",
        "no schedule 'cosin'; take one of constant",
    ),
    "no network": ({"model": lambda self: {}}, "wrong", "must return a torch.nn.Module, found dict"),
}


def test_nothing_is_wrong_with_a_problem_that_is_fine():
    before = torch.get_rng_state()
    findings = check_problem(Fine())
    assert [finding.level for finding in findings] == ["fine"] * len(findings)
    assert [finding.part for finding in findings][-1] == "sharing"
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_found(case):
    changes, level, words = CASES[case]
    findings = check_problem(type("Changed", (Fine,), changes)())
    found = [finding for finding in findings if finding.level != "fine"]
    assert found, case
    assert found[0].level == level
    assert any(re.search(words, finding.message) for finding in found), found


@pytest.mark.parametrize("kind", ["tabular", "images"])
def test_a_new_file_has_nothing_wrong(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    assert run(app, ["init", f"my_{kind}.py", "--kind", kind]).exit_code == 0
    assert f"equipoise check my_{kind}.py:problem" in (tmp_path / f"my_{kind}.py").read_text()
    done = run(app, ["check", f"my_{kind}.py:problem"])
    assert (done.exit_code, "Nothing is wrong." in done.output) == (0, True), done.output
    problem = load_problem(f"my_{kind}.py:problem")
    assert dataclasses.asdict(problem.training()) != dataclasses.asdict(problem.training(quick=True))


def test_check_ends_with_1_if_something_is_wrong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(app, ["init", "broken.py"])
    file = tmp_path / "broken.py"
    file.write_text(file.read_text().replace('"price": nn.Linear(64, 1)', '"prise": nn.Linear(64, 1)'))
    done = CliRunner().invoke(app, ["check", "broken.py:problem"])
    assert done.exit_code == 1
    assert "WRONG  task price: The network predicts no 'price'; it predicts: sold, days, prise." in done.output
