"""Amounts that are not negative, such as counts and costs: Poisson deviance."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.bench.metrics._base import SumMetric, check_same_shape


class PoissonErrors(SumMetric):
    """Mean Poisson deviance, the share of it that is explained, and mean absolute error.

    The deviance of a label `y` under a predicted mean `μ` is `d(y, μ) = 2 (y log(y/μ) − y + μ)`, in the label's unit;
    `y log y` is 0 for `y = 0`. The share is `D² = 1 − Σ d(y, μ) / Σ d(y, ȳ)`, with `ȳ` the labels' mean: R² with
    deviance in place of the squared error. A missing label is NaN. All NaN without a label; D² is NaN or −∞ if all
    labels are the same.

    `update` takes predicted means, above 0, and labels, not below 0, of the same shape.

    Source: McCullagh and Nelder, "Generalized Linear Models", 1989; D² as in Hastie, Tibshirani and Wainwright,
    "Statistical Learning with Sparsity", 2015, section 3.2.

    Example:
        >>> import torch
        >>> from equipoise.bench.metrics import PoissonErrors
        >>> metric = PoissonErrors()
        >>> metric.update(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 2.0]))
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items()}
        {'deviance': 1.0, 'D²': 0.279, 'MAE': 0.5}
    """

    deviance: Tensor
    absolute: Tensor
    labels: Tensor
    entropy: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("deviance")
        self.add_sum("absolute")
        self.add_sum("labels")
        self.add_sum("entropy")  # Σ y log y
        self.add_sum("count", dtype=torch.int64)

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Adds a batch.

        Raises:
            ValueError: the shapes differ.
        """
        check_same_shape(predictions, labels)
        labelled = ~labels.isnan()
        means, truth = (tensor[labelled].to(self.deviance.dtype) for tensor in (predictions, labels))
        self.deviance += poisson_deviance(means.log(), truth).sum()
        self.absolute += (means - truth).abs().sum()
        self.labels += truth.sum()
        self.entropy += torch.xlogy(truth, truth).sum()
        self.count += labelled.sum()

    def compute(self) -> dict[str, Tensor]:
        """Returns `deviance`, `D²` and `MAE`."""
        of_the_mean = 2 * (self.entropy - torch.xlogy(self.labels, self.labels / self.count))
        return {
            "deviance": self.deviance / self.count,
            "D²": 1 - self.deviance / of_the_mean,
            "MAE": self.absolute / self.count,
        }


def poisson_deviance(logarithms: Tensor, labels: Tensor) -> Tensor:
    """Returns `2 (y log(y/μ) − y + μ)` for each logarithm of a mean `μ` and label `y ≥ 0`, of the same shape."""
    return 2 * (torch.xlogy(labels, labels) - labels * logarithms - labels + logarithms.exp())
