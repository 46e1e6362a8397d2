"""Semantic segmentation: mean intersection over union and pixel accuracy."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix


class Segmentation(MulticlassConfusionMatrix):
    """Mean intersection over union and pixel accuracy, over all labelled pixels of the data.

    With `M` the confusion matrix (rows: truth) summed over the data, `IoU_c = M_cc / (Σ_j M_cj + Σ_i M_ic − M_cc)`;
    `mIoU` is the mean over the classes that occur in truth or prediction, `pAcc = Σ_c M_cc / ΣM`. Both NaN without
    a labelled pixel. The state is the matrix, `[classes, classes]`.

    `update` takes class indices `[B, …]` or logits `[B, classes, …]`, and labels `[B, …]`.

    Args:
        classes: how many.
        ignore_index: the label of pixels without one.

    Source: Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2015, over the whole set as
    there, not per image. Classes that occur nowhere are left out of the mean.

    Example:
        >>> import torch
        >>> from equipoise.bench.metrics import Segmentation
        >>> metric = Segmentation(classes=2)
        >>> metric.update(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, -1]]))
        >>> metric.compute()
        {'mIoU': tensor(1.), 'pAcc': tensor(1.)}
    """

    def __init__(self, classes: int, ignore_index: int = -1) -> None:
        super().__init__(num_classes=classes, ignore_index=ignore_index, validate_args=False)

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]
        """Returns `mIoU` and `pAcc`, in [0, 1]."""
        right = self.confmat.diagonal()
        union = self.confmat.sum(0) + self.confmat.sum(1) - right
        return {"mIoU": (right / union)[union > 0].mean(), "pAcc": right.sum() / self.confmat.sum()}
