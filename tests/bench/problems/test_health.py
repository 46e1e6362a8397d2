import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("statsmodels")

from shipped import SPLITS, assert_standardised, assert_trains, joined
from statsmodels.datasets import randhie

from equipoise.bench.problems.health import COLUMNS, NUMBERS, Amount, Health


@pytest.fixture(scope="module")
def data():
    return Health().data()


@pytest.fixture(scope="module")
def years():
    """The file's rows as the standard library reads them."""
    path = Path(randhie.__file__).parent / "src" / "randhie.csv"
    if not path.is_file():
        pytest.skip("this version of statsmodels lacks the file")
    with path.open() as file:
        return list(csv.DictReader(file))


def test_every_year_stands_in_one_split(data, years):
    assert sum(len(getattr(data, split)) for split in SPLITS) == len(years) == 20_190
    assert 0.55 < len(data.train) / 20_190 < 0.65


def test_labels_are_those_of_the_file(data, years):
    """In their own units; the multiset of years, since the splits reorder them."""

    def number(year, column):
        missing = column == "inpdol" and year["inpmis"] == "1"
        return math.inf if missing else float(np.float32(year[column]))

    expected = sorted(tuple(number(year, column) for column in COLUMNS.values()) for year in years)
    found = torch.stack([joined(data, task) for task in COLUMNS], 1).nan_to_num(math.inf)
    assert sorted(map(tuple, found.tolist())) == expected
    assert joined(data, "inpatient").isnan().sum() == 80


def test_no_family_stands_in_two_splits(data, years):
    people = {}
    for year in years:
        people.setdefault(year["zper"], set()).add((year["site"], year["linc"]))
    assert len(people) == 5_912
    assert all(len(families) == 1 for families in people.values())  # so that a family has whole people
    income = NUMBERS.index("linc")
    seen = []
    for split in SPLITS:
        inputs = getattr(data, split).tensors["input"]
        families = torch.cat([inputs[:, -6:], inputs[:, income : income + 1]], 1)  # the site and the income
        seen.append(set(map(tuple, families.tolist())))
    assert sum(map(len, seen)) == len({(year["site"], year["linc"]) for year in years})
    assert not seen[0] & seen[1]
    assert not (seen[0] | seen[1]) & seen[2]


def test_features_are_standardised_by_the_training_split(data):
    assert_standardised(data, atol=0.3)
    assert joined(data, "input").isfinite().all()  # the four whose education is unknown have the mean


def test_losses_lie_a_thousandfold_apart(data):
    """At each task's own mean."""
    losses = {}
    for name in ("admissions", "inpatient"):
        labels = data.train.tensors[name]
        mean = labels.nanmean().log().expand(len(labels))
        losses[name] = Amount(name).loss({name: mean}, {name: labels}).item()
    assert losses["inpatient"] / losses["admissions"] > 500


def test_a_batch_without_a_label_has_no_loss():
    task, batch = Amount("inpatient"), {"inpatient": torch.tensor([math.nan])}
    assert task.loss({"inpatient": torch.zeros(1)}, batch) is None
    metrics = task.metrics()
    task.update(metrics, {"inpatient": torch.zeros(1)}, batch)
    assert not any(metric.update_called for metric in metrics.values())


def test_trains(data):
    assert_trains(Health(), data)


def test_quick_has_a_tenth_for_training(data):
    quick = Health().data(quick=True)
    assert len(quick.train) == math.ceil(len(data.train) / 10)
    assert len(quick.test) == len(data.test)
