import numpy as np
import torch
from sklearn.datasets import load_digits

from equipoise.bench.problems.digits import CANVAS, SCAN, Digits, RoundedAccuracy, Sum, load_scans, split_scans


def scans_of(split):
    """The scans that a split shows, each as bytes: recovered from the corners that only one digit covers."""
    canvases = (split.tensors["input"][:, 0] * 16).round().to(torch.uint8).numpy()
    free = CANVAS - SCAN
    left = {canvas[:free, :SCAN].tobytes() + canvas[:SCAN, :free].tobytes() for canvas in canvases}
    right = {canvas[-free:, -SCAN:].tobytes() + canvas[-SCAN:, -free:].tobytes() for canvas in canvases}
    return left, right


def test_the_scans_are_those_of_scikit_learn():
    images, labels = load_digits(return_X_y=True)
    scans, digits = load_scans()
    np.testing.assert_array_equal(scans.reshape(-1, SCAN * SCAN), images)
    np.testing.assert_array_equal(digits, labels)


def test_no_scan_stands_in_two_splits():
    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.uint8).reshape(-1, SCAN, SCAN)
    data = Digits().data()
    seen = {name: scans_of(getattr(data, name)) for name in ("train", "validation", "test")}
    free = CANVAS - SCAN
    as_left = [image[:free, :].tobytes() + image[:, :free].tobytes() for image in images]
    as_right = [image[-free:, :].tobytes() + image[:, -free:].tobytes() for image in images]
    for index in range(len(images)):
        if as_left.count(as_left[index]) == as_right.count(as_right[index]) == 1:  # like no other
            places = {
                name for name, (left, right) in seen.items() if as_left[index] in left or as_right[index] in right
            }
            assert len(places) <= 1, f"scan {index} of a {labels[index]} stands in {places}"
    for left, right in seen.values():  # the scans are recognised at all
        assert left <= set(as_left)
        assert right <= set(as_right)


def test_split_has_every_scan_once_and_every_class_in_equal_shares():
    _, labels = load_digits(return_X_y=True)
    parts = split_scans(labels, 0)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(labels)))
    for indices in parts.values():
        assert np.ptp(np.bincount(labels[indices]) / np.bincount(labels)) < 0.03


def test_labels_belong_to_the_scans_shown():
    """A canvas is its two scans: each lies where it should, and the labels are theirs."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images.reshape(-1, SCAN, SCAN), dtype=torch.float32) / 16
    labels = torch.tensor(labels)
    batch = Digits().data(quick=True).test[list(range(50))]
    for canvas, left, right, total in zip(batch["input"], batch["left"], batch["right"], batch["sum"], strict=True):
        free = CANVAS - SCAN
        first = ((images[:, :free, :] - canvas[0, :free, :SCAN]).abs().sum((1, 2)) == 0).nonzero()[:, 0]
        second = ((images[:, -free:, :] - canvas[0, -free:, -SCAN:]).abs().sum((1, 2)) == 0).nonzero()[:, 0]
        assert left in labels[first]
        assert right in labels[second]
        expected = torch.zeros(CANVAS, CANVAS)
        found = False
        for i in first:
            for j in second:
                expected.zero_()
                expected[:SCAN, :SCAN] = images[i]
                expected[free:, free:] = torch.maximum(expected[free:, free:], images[j])
                found |= bool(torch.equal(expected, canvas[0])) and labels[i] == left and labels[j] == right
        assert found
        assert total == left + right


def test_data_is_the_same_every_time_and_another_for_another_seed():
    first, again, other = Digits().data(quick=True), Digits().data(quick=True), Digits(seed=1).data(quick=True)
    assert torch.equal(first.train.tensors["input"], again.train.tensors["input"])
    assert not torch.equal(first.train.tensors["input"], other.train.tensors["input"])


def test_rounded_accuracy_counts_over_batches():
    metric = RoundedAccuracy()
    metric.update(torch.tensor([3.4, 4.6]), torch.tensor([3.0, 4.0]))
    metric.update(torch.tensor([8.51]), torch.tensor([9.0]))
    assert metric.compute() == torch.tensor(2 / 3)


def test_sum_measures():
    task = Sum()
    metrics = task.metrics()
    batch = {"sum": torch.tensor([3.0, 10.0])}
    predictions = {"sum": torch.tensor([4.0, 10.2])}
    task.update(metrics, predictions, batch)
    values = {name: float(value) for name, value in metrics.compute().items()}
    np.testing.assert_allclose([values["MSE"], values["MAE"], values["right"]], [1.04 / 2, 0.6, 0.5], rtol=1e-6)
    assert task.accuracy(values) == 0.5
    np.testing.assert_allclose(task.loss(predictions, batch).item(), 0.52, rtol=1e-6)


def test_model_and_picture_fit_the_data():
    problem = Digits()
    batch = problem.data(quick=True).test[list(range(12))]
    predictions = problem.predict(problem.model(), batch)
    assert {name: tuple(value.shape) for name, value in predictions.items()} == {
        "left": (12, 10),
        "right": (12, 10),
        "sum": (12,),
    }
    assert len(problem.picture(predictions, batch).axes) == 10
