"""The problem: what reaches network, losses, metrics and picture is what was rendered."""

import numpy as np
import pytest
import torch
from learning import assert_learns
from test_rooms_rendering import check_normals_follow_depth
from torch.nn import functional

from equipoise.bench.problems import ProblemError, load_problem, rooms, with_model
from equipoise.bench.problems._dense import DepthTask, NormalsTask, SegmentationTask, normals_as_colors
from equipoise.bench.problems._rendering import CLASSES, cache, render_many
from equipoise.bench.problems._rendering.casting import cast, list_surfaces
from equipoise.bench.problems._rendering.layout import random_camera, random_room
from equipoise.bench.problems.rooms import RoomPictures, Rooms, enlarge, mirror

FEW = {"train": 12, "validation": 4, "test": 6}


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def few(cache_folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_folder))
    monkeypatch.setattr(rooms, "QUICK", FEW)


@pytest.fixture
def rendered(monkeypatch):
    """Counts renderings."""
    calls = []

    def counting(*arguments):
        calls.append(arguments)
        return render_many(*arguments)

    monkeypatch.setattr(cache, "render_many", counting)
    return calls


def test_problem_gives_pictures_with_the_labels_that_were_rendered(few):
    problem = load_problem("rooms")
    data = problem.data(quick=True)
    for split, count in FEW.items():
        dataset = getattr(data, split)
        assert len(dataset) == count
        first = rooms.FIRST[split]
        expected = render_many(range(first, first + 3), 0)
        plain = RoomPictures(False, **{name: tensor[:3] for name, tensor in dataset.tensors.items()})
        batch = plain[[0, 1, 2]]
        image = batch["input"] * torch.tensor(rooms.DEVIATION).reshape(3, 1, 1) + torch.tensor(rooms.MEAN).reshape(
            3, 1, 1
        )
        np.testing.assert_allclose(image.numpy() * 255, expected["image"], atol=1e-3)
        assert (batch["segmentation"].numpy() == expected["class"]).all()
        assert batch["segmentation"].dtype == torch.int64
        hole = expected["hole"]
        assert hole.any()
        assert (batch["depth"][:, 0].isnan().numpy() == hole).all()
        assert (batch["normals"].isnan().numpy() == hole[:, None]).all()
        assert (batch["depth"][:, 0].numpy()[~hole] == expected["depth"][~hole]).all()
        normals = batch["normals"].movedim(1, -1).numpy()[~hole]
        assert (normals == np.moveaxis(expected["normal"], 1, -1)[~hole]).all()
        single = plain[1]
        assert all(torch.equal(single[name].nan_to_num(), batch[name][1].nan_to_num()) for name in batch)


def test_no_room_is_in_two_splits(few):
    data = Rooms().data(quick=True)
    pictures = [picture.numpy().tobytes() for split in FEW for picture in getattr(data, split).tensors["class"]]
    assert len(set(pictures)) == sum(FEW.values())


def test_half_of_the_training_pictures_are_mirrored_and_no_others(few, monkeypatch):
    monkeypatch.setattr(rooms, "SCALES", (1.0,))
    data = Rooms().data(quick=True)
    everything = list(range(FEW["train"]))
    plain = RoomPictures(False, **data.train.tensors)[everything]
    torch.manual_seed(0)
    flips = []
    for _ in range(10):
        batch = data.train[everything]
        for row in everything:
            kept = torch.equal(batch["segmentation"][row], plain["segmentation"][row])
            flips.append(not kept)
            for name, value in batch.items():
                expected = plain[name][row] if kept else mirror(name, plain[name][row])
                assert torch.equal(value[row].nan_to_num(-9), expected.nan_to_num(-9))
    assert 0.3 < sum(flips) / len(flips) < 0.7
    for split in ("validation", "test"):
        dataset = getattr(data, split)
        assert torch.equal(dataset[[0, 1]]["input"], dataset[[0, 1]]["input"])


def test_mirrored_normals_follow_from_mirrored_depth():
    random = np.random.default_rng(4)
    room = random_room(random)
    camera = random_camera(random, room, 96, 128)
    hits = cast(room, camera, list_surfaces(room))
    depth = mirror("depth", torch.from_numpy(hits.depth)).numpy()
    normals = mirror("normals", torch.from_numpy(np.einsum("ij,jhw->ihw", camera.rotation, hits.normal))).numpy()
    check_normals_follow_depth(depth, normals, hits.surface[:, ::-1], camera, least=0.4)


@pytest.mark.parametrize(("scale", "top", "left"), [(1.2, 16, 0), (1.5, 7, 43)])
def test_enlarged_pictures_show_a_window_and_are_nearer(few, scale, top, left):
    transforms = pytest.importorskip("torchvision.transforms.v2.functional")
    plain = RoomPictures(False, **Rooms().data(quick=True).test.tensors)[1]
    before = {name: value.clone() for name, value in plain.items()}
    large = enlarge(plain, scale, top, left)
    window = (top, left, round(96 / scale), round(128 / scale))

    def expected(value, mode):
        interpolation = transforms.InterpolationMode(mode)
        return transforms.resized_crop(value, *window, [96, 128], interpolation=interpolation, antialias=False)

    torch.testing.assert_close(large["input"], expected(plain["input"], "bilinear"))
    assert torch.equal(large["segmentation"], expected(plain["segmentation"][None], "nearest-exact")[0])
    near, far = large["depth"], expected(plain["depth"], "nearest-exact")
    assert torch.equal(near.isnan(), far.isnan())
    torch.testing.assert_close(near.nan_to_num(), far.nan_to_num() / scale)
    assert torch.equal(large["normals"].nan_to_num(-9), expected(plain["normals"].nan_to_num(-9), "nearest-exact"))
    assert all(torch.equal(plain[name].nan_to_num(), value.nan_to_num()) for name, value in before.items())


def test_boxes_are_enlarged_with_the_picture():
    boxes = torch.tensor([[10.0, 5.0, 40.0, 50.0], [60.0, 30.0, 90.0, 90.0], [2.0, 2.0, 9.5, 60.0], [0.0] * 4])
    sample = {"input": torch.zeros(3, 96, 128), "boxes": boxes, "objects": torch.tensor([3, 1, 2, -1])}
    large = enlarge(sample, 2.0, 10, 9)  # the window is 48×64
    assert large["boxes"][:3].tolist() == [[2, 0, 62, 80], [102, 40, 128, 96], [0, 0, 1, 96]]
    assert large["objects"].tolist() == [3, 1, 2, -1]
    sample["boxes"][2, 2] = 9.4
    assert enlarge(sample, 2.0, 10, 9)["objects"].tolist() == [3, 1, -1, -1]


def test_training_pictures_are_enlarged_by_the_protocols_scales(few):
    dataset = Rooms().data(quick=True).train
    plain = RoomPictures(False, **dataset.tensors)
    torch.manual_seed(0)
    found = set()
    for draw in range(40):
        row = draw % len(dataset)
        seen = dataset[[row]] if draw % 2 else {name: value[None] for name, value in dataset[row].items()}
        assert all(value.shape == plain[[row]][name].shape for name, value in seen.items())
        nearest = plain[row]["depth"].nan_to_num(99).min() / seen["depth"].nan_to_num(99).min()
        found |= {scale for scale in rooms.SCALES if abs(nearest - scale) < 1e-5}
    assert found == {1.0, 1.2, 1.5}


def test_boxes_are_mirrored_with_the_picture():
    boxes = torch.tensor([[10.0, 5.0, 30.0, 50.0]])
    assert mirror("boxes", boxes).tolist() == [[98.0, 5.0, 118.0, 50.0]]


def test_pictures_are_rendered_once_and_again_if_the_file_is_damaged(tmp_path, rendered):
    def load():
        return cache.load_pictures(range(2), 0, 24, 32, tmp_path)

    first = load()
    assert len(rendered) == 1
    second = load()
    assert len(rendered) == 1
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    middle = len(content) // 2
    damages = {
        "cut off": content[:middle],
        "empty": b"",
        "something else": b"not an archive",
        "one byte": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
    }
    for number, damaged in enumerate(damages.values(), 2):
        file.write_bytes(damaged)
        again = load()
        assert len(rendered) == number
        assert all((again[name] == array).all() and (second[name] == array).all() for name, array in first.items())
        assert file.read_bytes() == content


def test_pictures_of_another_version_or_with_pickles_are_made_anew(tmp_path, rendered):
    cache.load_pictures(range(2), 0, 24, 32, tmp_path)
    (file,) = tmp_path.iterdir()
    with np.load(file) as archive:
        arrays = dict(archive)
    np.savez(file, **{**arrays, "version": np.array("older")})
    cache.load_pictures(range(2), 0, 24, 32, tmp_path)
    assert len(rendered) == 2
    np.savez(file, **{**arrays, "image": np.array([print], dtype=object)})
    assert cache.load_pictures(range(2), 0, 24, 32, tmp_path)["image"].dtype == np.uint8
    assert len(rendered) == 3


def test_a_failed_write_leaves_nothing_and_a_folder_that_cannot_be_written_does_not_matter(tmp_path, monkeypatch):
    def fail(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(cache.np, "savez", fail)
    with pytest.raises(KeyboardInterrupt):
        cache.load_pictures(range(1), 0, 24, 32, tmp_path)
    assert list(tmp_path.iterdir()) == []
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert len(cache.load_pictures(range(1), 0, 24, 32, blocked / "folder")["image"]) == 1


def test_cache_is_in_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache.load_pictures(range(1), 0, 24, 32)
    assert [path.name for path in (tmp_path / "equipoise").iterdir()] == ["rooms-0-0-1-24x32.npz"]


def test_segmentation_loss_is_the_cross_entropy_of_labelled_pixels():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 3, 4, dtype=torch.float64), torch.randint(-1, 5, (2, 3, 4))
    expected = [-logits[b, :, i, j].log_softmax(0)[labels[b, i, j]] for b, i, j in (labels >= 0).nonzero().tolist()]
    loss = SegmentationTask(5).loss({"segmentation": logits}, {"segmentation": labels})
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item())


def test_depth_and_normals_losses_leave_out_what_is_missing_and_have_finite_gradients():
    torch.manual_seed(0)
    depth = torch.randn(2, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    truth = torch.rand(2, 1, 3, 4, dtype=torch.float64).masked_fill(torch.rand(2, 1, 3, 4) < 0.4, torch.nan)
    loss = DepthTask().loss({"depth": depth}, {"depth": truth})
    assert loss.item() == pytest.approx((depth - truth).abs().nanmean().item())
    loss.backward()
    assert (depth.grad.isfinite()).all()
    assert ((depth.grad == 0) == truth.isnan()).all()

    normals = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    unit = functional.normalize(torch.randn(2, 3, 3, 4, dtype=torch.float64), dim=1)
    hole = torch.rand(2, 1, 3, 4) < 0.4
    loss = NormalsTask().loss({"normals": normals}, {"normals": unit.masked_fill(hole, torch.nan)})
    cosine = (functional.normalize(normals, dim=1) * unit).sum(1)[~hole[:, 0]]
    assert loss.item() == pytest.approx((1 - cosine.mean()).item())
    loss.backward()
    assert normals.grad.isfinite().all()
    assert (normals.grad.abs().sum(1, keepdim=True)[hole] == 0).all()
    assert (normals.grad.abs().sum(1, keepdim=True)[~hole] > 0).all()


@pytest.mark.parametrize("task", Rooms().tasks, ids=lambda task: task.name)
def test_a_task_without_a_label_has_no_loss_and_measures_nothing(task):
    shapes = {"segmentation": (13,), "depth": (1,), "normals": (3,)}
    predictions = {task.name: torch.randn(2, *shapes[task.name], 4, 4)}
    empty = (
        torch.full((2, 4, 4), -1)
        if task.name == "segmentation"
        else torch.full((2, *shapes[task.name], 4, 4), torch.nan)
    )
    for batch in ({}, {task.name: empty}):
        assert task.loss(predictions, batch) is None
        metrics = task.metrics()
        task.update(metrics, predictions, batch)
        assert not any(metric.update_called for metric in metrics.values())


@pytest.mark.parametrize("task", Rooms().tasks, ids=lambda task: task.name)
def test_the_truth_as_prediction_has_the_best_measures(task, few):
    batch = Rooms().data(quick=True).test[[0, 1, 2]]
    truth = batch[task.name]
    best = (
        functional.one_hot(truth, 13).movedim(-1, 1).float() if task.name == "segmentation" else truth.nan_to_num(1.0)
    )
    metrics = task.metrics()
    task.update(metrics, {task.name: best}, batch)
    values = {name: float(value) for name, value in metrics.compute().items()}
    for measure in task.measures:
        assert values[measure.name] == pytest.approx(1.0 if measure.higher_is_better else 0.0, abs=0.03)
    assert task.accuracy(values) == pytest.approx(1)


def test_accuracies_are_the_shares_that_the_methods_expect():
    segmentation, depth, normals = Rooms().tasks
    assert segmentation.accuracy({"mIoU": 0.3, "pAcc": 0.7}) == 0.3
    assert depth.accuracy({"abs": 0.4, "rel": 0.2, "δ<1.25": 0.8}) == 0.8
    assert normals.accuracy({"mean": 20.0, "median": 11.0, "<11.25°": 0.45}) == 0.45


def test_network_shares_encoder_and_decoder_and_gives_full_size(few):
    model = Rooms().model()
    images = torch.randn(2, 3, 96, 128)
    predictions = model(images)
    assert {name: tuple(value.shape) for name, value in predictions.items()} == {
        "segmentation": (2, len(CLASSES), 96, 128),
        "depth": (2, 1, 96, 128),
        "normals": (2, 3, 96, 128),
    }
    shared = [name for name, _ in model.named_parameters() if not name.startswith("heads.")]
    for prediction in predictions.values():
        model.zero_grad()
        prediction.sum().backward(retain_graph=True)
        assert all(model.get_parameter(name).grad is not None for name in shared)


def test_network_learns_and_the_picture_shows_input_truth_and_prediction(few):
    problem = Rooms()
    model, batch = assert_learns(problem, problem.data(quick=True).train, 8)
    with torch.no_grad():
        predictions = problem.predict(model, batch)
    figure = problem.picture(predictions, batch)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["input", *(title for task in problem.tasks for title in (f"{task.name}: truth", "prediction"))]
    shown = [axis.images[0].get_array() for axis in figure.axes[:7]]
    np.testing.assert_array_equal(shown[1], batch["segmentation"][0])
    np.testing.assert_array_equal(shown[2], predictions["segmentation"][0].argmax(0))
    assert (np.ma.getmaskarray(shown[3]) == batch["depth"][0, 0].isnan().numpy()).all()
    figure.canvas.draw()


def test_directions_as_colours():
    normals = torch.tensor([[0.0, 0.0, torch.nan], [0.0, -2.0, torch.nan], [-1.0, 0.0, torch.nan]]).reshape(3, 1, 3)
    assert normals_as_colors(normals).tolist() == [[[0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]]


@pytest.mark.parametrize(("model", "initial"), [("pad-net", 1), ("mti-net", 4), ("mtan", 0)])
def test_another_network_is_an_option_and_its_initial_predictions_are_supervised(few, model, initial):
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    problem = load_problem(with_model("rooms", model))
    batch = problem.data(quick=True).test[[0, 1]]
    predictions = problem.predict(problem.model(), batch)
    assert len(predictions) == 3 * (1 + initial)
    for task, plain in zip(problem.tasks, Rooms().tasks, strict=True):
        loss = task.loss(predictions, batch)
        assert (loss > 1.01 * plain.loss(predictions, batch)) == (initial > 0)
        if initial:
            gradients = torch.autograd.grad(
                loss, [predictions[f"{task.name}@8"], predictions[task.name]], retain_graph=True
            )
            assert all(gradient.any() for gradient in gradients)


def test_an_unknown_network_names_those_that_there_are():
    with pytest.raises(ProblemError, match="rooms does not take the model 'ple': take one of residual, mtan, pad-net"):
        with_model("rooms", "ple")
