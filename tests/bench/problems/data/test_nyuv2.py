from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("h5py")

import h5py
import numpy as np
import torch
from scipy.io import loadmat, savemat

from equipoise.bench.problems.data import (
    NYUDMT,
    DamagedDataError,
    MissingDataError,
    NYUv2,
    NYUv2Arrays,
    normals_from_depth,
)
from equipoise.bench.problems.data._samples import write_nyud_mt, write_nyuv2, write_nyuv2_arrays
from equipoise.bench.problems.data.nyuv2 import room_of

SPLITS = pytest.mark.parametrize("split", ["train", "test"])


def without_normals(samples) -> list:
    return [{name: value for name, value in sample.items() if name != "normals"} for sample in samples]


@SPLITS
def test_the_authors_file(split: str, tmp_path: Path, assert_samples) -> None:
    truth = write_nyuv2(tmp_path)[split]
    reader = NYUv2(tmp_path, split)
    assert_samples(without_normals(reader), without_normals(truth))
    for sample, true in zip(reader, truth, strict=True):
        found = sample["normals"].as_subclass(torch.Tensor)
        missing = found.isnan().any(0)
        assert torch.equal(missing, true["depth"][0].isnan())  # known wherever the depth is
        length = torch.linalg.vector_norm(found[:, ~missing], dim=0)
        torch.testing.assert_close(length, torch.ones_like(length))
        cosine = (found * true["normals"]).sum(0)[~missing].clamp(-1, 1)
        # Within 5° but along the edges between walls, where the window sees two planes.
        assert (cosine > 0.996).float().mean() > 0.8
        assert cosine.median() > 0.9999


def test_13_and_894_classes(tmp_path: Path) -> None:
    truth = write_nyuv2(tmp_path)["train"]
    groups = loadmat(tmp_path / "class13Mapping.mat")["classMapping13"]["labels13"][0, 0].ravel()
    groups = torch.from_numpy(groups.astype(np.int64))
    mapping = torch.from_numpy(loadmat(tmp_path / "classMapping40.mat")["mapClass"].ravel().astype(np.int64))
    for few, many, true in zip(NYUv2(tmp_path, "train", 13), NYUv2(tmp_path, "train", 894), truth, strict=True):
        labelled = true["segmentation"] >= 0
        assert not labelled.all()
        assert (few["segmentation"][~labelled] == -1).all()
        assert (many["segmentation"][~labelled] == -1).all()
        assert torch.equal(few["segmentation"][labelled], groups[true["segmentation"][labelled]] - 1)
        assert torch.equal(mapping[many["segmentation"][labelled]] - 1, true["segmentation"][labelled])
    with pytest.raises(ValueError, match="classes must be 13, 40 or 894, found 41"):
        NYUv2(tmp_path, "train", 41)


@pytest.mark.parametrize(
    ("name", "classes"), [("splits.mat", 894), ("classMapping40.mat", 40), ("class13Mapping.mat", 13)]
)
def test_missing_side_files_are_named(name: str, classes: int, tmp_path: Path) -> None:
    write_nyuv2(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(MissingDataError, match=f"{name} is missing"):
        NYUv2(tmp_path, "train", classes)


def test_a_mapping_for_other_classes_is_refused(tmp_path: Path) -> None:
    write_nyuv2(tmp_path)
    mapping = loadmat(tmp_path / "classMapping40.mat")
    names = mapping["allClassName"].copy()
    names[0, 2], names[0, 3] = names[0, 3], names[0, 2]
    savemat(tmp_path / "classMapping40.mat", {"allClassName": names, "mapClass": mapping["mapClass"]})
    with pytest.raises(DamagedDataError, match="first difference: 'class 4' and 'class 3'"):
        NYUv2(tmp_path, "train")
    NYUv2(tmp_path, "train", 894)  # needs no mapping


def test_splits_of_another_file_are_refused(tmp_path: Path) -> None:
    write_nyuv2(tmp_path, (4, 3))
    savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([[1], [8]]), "testNdxs": np.array([[0]])})
    for split in ("train", "test"):
        with pytest.raises(DamagedDataError, match="must number pictures from 1 to 7"):
            NYUv2(tmp_path, split)


def test_a_cut_off_file_is_named(tmp_path: Path, cut_off) -> None:
    write_nyuv2(tmp_path)
    cut_off(tmp_path / "nyu_depth_v2_labeled.mat")
    with pytest.raises(DamagedDataError, match=r"nyu_depth_v2_labeled\.mat is not a readable MATLAB 7.3 file"):
        NYUv2(tmp_path, "train")


def test_a_label_beyond_the_classes_names_the_picture(tmp_path: Path) -> None:
    write_nyuv2(tmp_path)
    number = int(loadmat(tmp_path / "splits.mat")["trainNdxs"][1, 0])
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "r+") as file:
        file["labels"][number - 1, 0, 0] = 2000
    with pytest.raises(DamagedDataError, match=rf"nyu_depth_v2_labeled\.mat \(picture {number}\)"):
        NYUv2(tmp_path, "train")[1]
    assert len(NYUv2(tmp_path, "train", on_damaged="skip")) == 3


def test_pictures_of_a_room_belong_together(tmp_path: Path) -> None:
    write_nyuv2(tmp_path, (7, 3), (8, 8))
    numbers = loadmat(tmp_path / "splits.mat")["trainNdxs"].ravel().tolist()
    expected = [f"kitchen_{1 + (number - 1) // 3:04d}" for number in numbers]
    assert NYUv2(tmp_path, "train").groups == expected
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "r+") as file:
        fewer = file["scenes"][:, :9]
        del file["scenes"]
    assert NYUv2(tmp_path, "train").groups == [index * 80 // 7 for index in range(7)]
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "r+") as file:
        file.create_dataset("scenes", data=fewer, dtype=h5py.ref_dtype)
    with pytest.raises(DamagedDataError, match="has 10 pictures and the scenes of 9"):
        NYUv2(tmp_path, "train")


def test_rooms_have_their_scenes_names_without_the_letter() -> None:
    scenes = ["basement_0001a", "basement_0001b", "kitchen_0028", "nyu_office_1", "reception_room_0001a", "cafe"]
    rooms = ["basement_0001", "basement_0001", "kitchen_0028", "nyu_office_1", "reception_room_0001", "cafe"]
    assert [room_of(scene) for scene in scenes] == rooms


@SPLITS
def test_arrays_of_the_authors_of_mtan(split: str, tmp_path: Path, assert_samples) -> None:
    truth = write_nyuv2_arrays(tmp_path, (12, 3))[split]  # 10.npy comes after 9.npy
    assert_samples(NYUv2Arrays(tmp_path, split), truth)


@pytest.mark.parametrize(("part", "value"), [("label", 13), ("label", 2.5), ("label", -2)])
def test_labels_out_of_range_are_named(part: str, value: float, tmp_path: Path) -> None:
    write_nyuv2_arrays(tmp_path)
    path = tmp_path / "train" / part / "2.npy"
    labels = np.load(path)
    labels[0, 0] = value
    np.save(path, labels)
    with pytest.raises(DamagedDataError, match=r"label/2\.npy must have 13 classes or none per pixel"):
        NYUv2Arrays(tmp_path, "train")[2]


def test_an_array_of_another_size_is_named(tmp_path: Path) -> None:
    write_nyuv2_arrays(tmp_path)
    np.save(tmp_path / "train" / "depth" / "1.npy", np.ones((96, 127, 1)))
    with pytest.raises(DamagedDataError, match=r"depth/1\.npy has shape \(96, 127, 1\), expected \(96, 128, 1\)"):
        NYUv2Arrays(tmp_path, "train")[1]


def test_a_missing_picture_leaves_a_hole_that_is_reported(tmp_path: Path) -> None:
    write_nyuv2_arrays(tmp_path)
    (tmp_path / "train" / "image" / "1.npy").unlink()
    reader = NYUv2Arrays(tmp_path, "train", on_damaged="skip")
    assert len(reader) == 3
    assert reader.damaged == [f"{tmp_path / 'train' / 'image' / '1.npy'} is missing."]


@SPLITS
def test_nyud_mt(split: str, tmp_path: Path, assert_samples) -> None:
    truth = write_nyud_mt(tmp_path)[split]
    assert_samples(NYUDMT(tmp_path, split), truth)


def test_nyud_mt_in_its_older_form(tmp_path: Path, assert_samples) -> None:
    truth = write_nyud_mt(tmp_path, form="mat")["test"]
    reader = NYUDMT(tmp_path, "test")
    assert_samples(without_normals(reader), without_normals(truth))
    for sample, true in zip(reader, truth, strict=True):
        close = (sample["normals"].as_subclass(torch.Tensor) * true["normals"]).sum(0) > 0.99
        assert close.float().mean() > 0.97  # JPEG blurs the edges


def test_nyud_mt_background_is_not_a_class(tmp_path: Path) -> None:
    write_nyud_mt(tmp_path)
    from PIL import Image

    path = tmp_path / "segmentation" / "0001.png"
    values = np.array(Image.open(path))
    values[:2] = [[0], [40]]
    Image.fromarray(values).save(path)
    segmentation = NYUDMT(tmp_path, "train")[0]["segmentation"]
    assert (segmentation[0] == -1).all()
    assert (segmentation[1] == 39).all()
    values[0, 0] = 41
    Image.fromarray(values).save(path)
    with pytest.raises(DamagedDataError, match=r"0001\.png must have 40 classes or none"):
        NYUDMT(tmp_path, "train")[0]


# The camera of the data set, written down once more: fx, fy, cx, cy for 480×640, pixels counted from 1.
CAMERA = (518.85790117450188, 519.46961112127485, 325.58244941119034, 253.73616633400465)


def plane(normal: torch.Tensor, distance: float, size: tuple[int, int] = (480, 640)) -> torch.Tensor:
    """Depth of the plane `normal·P = −distance`, at each pixel of the camera."""
    height, width = size
    rows = (torch.arange(height, dtype=torch.float64) + 0.5) * 480 / height + 0.5
    columns = (torch.arange(width, dtype=torch.float64) + 0.5) * 640 / width + 0.5
    x = ((columns - CAMERA[2]) / CAMERA[0]).expand(height, width)
    y = ((rows - CAMERA[3]) / CAMERA[1])[:, None].expand(height, width)
    return (-distance / (normal[0] * x + normal[1] * y + normal[2]))[None]


@pytest.mark.parametrize("size", [(480, 640), (96, 128), (120, 100)])
@pytest.mark.parametrize("direction", [(0, 0, -1), (0.3, -0.5, -0.8), (-0.7, 0.1, -0.6), (0.1, -0.9, -0.5)])
def test_normals_of_a_plane(direction: tuple[float, ...], size: tuple[int, int]) -> None:
    normal = torch.tensor(direction, dtype=torch.float64)
    normal = normal / normal.norm()
    depth = plane(normal, 2.0, size)
    depth = torch.where((depth > 0.5) & (depth < 20), depth, torch.nan)
    found = normals_from_depth(depth)
    seen = ~depth[0].isnan()
    assert found.dtype == torch.float32
    assert found[:, ~seen].isnan().all()
    error = (found[:, seen].double() - normal[:, None]).norm(dim=0)
    # A window at a grazing angle may hold a single line of pixels, which spans no plane.
    assert error.isnan().float().mean() < 0.02
    assert error.nan_to_num(0).max() < 2e-3


def test_normals_do_not_look_across_edges_and_holes() -> None:
    near, far = (torch.tensor(direction, dtype=torch.float64) for direction in ((0, 0, -1), (0.6, 0, -0.8)))
    depth = plane(near, 1.5)
    depth[..., 320:] = plane(far, 3.0)[..., 320:]
    depth[:, 100:120, 50:90] = 0
    found = normals_from_depth(depth)
    assert found[:, 100:120, 50:90].isnan().all()
    expected = near[:, None, None].repeat(1, 480, 640)
    expected[..., 320:] = far[:, None, None]
    expected[:, 100:120, 50:90] = torch.nan
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4, equal_nan=True)


def test_a_lone_pixel_has_no_normal() -> None:
    depth = torch.full((1, 20, 20), torch.nan)
    depth[0, 10, 10] = 2.0
    assert normals_from_depth(depth).isnan().all()
    depth[0, 10, :] = 2.0  # nor has a line
    assert normals_from_depth(depth).isnan().all()
