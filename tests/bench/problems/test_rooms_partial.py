"""Each picture labelled for some tasks only, and boxes as points."""

import importlib.util

import pytest
import torch
from learning import assert_learns

from equipoise.bench.problems import ProblemError, load_problem, rooms
from equipoise.bench.problems._detection import CenterDetectionTask, aim
from equipoise.bench.problems._rendering import THINGS
from equipoise.bench.problems.rooms_partial import RoomsPartial, label_some

needs_vision = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("timm", "torchvision")), reason="needs the extra vision"
)
FEW = {"train": 20, "validation": 3, "test": 4}


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def few(cache_folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_folder))
    monkeypatch.setattr(rooms, "QUICK", FEW)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


@pytest.mark.parametrize("count", [160, 600, 10_000])
def test_labelled_shares_are_those_of_voc_and_nyu(count):
    labelled = label_some(count, seed=3)
    shares = {task: has.float().mean().item() for task, has in labelled.items()}
    assert shares == pytest.approx(
        {"detection": 0.3857, "segmentation": 0.2656, "depth": 0.6443}, abs=0.5 / count + 1e-6
    )
    assert not (labelled["segmentation"] & ~labelled["detection"]).any()
    assert torch.stack(list(labelled.values())).any(0).all()
    assert (labelled["detection"] & labelled["depth"]).float().mean() == pytest.approx(0.03, abs=1.5 / count)
    assert any(
        not torch.equal(has, other) for has, other in zip(labelled.values(), label_some(count, 4).values(), strict=True)
    )


def test_training_pictures_have_their_labels_and_no_others(few):
    data = load_problem("rooms-partial").data(quick=True)
    labelled = label_some(20, 0)
    everything = data.train[list(range(20))]
    for row in range(20):
        assert (everything["detection"][row] is not None) == labelled["detection"][row]
        assert (everything["segmentation"][row] != -1).all() == labelled["segmentation"][row]
        assert (everything["segmentation"][row] == -1).any() != labelled["segmentation"][row]
        assert everything["depth"][row].isfinite().any() == labelled["depth"][row]
        single = data.train[row]
        assert ("depth" in single) == labelled["depth"][row]
    for dataset in (data.validation, data.test):
        batch = dataset[[0, 1, 2]]
        assert all(objects is not None for objects in batch["detection"])
        assert (batch["segmentation"] >= 0).all()
        assert batch["depth"].isfinite().flatten(1).any(1).all()


def test_a_batch_leaves_out_tasks_without_a_label_and_the_others_have_losses(few):
    problem = RoomsPartial()
    data = problem.data(quick=True)
    labelled = label_some(20, 0)
    model = problem.model()
    only_depth = (labelled["depth"] & ~labelled["detection"]).nonzero()[:4, 0].tolist()
    only_boxes = (labelled["detection"] & ~labelled["segmentation"] & ~labelled["depth"]).nonzero()[:2, 0].tolist()
    for rows, names in ((only_depth, {"depth"}), (only_boxes, {"detection"})):
        assert rows
        batch = data.train[rows]
        assert set(batch) == {"input", *names}
        predictions = problem.predict(model, batch)
        losses = {task.name: task.loss(predictions, batch) for task in problem.tasks}
        assert {name for name, loss in losses.items() if loss is not None} == names


def test_boxes_stay_on_their_things_when_mirrored(few, monkeypatch):
    monkeypatch.setattr(rooms, "SCALES", (1.0,))
    data = RoomsPartial().data(quick=True)
    row = int(label_some(20, 0)["segmentation"].nonzero()[0])
    torch.manual_seed(0)
    seen = set()
    for _ in range(8):
        batch = data.train[[row]]
        seen.add(batch["segmentation"][0].numpy().tobytes())
        for box, label in zip(*(batch["detection"][0][name] for name in ("boxes", "labels")), strict=True):
            left, top, right, bottom = box.long().tolist()
            inside = batch["segmentation"][0, top:bottom, left:right] == label + 3
            for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert edge.any()
    assert len(seen) == 2


def test_what_is_aimed_at_decodes_to_the_boxes():
    boxes = torch.tensor(
        [[8.0, 4.0, 40.0, 60.0], [50.0, 40.0, 56.0, 52.0], [100.0, 0.0, 128.0, 96.0], [90.0, 70.0, 99.0, 80.0]]
    )
    labels = torch.tensor([2, 2, 9, 0])
    heat, places, reaches = aim({"boxes": boxes, "labels": labels}, len(THINGS), (24, 32))
    assert (heat == 1).sum() == 4
    maps = torch.zeros(1, len(THINGS) + 4, 24, 32)
    maps[0, :-4] = torch.logit(heat, eps=1e-4)
    maps[0, -4:, places[:, 1], places[:, 0]] = reaches.T
    (found,) = CenterDetectionTask(len(THINGS)).detect({"detection": maps}, (96, 128))
    confident = found["scores"] > 0.9
    order = torch.argsort(found["boxes"][confident][:, 0])
    torch.testing.assert_close(found["boxes"][confident][order], boxes[boxes[:, 0].argsort()])
    assert found["labels"][confident][order].tolist() == labels[boxes[:, 0].argsort()].tolist()


def test_detection_loss_against_the_formula():
    torch.manual_seed(0)
    objects = {
        "boxes": torch.tensor([[8.0, 4.0, 40.0, 60.0], [50.0, 40.0, 56.0, 52.0]]),
        "labels": torch.tensor([1, 0]),
    }
    maps = torch.randn(3, 2 + 4, 24, 32, dtype=torch.float64)
    loss = CenterDetectionTask(2).loss({"detection": maps}, {"detection": [None, objects, None]})
    heat, _, _ = aim(objects, 2, (24, 32))
    focal = 0.0
    for label in range(2):
        for row in range(24):
            for column in range(32):
                p, y = torch.sigmoid(maps[1, label, row, column]), heat[label, row, column].double()
                focal -= (1 - p) ** 2 * p.log() if y == 1 else (1 - y) ** 4 * p**2 * (1 - p).log()
    sides = 0.0
    for left, top, right, bottom in (objects["boxes"] / 4).tolist():
        column, row = int((left + right) / 2), int((top + bottom) / 2)
        wanted = [column + 0.5 - left, row + 0.5 - top, right - column - 0.5, bottom - row - 0.5]
        sides += (maps[1, 2:, row, column] - torch.tensor(wanted).double().log()).abs().mean()
    assert loss.item() == pytest.approx(((focal + sides) / 2).item(), rel=1e-5)


def test_a_labelled_picture_without_boxes_teaches_that_there_are_none():
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    maps = torch.zeros(1, 6, 24, 32, requires_grad=True)
    CenterDetectionTask(2).loss({"detection": maps}, {"detection": [none]}).backward()
    assert (maps.grad[:, :2] > 0).all()
    assert (maps.grad[:, 2:] == 0).all()


@pytest.mark.parametrize("name", ["rooms-mtan", "rooms-partial", "rooms-efficientdet"])
def test_without_torchvision_the_error_says_what_to_install(name, monkeypatch):
    problem = load_problem(name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ProblemError, match=rf"{name} needs timm and torchvision: pip install 'equipoise\[vision\]'"):
        problem.data(quick=True)


@needs_vision
@pytest.mark.parametrize("name", ["rooms-mtan", "rooms-efficientdet"])
def test_the_papers_networks_train_and_are_measured_and_drawn(name, few):
    problem = load_problem(name)
    data = problem.data(quick=True)
    torch.manual_seed(0)
    model = problem.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    labelled = label_some(20, 0)
    batch = data.train[[row for name in ("segmentation", "depth") for row in labelled[name].nonzero()[:2, 0].tolist()]]
    history = []
    for _ in range(4):
        predictions = problem.predict(model, batch)
        losses = [task.loss(predictions, batch) for task in problem.tasks]
        history.append([loss.item() for loss in losses])
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
    assert all(last < first for first, last in zip(history[0], history[-1], strict=True))
    batch = data.test[[0, 1, 2, 3]]
    with torch.no_grad():
        predictions = problem.predict(model.eval(), batch)
    for task in problem.tasks:
        metrics = task.metrics()
        task.update(metrics, predictions, batch)
        assert 0 <= task.accuracy({name: float(value) for name, value in metrics.compute().items()}) <= 1
    problem.picture(predictions, batch).canvas.draw()


@needs_vision
def test_right_boxes_have_a_mean_average_precision_of_one(few):
    task = RoomsPartial().tasks[0]
    batch = RoomsPartial().data(quick=True).test[[0, 1, 2, 3]]
    maps = torch.full((4, len(THINGS) + 4, 24, 32), -9.0)
    for row, objects in enumerate(batch["detection"]):
        heat, places, reaches = aim(objects, len(THINGS), (24, 32))
        maps[row, :-4] = torch.logit((heat == 1).float(), eps=1e-4)
        maps[row, -4:, places[:, 1], places[:, 0]] = reaches.T
    metrics = task.metrics()
    task.update(metrics, {"detection": maps}, batch)
    values = {name: float(value) for name, value in metrics.compute().items()}
    assert values["mAP"] == pytest.approx(1)
    assert task.accuracy(values) == values["mAP"]


def test_network_learns_from_partial_labels_and_the_picture_shows_boxes(few):
    problem = RoomsPartial()
    data = problem.data(quick=True)
    model, _ = assert_learns(problem, data.train, 12)
    batch = data.test[[0, 1, 2, 3]]
    with torch.no_grad():
        figure = problem.picture(problem.predict(model, batch), batch)
    truth = figure.axes[1]
    assert len(truth.patches) == len(batch["detection"][0]["labels"])
    assert [text.get_text() for text in truth.texts] == [THINGS[label] for label in batch["detection"][0]["labels"]]
    figure.canvas.draw()
