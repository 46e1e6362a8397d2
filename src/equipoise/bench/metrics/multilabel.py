"""Several labels at once per sample: mean average precision and mean F1."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MultilabelF1Score
from torchmetrics.functional.classification import multilabel_average_precision
from torchmetrics.utilities import dim_zero_cat

from equipoise.bench.metrics._base import check_same_shape


class MeanAveragePrecision(Metric):
    """Mean over the labels of the average precision, `AP = Σ_i (R_i − R_{i−1}) P_i` over all thresholds.

    Exact, and so it keeps every score and label: 8 bytes each, 1.4 MB for EMOTIC's test set, 6.4 MB for CelebA's.
    A missing label (−1) is left out; a class without a positive label is left out of the mean. (torchmetrics' own
    class guesses from each batch's range whether it is given logits, and fails if one rank has no batch.)

    `update` takes logits and labels in {0, 1, −1}, both `[B, labels]`. One task with a single label: `[B, 1]`.

    Args:
        labels: how many.

    Example:
        >>> import torch
        >>> from equipoise.bench.metrics import MeanAveragePrecision
        >>> metric = MeanAveragePrecision(labels=1)
        >>> metric.update(torch.tensor([[2.0], [-1.0], [3.0]]), torch.tensor([[1], [0], [0]]))
        >>> metric.compute()
        tensor(0.5000)
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    scores: list[Tensor]
    truth: list[Tensor]

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.labels = labels
        self.add_state("scores", [], dist_reduce_fx="cat")  # flat float32: a rank without a batch sends that, empty
        self.add_state("truth", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch.

        Raises:
            ValueError: the shapes differ or are not `[B, labels]`.
        """
        _check_labels(logits, labels, self.labels)
        self.scores.append(logits.detach().float().flatten())
        self.truth.append(labels.float().flatten())

    def compute(self) -> Tensor:
        """Returns the mean average precision, in [0, 1]; NaN without a positive label."""
        # torchmetrics would take logits for probabilities, or make them such, and the large ones tie; ranks do neither.
        _, order = torch.unique(dim_zero_cat(self.scores), return_inverse=True)
        ranks = order.cpu().double()
        scores = (ranks / max(len(ranks), 1)).reshape(-1, self.labels)
        truth = dim_zero_cat(self.truth).reshape(-1, self.labels).cpu().long()
        present = (truth == 1).any(0)
        if not present.any():
            return torch.full((), torch.nan)
        return multilabel_average_precision(
            scores[:, present],
            truth[:, present],
            num_labels=int(present.sum()),
            ignore_index=-1,
            validate_args=False,
        ).float()


class MeanF1(MultilabelF1Score):
    """Mean over the labels of `F1 = 2TP / (2TP + FP + FN)`, a label being predicted where its probability is above ½.

    A missing label (−1) is left out; a label that is never true and never predicted has F1 0. The state is counts.

    `update` takes logits and labels in {0, 1, −1}, both `[B, labels]`. One task with a single label: `[B, 1]`.

    Args:
        labels: how many.

    Example:
        >>> import torch
        >>> from equipoise.bench.metrics import MeanF1
        >>> metric = MeanF1(labels=2)
        >>> metric.update(torch.tensor([[2.0, 1.0], [-1.0, 1.0]]), torch.tensor([[1, 1], [0, 0]]))
        >>> metric.compute()
        tensor(0.8333)
    """

    def __init__(self, labels: int) -> None:
        super().__init__(num_labels=labels, average="macro", ignore_index=-1, validate_args=False)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch.

        Raises:
            ValueError: the shapes differ or are not `[B, labels]`.
        """
        _check_labels(logits, labels, self.num_labels)
        super().update((logits > 0).long(), labels.long())


def _check_labels(logits: Tensor, labels: Tensor, count: int) -> None:
    check_same_shape(logits, labels)
    if logits.dim() != 2 or logits.shape[1] != count:
        raise ValueError(f"Logits and labels must have shape [B, {count}], found {tuple(logits.shape)}.")
