"""Metrics of the papers' problems, as torchmetrics: streaming, masked, merged over batches and ranks.

Where torchmetrics has the metric, it is torchmetrics with missing labels left out. What computes several numbers
returns a mapping, whose keys a `torchmetrics.MetricCollection` takes over.
"""

from equipoise.metrics.classes import MacroF1
from equipoise.metrics.depth import DepthErrors
from equipoise.metrics.multilabel import MeanAveragePrecision, MeanF1
from equipoise.metrics.normals import AngularErrors
from equipoise.metrics.overall import overall_mean, overall_sum
from equipoise.metrics.regression import Concordance, RegressionErrors
from equipoise.metrics.segmentation import Segmentation

__all__ = [
    "AngularErrors",
    "Concordance",
    "DepthErrors",
    "MacroF1",
    "MeanAveragePrecision",
    "MeanF1",
    "RegressionErrors",
    "Segmentation",
    "overall_mean",
    "overall_sum",
]
