import numpy as np
import pytest
import torch
from merging import assert_merges
from sklearn.metrics import average_precision_score, f1_score

from equipoise.bench.metrics import MeanAveragePrecision, MeanF1


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(60, 5, generator=generator)).round(decimals=1)  # with ties
    labels = torch.randint(-1, 2, (60, 5), generator=generator)
    labels[:, 3] = labels[:, 3].clamp(max=0)  # never true
    return logits, labels


def known(logits: torch.Tensor, labels: torch.Tensor):
    for column in range(labels.shape[1]):
        keep = labels[:, column] >= 0
        yield logits[keep, column].numpy(), labels[keep, column].numpy()


@pytest.mark.parametrize("scale", [1.0, 0.01, 1e6])
def test_average_precision_agrees_with_scikit_learn(batch, scale: float) -> None:
    logits, labels = batch[0] * scale, batch[1]
    logits[:10] = logits[:10].abs() % 1  # a batch whose logits look like probabilities
    values = assert_merges(lambda: MeanAveragePrecision(5), (logits, labels), [10, 1, 30, 19])
    expected = [average_precision_score(t, s) for s, t in known(logits, labels) if t.any()]
    assert len(expected) == 4
    assert values["value"].item() == pytest.approx(np.mean(expected), rel=1e-6)


def test_f1_agrees_with_scikit_learn(batch) -> None:
    logits, labels = batch
    logits[:10] = logits[:10].abs() % 1
    values = assert_merges(lambda: MeanF1(5), batch, [10, 1, 30, 19])
    expected = [f1_score(t, s > 0, zero_division=0.0) for s, t in known(logits, labels)]
    assert values["value"].item() == pytest.approx(np.mean(expected), rel=1e-6)


def test_a_label_never_true_and_never_predicted_has_f1_zero() -> None:
    metric = MeanF1(2)
    metric.update(torch.tensor([[1.0, -1.0]]), torch.tensor([[1, 0]]))
    assert metric.compute() == 0.5


def test_is_nan_without_a_positive_label() -> None:
    metric = MeanAveragePrecision(2)
    metric.update(torch.randn(3, 2), torch.tensor([[0, -1], [0, 0], [-1, -1]]))
    assert metric.compute().isnan()


@pytest.mark.parametrize("make", [MeanAveragePrecision, MeanF1])
def test_refuses_other_shapes(make) -> None:
    with pytest.raises(ValueError, match=r"\[B, 2\], found \(4,\)"):
        make(2).update(torch.zeros(4), torch.zeros(4))
    with pytest.raises(ValueError, match="same shape"):
        make(2).update(torch.zeros(4, 2), torch.zeros(2, 2))
