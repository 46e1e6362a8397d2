from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("h5py")

import numpy as np
from PIL import Image
from scipy.io import loadmat, savemat
from torchvision.transforms import v2

from equipoise.bench.problems.data import DamagedDataError, Emotic
from equipoise.bench.problems.data._samples import write_emotic


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_reads_what_was_written(split: str, tmp_path: Path, assert_samples) -> None:
    truth = write_emotic(tmp_path)
    assert_samples(Emotic(tmp_path, split), truth[split])


@pytest.mark.parametrize("split", ["train", "test"])
def test_26_tasks_are_the_26_categories(split: str, tmp_path: Path) -> None:
    write_emotic(tmp_path)
    two, many = Emotic(tmp_path, split), Emotic(tmp_path, split, separate=True)
    for together, apart in zip(two, many, strict=True):
        assert list(apart)[2:5] == ["Affection", "Anger", "Annoyance"]
        assert list(apart)[-1] == "Yearning"
        assert [int(label) for label in list(apart.values())[2:]] == together["categories"].tolist()


def struct(**fields: Any) -> np.ndarray:
    value = np.empty((), dtype=[(name, object) for name in fields])
    value[()] = tuple(fields.values())
    return value


def cells(*names: str) -> np.ndarray:
    return np.array([list(names)], dtype=object) if names else np.empty((1, 0), dtype=object)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One picture a split, annotated by hand."""
    (tmp_path / "emotic" / "framesdb" / "images").mkdir(parents=True)
    picture = np.zeros((60, 80, 3), np.uint8)
    picture[10:40, 20:50] = 255
    Image.fromarray(picture).save(tmp_path / "emotic" / "framesdb" / "images" / "a.jpg", quality=100)
    affect = struct(valence=5.0, arousal=6.0, dominance=7.0)
    alone = struct(
        body_bbox=np.array([[20, 10, 50, 40]], dtype=np.uint16),
        annotations_categories=struct(categories=cells("Anger", "Yearning")),
        annotations_continuous=affect,
        gender="Male",
        age="Kid",
    )
    several = struct(
        body_bbox=np.array([[20.0, 10.0, 50.0, 40.0]]),
        annotations_categories=[struct(categories=cells("Fear")), struct(categories=cells("Pain"))],
        combined_categories=cells("Fear", "Pain"),
        annotations_continuous=[affect, affect],
        combined_continuous=struct(valence=5.5, arousal=float("nan"), dominance=1.0),
        gender="Female",
        age="Adult",
    )
    variables = {}
    for variable, person in (("train", alone), ("val", several), ("test", several)):
        entries = np.empty((1, 1), dtype=[(name, object) for name in ("filename", "folder", "person")])
        entries[0, 0] = ("a.jpg", "framesdb/images", person)
        variables[variable] = entries
    savemat(tmp_path / "Annotations.mat", variables)
    return tmp_path


def test_values(folder: Path) -> None:
    (sample,) = Emotic(folder, "train")
    assert sample["categories"].nonzero().flatten().tolist() == [1, 25]
    assert sample["dimensions"].tolist() == [5.0, 6.0, 7.0]
    assert sample["box"].tolist() == [[20, 10, 50, 40]]
    assert sample["input"]["image"].shape == (3, 60, 80)
    assert sample["input"]["person"].shape == (3, 30, 30)
    assert sample["input"]["person"].float().mean() > 245
    (sample,) = Emotic(folder, "test")
    assert sample["categories"].nonzero().flatten().tolist() == [15, 17]
    assert sample["dimensions"][[0, 2]].tolist() == [5.5, 1.0]
    assert sample["dimensions"][1].isnan()


def test_image_person_and_box_are_mirrored_together(folder: Path) -> None:
    reader = Emotic(folder, "train")
    (before,) = reader
    after = v2.RandomHorizontalFlip(1.0)(before)
    assert after["input"]["image"].equal(before["input"]["image"].flip(-1))
    assert after["input"]["person"].equal(before["input"]["person"].flip(-1))
    assert after["box"].tolist() == [[30, 10, 60, 40]]
    left, top, right, bottom = after["box"][0].int().tolist()
    assert after["input"]["image"][:, top:bottom, left:right].equal(after["input"]["person"])


@pytest.mark.parametrize(
    ("old", "new", "message"), [("Anger", "Furious", "unknown category 'Furious'"), ("a.jpg", "../a.jpg", "outside")]
)
def test_damaged_annotations_are_named(folder: Path, old: str, new: str, message: str) -> None:
    variables = loadmat(folder / "Annotations.mat")
    entry = variables["train"][0, 0]
    if old == "a.jpg":
        entry["filename"] = np.array([new])
    else:
        entry["person"][0, 0]["annotations_categories"][0, 0]["categories"] = cells(new)
    savemat(folder / "Annotations.mat", {name: variables[name] for name in ("train", "val", "test")})
    with pytest.raises(DamagedDataError, match=rf"Annotations\.mat, image 1 of 'train': .*{message}"):
        Emotic(folder, "train")


def test_a_damaged_matlab_file_is_named(folder: Path, cut_off) -> None:
    cut_off(folder / "Annotations.mat")
    with pytest.raises(DamagedDataError, match=r"Annotations\.mat is not a readable MATLAB 5 file"):
        Emotic(folder, "train")
