import pytest
import torch
from merging import assert_merges
from sklearn.metrics import f1_score

from equipoise.bench.metrics import MacroF1


@pytest.mark.parametrize("highest", [8, 6])
def test_agrees_with_scikit_learn(highest: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(80, 8, generator=generator)
    logits[:, highest:] = -100  # classes that are never predicted, nor true
    labels = torch.randint(-1, highest, (80,), generator=generator)
    values = assert_merges(lambda: MacroF1(8), (logits, labels), [1, 40, 39])
    valid = labels >= 0
    expected = f1_score(labels[valid], logits.argmax(1)[valid], average="macro")
    assert values["value"].item() == pytest.approx(expected, rel=1e-6)
