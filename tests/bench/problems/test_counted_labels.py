"""How many labels a task's loss is the mean over: by these numbers the means of a batch's parts are averaged."""

import math

import pytest
import torch

from equipoise.bench.experiment.batches import share
from equipoise.bench.experiment.training import Averages
from equipoise.bench.problems import Classification, Regression
from equipoise.bench.problems._dense import DeeplySupervised, DepthTask, NormalsTask, SegmentationTask
from equipoise.bench.problems._detection import CenterDetectionTask
from equipoise.bench.problems._tasks import BinaryClassification
from equipoise.bench.problems.digit_attributes import Attribute
from equipoise.bench.problems.digits import Sum
from equipoise.bench.problems.health import Amount

SIZE, SIDE = 6, 8


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


def classes(count, *shape):
    found = torch.randint(count, shape, generator=torch.Generator().manual_seed(0))
    found[numbers(*shape) > 0.5] = -1
    found[0] = -1
    return found


def some(*shape):
    found = numbers(*shape)
    found[(found[:, :1] > 0.3).expand_as(found) if found.dim() == 4 else found > 0.3] = math.nan
    found[0] = math.nan
    return found


def boxes(number):
    left_top = 8 * torch.rand(number, 2, generator=torch.Generator().manual_seed(number))
    return {"boxes": torch.cat([left_top, left_top + 9], 1), "labels": torch.arange(number) % 2}


CASES = [
    (Classification("t", 3), numbers(SIZE, 3), {"t": classes(3, SIZE)}),
    (BinaryClassification("t"), numbers(SIZE, 1), {"t": classes(2, SIZE)}),
    (Amount("t"), numbers(SIZE, 1), {"t": some(SIZE).abs()}),
    (Regression("t"), numbers(SIZE, 1), {"t": some(SIZE)}),
    (SegmentationTask(3, "t", 0.1), numbers(SIZE, 3, SIDE, SIDE), {"t": classes(3, SIZE, SIDE, SIDE)}),
    (DepthTask("t"), numbers(SIZE, 1, SIDE, SIDE), {"t": some(SIZE, 1, SIDE, SIDE)}),
    (NormalsTask("t"), numbers(SIZE, 3, SIDE, SIDE), {"t": some(SIZE, 3, SIDE, SIDE)}),
    (CenterDetectionTask(2), numbers(SIZE, 6, SIDE, SIDE), {"detection": [None, *map(boxes, (1, 2, 1, 5, 0))]}),
    (Sum(), numbers(SIZE), {"sum": numbers(SIZE, 1)[:, 0]}),
    (Attribute("t", 1), numbers(SIZE, 2), {"answers": (numbers(SIZE, 2) > 0).double()}),
]


@pytest.mark.parametrize(("task", "predictions", "batch"), CASES, ids=lambda value: type(value).__name__)
def test_parts_averaged_by_their_labels_are_the_whole(task, predictions, batch):
    """Of 2 unequal parts, and of single samples, some of which have no label."""

    def loss_of(batch, predictions):
        return task.loss(predictions if isinstance(task, Attribute) else {task.name: predictions}, batch)

    whole = loss_of(batch, predictions)
    for size in (4,) if isinstance(task, CenterDetectionTask) else (4, SIZE):
        parts = [(share(batch, rank, size), predictions[rank::size]) for rank in range(size)]
        found = [(loss_of(*part), int(task.labels(part[0]))) for part in parts]
        assert all((loss is None) == (count == 0) for loss, count in found)
        total = sum(count for _, count in found)
        assert total == int(task.labels(batch))
        assert sum(loss * count for loss, count in found if count) / total == pytest.approx(whole.item(), rel=1e-9)


def test_the_papers_tasks_count_too():
    vision = pytest.importorskip("equipoise.bench.problems.papers._tasks")
    several = vision.MultiLabel("t", 4, [vision.AP], key="labels")
    labels = torch.tensor([[1, 0, -1, 1], [-1, -1, -1, -1]])
    assert several.labels({"labels": labels}) == 3
    affect = torch.tensor([[0.5, math.nan], [0.1, 0.2], [0.3, 0.4]])
    assert vision.ValenceArousal().labels({"valence_arousal": affect}) == 2
    assert vision.Dimensions().labels({"dimensions": affect}) == 5
    assert DeeplySupervised(DepthTask("t")).labels({"t": affect}) == 5


def test_dense_labels_that_are_not_in_a_batch_are_none():
    for task in (SegmentationTask(3), DepthTask(), NormalsTask(), CenterDetectionTask(2)):
        assert task.labels({}) == 0


def test_an_epochs_mean_over_devices_is_that_of_whole_batches():
    """Two devices, three steps, two tasks: in the second step one has no label of b, in the third neither of a."""
    first, second = Averages(["a", "b"]), Averages(["a", "b"])
    for averages, steps in (
        (first, [({"a": 1.0, "b": 2.0}, {"a": 1, "b": 3}), ({"a": 3.0}, {"a": 2}), ({}, {})]),
        (second, [({"a": 5.0, "b": 6.0}, {"a": 3, "b": 1}), ({"b": 7.0}, {"b": 2}), ({"b": 1.0}, {"b": 1})]),
    ):
        for values, counts in steps:
            averages.add({name: torch.tensor(value) for name, value in values.items()}, counts)
    tables = []
    second.means(lambda table: tables.append(table) or table)
    means = first.means(lambda table: table + tables[0])
    assert means == pytest.approx({"a": ((1 + 15) / 4 + 3) / 2, "b": ((6 + 6) / 4 + 7 + 1) / 3})
    assert list(Averages(["a"]).means()) == []
