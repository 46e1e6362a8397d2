"""One class of several per sample: macro F1."""

from __future__ import annotations

from torchmetrics.classification import MulticlassF1Score


class MacroF1(MulticlassF1Score):
    """Mean over the classes of `F1 = 2TP / (2TP + FP + FN)`.

    Samples labelled −1 are left out, and so are classes that occur neither in truth nor in prediction (scikit-learn's
    default, and so that of the AffWild2 challenge's evaluation). The state is counts.

    `update` takes logits `[B, classes]` or class indices `[B]`, and labels `[B]`.

    Args:
        classes: how many.

    Example:
        >>> import torch
        >>> from equipoise.bench.metrics import MacroF1
        >>> metric = MacroF1(classes=2)
        >>> metric.update(torch.tensor([0, 1, 1]), torch.tensor([0, 1, -1]))
        >>> metric.compute()
        tensor(1.)
    """

    def __init__(self, classes: int) -> None:
        super().__init__(num_classes=classes, average="macro", ignore_index=-1, validate_args=False)
