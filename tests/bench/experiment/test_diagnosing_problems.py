"""A problem's diagnosis, on the command line and beside comparisons."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from comparisons import make_result
from torch import nn
from typer.testing import CliRunner

from equipoise.bench.cli import app
from equipoise.bench.experiment.diagnosis import DiagnosisError, diagnose_problem
from equipoise.bench.problems import Problem, Regression, Splits, Tensors, Training

FILE = Path(__file__).parents[3] / "benchmarks" / "diagnosis.py"


class Opposed(Problem):
    """The two tasks want the same output at opposite values."""

    name, description = "opposed", "for tests"
    tasks = (Regression("up"), Regression("down"))

    def data(self, quick=False):
        x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
        return Splits(*(Tensors(input=x, up=x.sum(1) + 3, down=-x.sum(1) - 3) for _ in range(3)))

    def model(self):
        return nn.Linear(6, 1)

    def training(self, quick=False):
        return Training(epochs=1, batch_size=16, lr=1e-5)

    def predict(self, model, batch):
        output = model(batch["input"])
        return {"up": output, "down": output}


problem = Opposed()


def test_a_problem_is_diagnosed_as_it_is_trained():
    before = torch.get_rng_state()
    found = diagnose_problem(problem, steps=40, costs=False)
    torch.set_rng_state(before)
    assert found.found == ("opposed",)
    assert len(found.measured.losses) == 40
    again = diagnose_problem(problem, steps=40, costs=False)
    assert torch.equal(again.measured.losses, found.measured.losses)
    other = diagnose_problem(problem, steps=40, costs=False, seed=1)
    assert not torch.equal(other.measured.losses, found.measured.losses)
    with pytest.raises(DiagnosisError, match="lower learning rate"):
        diagnose_problem(problem, steps=40, lr=1e30)


def test_the_command_says_it_and_draws_it(tmp_path):
    place = f"{__file__}:problem"
    picture = tmp_path / "new" / "diagnosis.png"
    done = CliRunner().invoke(app, ["diagnose", place, "--steps", "20", "--out", str(picture), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    first = done.output.splitlines()[0]
    assert first.startswith("Balancing may help here: opposed directions (-")
    assert first.endswith("Try cagrad, pcgrad or nash-mtl.")
    assert "× the time" in done.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    for options, words in (
        (["--lr", "1e30"], "lower learning rate"),
        (["--lr", "0"], "more than 0"),
        (["--device", "abacus"], "cannot be used"),
        (["--steps", "19"], "20"),
    ):
        done = CliRunner().invoke(app, ["diagnose", place, *options])
        assert done.exit_code == 2
        assert words in done.output


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("diagnosis_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def recommending(*methods, found=("size",)):
    return SimpleNamespace(found=found, recommended=[SimpleNamespace(method=method) for method in methods])


def test_recommendations_are_checked_against_comparisons(benchmark):
    result = make_result(seeds=6)  # single-task 1, mao 0.7, ema 0.9, ew 1.2: far apart
    row = benchmark.check(result, recommending("mao", "ema", "famo"))
    assert row.compared == {"ew": ("left", "right", "Δm"), "ema": ("Δm",), "mao": ()}
    assert (row.best, row.judged) == ("mao", ["mao", "ema"])
    alike = make_result(seeds=6, levels=dict.fromkeys(("ew", "ema", "mao"), 1.0))
    nothing = benchmark.check(alike, recommending("ew", found=()))
    assert nothing.compared == {"ew": (), "ema": (), "mao": ()}
    text = benchmark.to_markdown([row, replace(nothing, problem="a|b")]).splitlines()
    assert text[2] == "| errors | 6 | size | mao, ema, famo | famo | ema | none | mao |"
    assert text[3].startswith(r"| a\|b | 6 | nothing | ew | – | none | none | ")
    assert text[-1] == "Not beaten in Δm: 2 of 3 recommended methods, and 4 of 6 of all that were compared."


def test_a_method_that_diverged_is_not_judged(benchmark):
    row = benchmark.check(make_result(seeds=6, diverged={("mao", 2)}), recommending("mao"))
    assert row.judged == []
    assert "mao" not in row.compared
