"""Image and labels move together: against transforms written out here, or Pillow's."""

from __future__ import annotations

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("h5py")

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from equipoise.bench.problems.data import (
    DepthMap,
    DropHiddenBoxes,
    Letterbox,
    NormalMap,
    OnImage,
    RandomScaleCrop,
    SegmentationMap,
    augmentation,
    collate,
    preparation,
)

HEIGHT, WIDTH = 12, 20


@pytest.fixture
def sample() -> dict:
    """Every pixel can be told from every other, in the image and in each label."""
    pixel = torch.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    row, column = pixel // WIDTH, pixel % WIDTH
    normals = torch.stack([column / 100 - 0.1, row / 100, torch.ones(HEIGHT, WIDTH)])
    normals = normals / torch.linalg.vector_norm(normals, dim=0)
    return {
        "input": tv_tensors.Image(torch.stack([pixel, row, column]).to(torch.uint8)),
        "segmentation": SegmentationMap(pixel.clone()),
        "depth": DepthMap(pixel[None] / 10 + 1),
        "normals": NormalMap(normals),
        "detection": {
            "boxes": tv_tensors.BoundingBoxes(
                [[2, 1, 8, 6], [15, 9, 20, 12]], format="XYXY", canvas_size=(HEIGHT, WIDTH), dtype=torch.float32
            ),
            "labels": torch.tensor([4, 7]),
            "difficult": torch.tensor([False, True]),
        },
    }


def plain(value: Tensor) -> Tensor:
    return value.as_subclass(Tensor)


def test_a_flip_mirrors_everything_and_negates_the_x_component_of_normals(sample: dict) -> None:
    flipped = v2.RandomHorizontalFlip(1.0)(sample)
    for row, column in ((0, 0), (3, 7), (11, 19), (5, 10)):
        there = WIDTH - 1 - column
        for name in ("input", "segmentation", "depth"):
            assert torch.equal(plain(flipped[name])[..., row, there], plain(sample[name])[..., row, column])
        x, y, z = plain(sample["normals"])[:, row, column].tolist()
        assert plain(flipped["normals"])[:, row, there].tolist() == [-x, y, z]
    assert flipped["detection"]["boxes"].tolist() == [[12, 1, 18, 6], [0, 9, 5, 12]]
    assert flipped["detection"]["labels"].tolist() == [4, 7]
    twice = v2.RandomHorizontalFlip(1.0)(flipped)
    for name in ("input", "segmentation", "depth", "normals"):
        assert torch.equal(plain(twice[name]), plain(sample[name]))


def test_a_vertical_flip_negates_the_y_component(sample: dict) -> None:
    flipped = v2.RandomVerticalFlip(1.0)(sample)
    expected = plain(sample["normals"]).flip(1) * torch.tensor([1, -1, 1])[:, None, None]
    assert torch.equal(plain(flipped["normals"]), expected)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scale", [2.0, 1.25, 1.0, 0.5])
def test_scaling_by_s_divides_depth_by_s(sample: dict, scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    result = RandomScaleCrop([scale])(sample)
    window = (round(HEIGHT / scale), round(WIDTH / scale))
    # Where the window lies is read off the classes; all else has to agree with it.
    classes = plain(result["segmentation"]).numpy()
    assert classes.shape == (HEIGHT, WIDTH)
    row, column = np.argwhere(classes >= 0)[0]
    found = divmod(int(classes[row, column]), WIDTH)
    top = found[0] - int((row + 0.5) * window[0] / HEIGHT)
    left = found[1] - int((column + 0.5) * window[1] / WIDTH)
    if scale >= 1:
        assert 0 <= top <= HEIGHT - window[0]
        assert 0 <= left <= WIDTH - window[1]
    expected = {name: np.full((channels, HEIGHT, WIDTH), np.nan) for name, channels in (("depth", 1), ("normals", 3))}
    labels = np.full((HEIGHT, WIDTH), -1)
    for i in range(HEIGHT):
        for j in range(WIDTH):
            y, x = int((i + 0.5) * window[0] / HEIGHT) + top, int((j + 0.5) * window[1] / WIDTH) + left
            if 0 <= y < HEIGHT and 0 <= x < WIDTH:
                labels[i, j] = y * WIDTH + x
                expected["depth"][:, i, j] = plain(sample["depth"])[:, y, x] / scale
                expected["normals"][:, i, j] = plain(sample["normals"])[:, y, x]
    np.testing.assert_array_equal(classes, labels)
    np.testing.assert_allclose(plain(result["depth"]).numpy(), expected["depth"], rtol=1e-6)
    np.testing.assert_allclose(plain(result["normals"]).numpy(), expected["normals"], rtol=1e-6)  # directions stay
    if scale < 1:
        assert (labels == -1).any()
    # Boxes: every corner moves as its pixel does, then to the border.
    boxes = np.array([[2, 1, 8, 6], [15, 9, 20, 12]], dtype=float)
    moved = (boxes - [left, top, left, top]) * np.tile([WIDTH / window[1], HEIGHT / window[0]], 2)
    moved = moved.clip(0, [WIDTH, HEIGHT] * 2)
    np.testing.assert_allclose(plain(result["detection"]["boxes"]).numpy(), moved, atol=1e-4)
    # The image: rows and columns are linear ramps, which linear interpolation keeps, away from the border.
    if scale > 1:
        ramp = (np.arange(WIDTH) + 0.5) * window[1] / WIDTH - 0.5 + left
        inside = (ramp >= left) & (ramp <= left + window[1] - 1)
        image = plain(result["input"])[2].numpy()
        assert np.abs(image[:, inside] - ramp[inside]).max() <= 1


def test_scales_are_drawn_from_the_list_or_the_range(sample: dict) -> None:
    def drawn(transform: RandomScaleCrop) -> set[float]:
        ones = {"input": sample["input"], "depth": DepthMap(torch.ones(1, HEIGHT, WIDTH))}
        return {round(1 / float(plain(transform(ones)["depth"]).nanmean()), 4) for _ in range(40)}

    torch.manual_seed(0)
    assert drawn(RandomScaleCrop([1.0, 1.2, 1.5])) == {1.0, 1.2, 1.5}
    continuous = drawn(RandomScaleCrop([2 / 3, 4 / 3], continuous=True))
    assert len(continuous) > 30
    assert min(continuous) >= 0.6666
    assert max(continuous) <= 1.3334
    with pytest.raises(ValueError, match="scale must be a finite number > 0, found 0"):
        RandomScaleCrop([0])
    with pytest.raises(ValueError, match="scales is empty"):
        RandomScaleCrop([])


@pytest.mark.parametrize("size", [(8, 16), (24, 40), (12, 20), (32, 8), (8, 32)])  # no pixel lies half-way
def test_resizing_takes_the_nearest_label_as_pillow_does(sample: dict, size: tuple[int, int]) -> None:
    result = v2.Resize(list(size), antialias=True)(sample)
    values = plain(sample["segmentation"]).numpy().astype(np.int32)
    expected = np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.NEAREST))
    np.testing.assert_array_equal(plain(result["segmentation"]).numpy(), expected)
    np.testing.assert_allclose(plain(result["depth"])[0].numpy(), expected / 10 + 1, rtol=1e-6)  # not a zoom


@pytest.mark.parametrize("seed", range(8))
def test_what_is_missing_stays_missing_and_nothing_is_made_up(sample: dict, seed: int) -> None:
    torch.manual_seed(seed)
    holes = torch.rand(HEIGHT, WIDTH) < 0.3
    sample["depth"] = DepthMap(torch.where(holes, torch.nan, plain(sample["depth"])))
    sample["normals"] = NormalMap(torch.where(holes, torch.nan, plain(sample["normals"])))
    sample["segmentation"] = SegmentationMap(torch.where(holes, -1, plain(sample["segmentation"])))
    transform = v2.Compose([v2.Resize([17, 29]), RandomScaleCrop([1.5, 0.75]), v2.RandomHorizontalFlip()])
    result = transform(sample)
    classes = plain(result["segmentation"])
    missing = classes == -1
    assert torch.equal(plain(result["depth"])[0].isnan(), missing)
    assert torch.equal(plain(result["normals"]).isnan().any(0), missing)
    assert set(classes.unique().tolist()) <= set(plain(sample["segmentation"]).unique().tolist())
    depths = plain(sample["depth"]).flatten()[classes[~missing]]  # a class is the number of its pixel
    ratio = depths / plain(result["depth"])[0][~missing]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    assert round(float(ratio[0]), 4) in (1.5, 0.75)
    length = torch.linalg.vector_norm(plain(result["normals"])[:, ~missing], dim=0)
    torch.testing.assert_close(length, torch.ones_like(length))


def test_padding_and_crops_beyond_the_border_are_missing(sample: dict) -> None:
    padded = v2.Pad([1, 2, 3, 4])(sample)
    assert plain(padded["segmentation"]).shape == (HEIGHT + 6, WIDTH + 4)
    inside = (slice(2, 2 + HEIGHT), slice(1, 1 + WIDTH))
    outside = torch.ones(HEIGHT + 6, WIDTH + 4, dtype=torch.bool)
    outside[inside] = False
    assert (plain(padded["segmentation"])[outside] == -1).all()
    assert plain(padded["depth"])[0][outside].isnan().all()
    assert torch.equal(plain(padded["depth"])[0][inside], plain(sample["depth"])[0])
    away = v2.functional.crop(sample["depth"], 100, 100, 3, 4)
    assert plain(away).isnan().all()
    assert away.shape == (1, 3, 4)


def test_letterbox_keeps_the_shape_of_things(sample: dict) -> None:
    result = Letterbox((40, 40))(sample)  # 12×20 → padded to 20×20 → twice as large
    classes = plain(result["segmentation"])
    assert classes.shape == (40, 40)
    assert torch.equal(classes[:24:2, ::2], plain(sample["segmentation"]))
    assert (classes[24:] == -1).all()
    assert result["detection"]["boxes"].tolist() == [[4, 2, 16, 12], [30, 18, 40, 24]]
    assert torch.equal(plain(result["depth"])[0, :24:2, ::2], plain(sample["depth"])[0])
    tall = Letterbox((12, 24))({"input": sample["input"], "segmentation": sample["segmentation"]})
    assert (plain(tall["segmentation"])[:, 20:] == -1).all()
    assert torch.equal(plain(tall["segmentation"])[:, :20], plain(sample["segmentation"]))


@pytest.mark.parametrize(
    "transform",
    [
        v2.RandomRotation(10),
        v2.RandomAffine(0, translate=(0.1, 0.1)),
        v2.RandomPerspective(p=1.0),
        v2.ElasticTransform(alpha=1.0, sigma=0.5),
        v2.CenterCrop(30),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_transforms_that_would_leave_labels_wrong_are_refused(transform: v2.Transform, sample: dict) -> None:
    for name in ("segmentation", "depth", "normals"):
        with pytest.raises(TypeError, match=f"would leave a {type(sample[name]).__name__} wrong"):
            transform({"input": sample["input"], name: sample[name]})


def test_hidden_boxes_are_dropped_with_their_labels(sample: dict) -> None:
    cropped = v2.functional.crop(sample["detection"]["boxes"], 0, 0, 10, 12)
    result = DropHiddenBoxes()(sample | {"detection": sample["detection"] | {"boxes": cropped}})["detection"]
    assert result["boxes"].tolist() == [[2, 1, 8, 6]]
    assert isinstance(result["boxes"], tv_tensors.BoundingBoxes)
    assert result["labels"].tolist() == [4]
    assert result["difficult"].tolist() == [False]
    for without in (sample | {"detection": None}, {"input": sample["input"]}):
        assert DropHiddenBoxes()(without) is without


def test_colours_change_the_image_alone(sample: dict) -> None:
    result = OnImage(v2.Grayscale(3))(sample)
    assert not torch.equal(plain(result["input"]), plain(sample["input"]))
    for name in ("segmentation", "depth", "normals", "detection"):
        assert result[name] is sample[name]


def test_preparation_normalises_with_imagenets_statistics(sample: dict) -> None:
    result = preparation((HEIGHT, WIDTH))(sample)
    expected = plain(sample["input"]).double() / 255
    expected = (expected - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    torch.testing.assert_close(plain(result["input"]).double(), expected, rtol=0, atol=1e-5)
    as_floats = preparation((HEIGHT, WIDTH))(sample | {"input": tv_tensors.Image(plain(sample["input"]) / 255)})
    torch.testing.assert_close(plain(as_floats["input"]), plain(result["input"]))


def test_augmentation_is_decided_by_the_default_generator(sample: dict) -> None:
    transform = augmentation((10, 16), scales=(1.0, 1.5), colour=0.3)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append([plain(transform(sample)["input"]) for _ in range(5)])
    assert all(torch.equal(first, second) for first, second in zip(results[0], results[1], strict=True))
    assert not all(torch.equal(first, second) for first, second in zip(results[0], results[2], strict=True))


def test_batches(sample: dict) -> None:
    sample["yes"] = torch.tensor(1)
    batch = collate([sample, sample | {"detection": None, "yes": torch.tensor(-1)}])
    assert list(batch) == list(sample)
    assert batch["yes"].tolist() == [1, -1]
    assert batch["detection"][1] is None
    assert batch["detection"][0]["boxes"].tolist() == sample["detection"]["boxes"].tolist()
    assert all(type(value) is Tensor for value in batch["detection"][0].values())
    for name in ("input", "depth", "segmentation", "normals"):
        assert type(batch[name]) is Tensor
        assert torch.equal(batch[name], torch.stack([plain(sample[name])] * 2))
