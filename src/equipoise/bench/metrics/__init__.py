"""Metrics of the papers' problems, as torchmetrics: streaming, masked, merged over batches and ranks.

Where torchmetrics has the metric, it is torchmetrics with missing labels left out. What computes several numbers
returns a mapping, whose keys a `torchmetrics.MetricCollection` takes over.
"""

from equipoise.bench.metrics.classes import MacroF1
from equipoise.bench.metrics.counts import PoissonErrors, poisson_deviance
from equipoise.bench.metrics.depth import DepthErrors
from equipoise.bench.metrics.multilabel import MeanAveragePrecision, MeanF1
from equipoise.bench.metrics.normals import AngularErrors
from equipoise.bench.metrics.overall import overall_mean, overall_sum
from equipoise.bench.metrics.regression import Concordance, RegressionErrors
from equipoise.bench.metrics.segmentation import Segmentation

__all__ = [
    "AngularErrors",
    "Concordance",
    "DepthErrors",
    "MacroF1",
    "MeanAveragePrecision",
    "MeanF1",
    "PoissonErrors",
    "RegressionErrors",
    "Segmentation",
    "overall_mean",
    "overall_sum",
    "poisson_deviance",
]
