import numpy as np
import pytest
import torch
from merging import assert_merges
from sklearn.metrics import accuracy_score, jaccard_score

from equipoise.bench.metrics import Segmentation


def test_agrees_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 7, 9, 5, generator=generator)
    logits[:, 5] = -100  # class 5 is never predicted, and never true: left out
    labels = torch.randint(-1, 5, (6, 9, 5), generator=generator)
    labels[labels == 4] = 6  # class 4 is predicted, but never true: counts with 0
    values = assert_merges(lambda: Segmentation(classes=7), (logits, labels), [1, 3, 2])
    valid = (labels >= 0).numpy()
    truth, found = labels.numpy()[valid], logits.argmax(1).numpy()[valid]
    assert set(np.unique([*truth, *found])) == {0, 1, 2, 3, 4, 6}
    expected = jaccard_score(truth, found, average="macro")
    assert values["mIoU"].item() == pytest.approx(expected, rel=1e-6)
    assert values["pAcc"].item() == pytest.approx(accuracy_score(truth, found), rel=1e-6)
    # the mean over the data, not over batches or images
    per_image = np.mean(
        [
            jaccard_score(t[t >= 0], p[t >= 0], average="macro")
            for t, p in zip(labels.numpy(), logits.argmax(1).numpy(), strict=True)
        ]
    )
    assert abs(per_image - expected) > 1e-3


def test_ignores_another_index_and_takes_classes() -> None:
    metric = Segmentation(classes=3, ignore_index=255)
    metric.update(torch.tensor([[0, 1, 2, 2]]), torch.tensor([[0, 1, 1, 255]]))
    values = metric.compute()
    assert values["mIoU"].item() == pytest.approx((1 + 0.5 + 0) / 3)
    assert values["pAcc"].item() == pytest.approx(2 / 3)


def test_is_nan_without_a_labelled_pixel() -> None:
    metric = Segmentation(classes=3)
    metric.update(torch.zeros(1, 4, dtype=torch.long), torch.full((1, 4), -1))
    assert all(value.isnan() for value in metric.compute().values())
