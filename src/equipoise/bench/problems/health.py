"""What a person's health care comes to in a year: visits and costs. Real records inside statsmodels, no download."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from equipoise.bench.metrics import PoissonErrors, poisson_deviance
from equipoise.bench.problems._base import Batch, Measure, Predictions, Splits, Task, Tensors, Training
from equipoise.bench.problems._splitting import split_by_group
from equipoise.bench.problems._tables import TableProblem, shipped_file

VISITS = {"doctor visits": "mdvis", "other visits": "notmdvis", "therapy visits": "mentvis", "admissions": "totadm"}
"""Counts a year: task → column."""

COSTS = {
    "outpatient": "outpdol",
    "drugs": "drugdol",
    "supplies": "suppdol",
    "psychotherapy": "mentdol",
    "inpatient": "inpdol",
}
"""Dollars a year: task → column."""

COLUMNS = VISITS | COSTS

NUMBERS = ("year", "time", "xage", "educdec", "linc", "lfam", "logc", "lpi", "fmde", "mhi", "disea", "xghindx")
FLAGS = ("tookphys", "black", "female", "child", "fchild", "idp", "physlm", "hlthg", "hlthf", "hlthp")
SITES = 6


class Amount(Task):
    """An amount that is not negative, by Poisson deviance; the share of it that is explained, and the absolute error.

    Predictions under the task's name are logarithms of means, `[B]` or `[B, 1]`; labels are float `[B]`, NaN if
    missing.

    Args:
        name: the task's name.
        unit: of the amount.
    """

    def __init__(self, name: str, unit: str = "") -> None:
        self.name = name
        self.measures = (
            Measure("deviance", higher_is_better=False, unit=unit),
            Measure("D²", higher_is_better=True),
            Measure("MAE", higher_is_better=False, unit=unit),
        )

    def loss(self, predictions: Predictions, batch: Batch) -> Tensor | None:
        """Returns the mean deviance over labelled samples."""
        labels = batch[self.name]
        labelled = ~labels.isnan()
        logarithms = predictions[self.name].reshape(len(labels))[labelled]
        return poisson_deviance(logarithms, labels[labelled]).mean() if len(logarithms) else None

    def labels(self, batch: Batch) -> Tensor:
        """Returns the number of labelled samples."""
        labels: Tensor = batch[self.name]
        return (~labels.isnan()).sum()

    def metrics(self) -> MetricCollection:
        """Returns deviance, D² and mean absolute error."""
        return MetricCollection(PoissonErrors())

    def update(self, metrics: MetricCollection, predictions: Predictions, batch: Batch) -> None:
        """Feeds means and labels."""
        labels = batch[self.name]
        if not labels.isnan().all():
            metrics.update(predictions[self.name].reshape(len(labels)).exp(), labels)

    def accuracy(self, values: Mapping[str, float]) -> float:
        """Returns D², 0 where it is negative."""
        return max(0.0, values["D²"])


class Health(TableProblem):
    """Person-years of the RAND Health Insurance Experiment: four counts of visits and five costs, each a task.

    20,190 years of 5,912 people, whom chance had given one insurance plan or another. From plan, health, age, income,
    family and site, 28 numbers, the tasks are the visits to doctors, to others and to psychotherapists, the admissions
    to hospital, and the dollars spent on outpatient care, drugs, supplies, psychotherapy and inpatient care.

    Every prediction is the logarithm of a mean, and its loss the Poisson deviance in the label's own unit: what is done
    about such amounts, many of them 0 and a few very large, whose mean is asked for. It holds whatever the labels'
    distribution around that mean, whole numbers or not. Admissions are a tenth a year, inpatient dollars a hundred:
    the losses differ a thousandfold. An inpatient cost that the study marks as incomplete (`inpmis`) is missing.

    The families are split 60, 20 and 20 %. The file has people but no families; people of one site with one and the
    same income, to six digits of its logarithm, are taken for a family, or for several that stay together. Features are
    standardised by the training years.

    Data: `statsmodels/datasets/randhie/src/randhie.csv` (statsmodels 0.15 or later, BSD 3-clause), which says that the
    data are in the public domain. Source: the RAND corporation, as in Cameron and Trivedi, "Microeconometrics", 2005,
    whose covariates these are, with the year, the site, and the indices of health.

    Args:
        seed: decides the split.
        model: the network, one of `equipoise.bench.problems._tables.NETWORKS`.
    """

    name = "health"
    description = "a person's visits to doctors and costs of health care in a year, from insurance plan and health"
    features = len(NUMBERS) + len(FLAGS) + SITES
    heads = dict.fromkeys(COLUMNS, 1)
    tasks = (*(Amount(name) for name in VISITS), *(Amount(name, "$") for name in COSTS))

    def data(self, quick: bool = False) -> Splits:
        """Returns the person-years of each split; about a tenth of those for training if `quick`.

        Raises:
            ProblemError: statsmodels is missing, or older than 0.15.
        """
        path = shipped_file(self.name, "statsmodels", "datasets", "randhie", "src", "randhie.csv")
        table = pd.read_csv(path)
        parts = split_by_group(table.groupby(["site", "linc"]).ngroup(), self.seed)
        table["inpdol"] = table["inpdol"].mask(table["inpmis"] == 1)
        numbers = table[list(NUMBERS + FLAGS)].join(pd.get_dummies(table["site"], dtype=float))
        training = numbers.iloc[parts["train"]]
        inputs = ((numbers - training.mean()) / training.std()).fillna(0.0)
        if quick:
            parts["train"] = parts["train"][::10]
        return Splits(
            **{
                split: Tensors(
                    input=torch.tensor(inputs.iloc[rows].to_numpy(), dtype=torch.float32),
                    **{
                        task: torch.tensor(table[column].iloc[rows].to_numpy(), dtype=torch.float32)
                        for task, column in COLUMNS.items()
                    },
                )
                for split, rows in parts.items()
            }
        )

    def training(self, quick: bool = False) -> Training:
        """Returns 20 epochs at batch size 256 and learning rate 2e-3; 2 epochs if `quick`."""
        return Training(
            epochs=2 if quick else 20, batch_size=256, evaluation_batch_size=5000, lr=2e-3, schedule="cosine"
        )
