from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("h5py")

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from equipoise.bench.problems.data import (
    DamagedDataError,
    MissingDataError,
    NYUDepthPairs,
    PascalVOC,
    collate,
    preparation,
    voc_with_nyu_depth,
)
from equipoise.bench.problems.data._samples import write_nyu_depth_pairs, write_pascal_voc

SPLITS = pytest.mark.parametrize("split", ["train", "test"])


@SPLITS
@pytest.mark.parametrize("nested", [False, True])
def test_reads_what_was_written(split: str, nested: bool, tmp_path: Path, assert_samples) -> None:
    truth = write_pascal_voc(tmp_path / "VOCdevkit" if nested else tmp_path)
    assert_samples(PascalVOC(tmp_path, split), truth[split])


def test_no_picture_is_in_both_splits(tmp_path: Path) -> None:
    write_pascal_voc(tmp_path)
    pictures = {
        split: {(p.folder.name, p.name) for p in PascalVOC(tmp_path, split)._pictures} for split in ("train", "test")
    }
    assert ("VOC2007", "000033") not in pictures["train"]  # 2012's 2007_000033, which is tested on
    assert ("VOC2012", "2009_000001") not in pictures["train"]
    assert not pictures["train"] & pictures["test"]
    assert ("VOC2012", "2007_000033") in pictures["test"]


def test_more_labels_for_segmentation(tmp_path: Path) -> None:
    write_pascal_voc(tmp_path)
    few = PascalVOC(tmp_path, "train")
    many = PascalVOC(tmp_path, "train", segmentation="SegmentationClassAug")
    assert sum(bool((sample["segmentation"] >= 0).any()) for sample in few) == 3
    assert sum(bool((sample["segmentation"] >= 0).any()) for sample in many) == 6
    assert all(sample["detection"] is not None for sample in many)
    with pytest.raises(ValueError, match="segmentation must be one of 'SegmentationClass', 'SegmentationClassAug'"):
        PascalVOC(tmp_path, "train", segmentation="SegmentationObject")
    for path in (tmp_path / "VOC2012" / "SegmentationClassAug").iterdir():
        path.unlink()
    (tmp_path / "VOC2012" / "SegmentationClassAug").rmdir()
    with pytest.raises(MissingDataError, match="SegmentationClassAug is missing"):
        PascalVOC(tmp_path, "train", segmentation="SegmentationClassAug")


ANNOTATION = """<annotation>
  <filename>000005.jpg</filename><size><width>50</width><height>40</height><depth>3</depth></size>
  <object><name>dog</name><truncated>0</truncated><difficult>1</difficult>
    <bndbox><xmin>1</xmin><ymin>11</ymin><xmax>20</xmax><ymax>40</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>2</xmin><ymin>12</ymin><xmax>9</xmax><ymax>19</ymax></bndbox></part>
  </object>
  <object><name>aeroplane</name>
    <bndbox><xmax>50</xmax><xmin>45.5</xmin><ymin>1</ymin><ymax>60</ymax></bndbox></object>
</annotation>"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The written data set with one annotation by hand."""
    write_pascal_voc(tmp_path)
    Image.new("RGB", (50, 40)).save(tmp_path / "VOC2007" / "JPEGImages" / "000005.jpg")
    (tmp_path / "VOC2007" / "Annotations" / "000005.xml").write_text(ANNOTATION)
    return tmp_path


def test_objects(folder: Path) -> None:
    objects = PascalVOC(folder, "train")[0]["detection"]
    assert objects["boxes"].tolist() == [[0, 10, 20, 40], [44.5, 0, 50, 40]]  # from 0, the end not included, clipped
    assert objects["boxes"].canvas_size == (40, 50)
    assert objects["labels"].tolist() == [11, 0]
    assert objects["difficult"].tolist() == [True, False]


def test_a_picture_without_objects_is_labelled_as_such(folder: Path) -> None:
    (folder / "VOC2007" / "Annotations" / "000005.xml").write_text("<annotation></annotation>")
    objects = PascalVOC(folder, "train")[0]["detection"]
    assert objects["boxes"].shape == (0, 4)
    assert objects["labels"].shape == (0,)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<name>dog</name>", "<name>unicorn</name>", "not a readable XML annotation"),
        ("<xmin>1</xmin>", "<xmin>one</xmin>", "could not convert string to float: 'one'"),
        ("<xmin>1</xmin>", "", "does not lie in the picture of 50×40"),
        ("<xmin>1</xmin>", "<xmin>30</xmin>", "does not lie in the picture"),
        ("</annotation>", "", "not a readable XML annotation"),
        ("<annotation>", "<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/hostname'>]><annotation>", "is not parsed"),
        (
            "<annotation>",
            "<!DOCTYPE a [<!ENTITY x 'ha'><!ENTITY y '&x;&x;&x;&x;'>]><annotation>",
            "is not parsed",
        ),
    ],
)
def test_bad_annotations_are_named(folder: Path, old: str, new: str, message: str) -> None:
    (folder / "VOC2007" / "Annotations" / "000005.xml").write_text(ANNOTATION.replace(old, new))
    with pytest.raises(DamagedDataError, match=rf"000005\.xml .*{message}"):
        PascalVOC(folder, "train")[0]
    reader = PascalVOC(folder, "train", on_damaged="skip")
    assert (len(reader), len(reader.damaged)) == (7, 1)


def test_entities_in_another_encoding_are_not_parsed(folder: Path) -> None:
    text = ANNOTATION.replace("<annotation>", "<!DOCTYPE a [<!ENTITY x 'ha'>]><annotation>")
    (folder / "VOC2007" / "Annotations" / "000005.xml").write_bytes(text.encode("utf-16"))
    with pytest.raises(DamagedDataError, match=r"000005\.xml is not a readable XML annotation"):
        PascalVOC(folder, "train")[0]


def test_bad_label_maps_are_named(folder: Path) -> None:
    path = folder / "VOC2012" / "SegmentationClass" / "2008_000001.png"
    size = Image.open(path).size
    for image, message in (
        (Image.new("RGB", size), "has 3 channels"),
        (Image.new("L", (7, 5)), r"has shape \(5, 7\)"),
        (Image.new("L", size, 21), "must have classes 0 to 20 or 255, found 21"),
    ):
        image.save(path)
        with pytest.raises(DamagedDataError, match=rf"2008_000001\.png {message}"):
            PascalVOC(folder, "train")[2]


@SPLITS
def test_depth_pairs(split: str, tmp_path: Path, assert_samples) -> None:
    truth = write_nyu_depth_pairs(tmp_path)[split]
    reader = NYUDepthPairs(tmp_path, split)
    assert_samples(reader, truth)
    assert reader[0]["depth"].isnan().any()  # the sensor's holes


def test_both_visits_to_a_room_belong_together(tmp_path: Path) -> None:
    write_nyu_depth_pairs(tmp_path)
    table = tmp_path / "nyudepthv2_train_files_with_gt.txt"
    table.write_text(table.read_text().replace("playroom_0004", "kitchen_0028c", 2))
    groups = NYUDepthPairs(tmp_path, "train").groups
    assert groups == ["kitchen_0028", "kitchen_0028", "kitchen_0028", "playroom_0004", "kitchen_0028", "playroom_0004"]


def test_depth_is_in_metres(tmp_path: Path) -> None:
    write_nyu_depth_pairs(tmp_path)
    values = np.full((96, 128), 2345, np.uint16)
    values[0, 0], values[0, 1] = 0, 65535
    Image.fromarray(values).save(tmp_path / "sync" / "kitchen_0028b" / "sync_depth_00000.png")
    depth = NYUDepthPairs(tmp_path, "train")[0]["depth"]
    assert depth[0, 0, 0].isnan()
    assert depth[0, 0, 1].item() == pytest.approx(65.535)
    assert depth[0, 5, 5].item() == pytest.approx(2.345)


@pytest.mark.parametrize("line", ["a.jpg b.png", "../../secret.jpg /b.png 518.8"])
def test_bad_lines_are_named(line: str, tmp_path: Path) -> None:
    write_nyu_depth_pairs(tmp_path)
    table = tmp_path / "nyudepthv2_train_files_with_gt.txt"
    table.write_text(table.read_text() + line + "\n")
    with pytest.raises(DamagedDataError, match=r"nyudepthv2_train_files_with_gt\.txt, line 7: expected an image"):
        NYUDepthPairs(tmp_path, "train")
    assert len(NYUDepthPairs(tmp_path, "train", on_damaged="skip")) == 6


def test_both_together_are_labelled_in_part(tmp_path: Path) -> None:
    write_pascal_voc(tmp_path / "voc")
    write_nyu_depth_pairs(tmp_path / "nyu")
    data = voc_with_nyu_depth(
        tmp_path / "voc", tmp_path / "nyu", "train", transform=preparation((64, 64), letterbox=True)
    )
    assert len(data) == 8 + 6
    tasks = [
        (
            sample["detection"] is not None,
            (sample["segmentation"] >= 0).any().item(),
            (sample["depth"] > 0).any().item(),
        )
        for sample in data
    ]
    assert tasks.count((True, False, False)) == 2
    assert tasks.count((True, True, False)) == 6
    assert tasks.count((False, False, True)) == 6

    mixed = next(iter(DataLoader(data, sampler=[0, 2, 8, 9], batch_size=4, collate_fn=collate)))
    assert mixed["input"].shape == (4, 3, 64, 64)
    assert [objects is None for objects in mixed["detection"]] == [False, False, True, True]
    assert (mixed["segmentation"][[0, 2, 3]] == -1).all()
    assert (mixed["segmentation"][1] >= 0).any()
    assert mixed["depth"][:2].isnan().all()
    assert (mixed["depth"][2:] > 0).any()

    depth_alone = next(iter(DataLoader(data, sampler=[8, 9], batch_size=2, collate_fn=collate)))
    assert depth_alone["detection"] == [None, None]
    assert (depth_alone["segmentation"] == -1).all()
