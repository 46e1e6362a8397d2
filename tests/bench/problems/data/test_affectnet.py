from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("h5py")

import numpy as np
from PIL import Image

from equipoise.bench.problems.data import AffectNet, DamagedDataError
from equipoise.bench.problems.data._samples import write_affectnet

HEADER = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("form", ["csv", "npy"])
def test_reads_what_was_written(split: str, form: str, tmp_path: Path, assert_samples) -> None:
    truth = write_affectnet(tmp_path, form=form)
    assert_samples(AffectNet(tmp_path, split), truth[split])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A table written out by hand, in the archive's folders."""
    picture = np.zeros((40, 30, 3), np.uint8)
    picture[10:25, 5:25] = 200
    for index in range(4):
        path = tmp_path / "Manually_Annotated_compressed" / "7" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, quality=100)
    lists = tmp_path / "Manually_Annotated_file_lists"
    lists.mkdir()
    (lists / "training.csv").write_text(
        f"{HEADER}\n7/0.jpg,5,10,20,15,1;2,3,-0.5,0.25\n7/1.jpg,5,10,200,150,1;2,9,0.1,0.2\n"
        "7/2.jpg,0,0,30,40,1;2,0,-2,-2\n7/3.jpg,NULL,NULL,NULL,NULL,NULL,10,-2,-2\n"
    )
    (lists / "validation.csv").write_text("7/3.jpg,0,0,30,40,1;2,7,1,-1\n")  # without a header, as the original
    return tmp_path


def test_values(folder: Path) -> None:
    reader = AffectNet(folder, "train")
    assert reader.unlabelled == 1
    assert [int(sample["expression"]) for sample in reader] == [3, -1, 0]
    assert reader[0]["valence_arousal"].tolist() == [-0.5, 0.25]
    assert reader[1]["valence_arousal"].tolist() == pytest.approx([0.1, 0.2])
    assert reader[2]["valence_arousal"].isnan().all()
    assert reader[0]["input"].shape == (3, 15, 20)  # the face alone
    assert reader[0]["input"].float().mean() > 190
    assert reader[1]["input"].shape == (3, 30, 25)  # a box beyond the border ends there
    validation = AffectNet(folder, "validation")
    assert len(validation) == 1
    assert validation[0]["expression"] == 7


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7/0.jpg,5,10,20,15,1;2,3,-0.5", "expected 9 values .* found 8"),
        ("7/0.jpg,5,10,20,15,1;2,11,0,0", "expected an expression from 0 to 10, found '11'"),
        ("7/0.jpg,5,10,20,15,1;2,3,1.5,0", r"expected valence in \[-1, 1\] or -2, found '1.5'"),
        ("7/0.jpg,5,10,20,15,1;2,3,0,nan", r"expected arousal in \[-1, 1\] or -2, found 'nan'"),
        ("7/0.jpg,left,10,20,15,1;2,3,0,0", "could not convert string to float: 'left'"),
        ("/etc/passwd,0,0,1,1,1;2,3,0,0", "below the image folder"),
        ("../7/0.jpg,0,0,1,1,1;2,3,0,0", "below the image folder"),
    ],
)
def test_bad_lines_are_named(folder: Path, line: str, message: str) -> None:
    table = folder / "Manually_Annotated_file_lists" / "training.csv"
    table.write_text(table.read_text().replace("7/0.jpg,5,10,20,15,1;2,3,-0.5,0.25", line))
    with pytest.raises(DamagedDataError, match=rf"training\.csv, line 2: .*{message}"):
        AffectNet(folder, "train")
    reader = AffectNet(folder, "train", on_damaged="skip")
    assert (len(reader), len(reader.damaged)) == (2, 1)


def test_a_face_outside_its_picture(folder: Path) -> None:
    table = folder / "Manually_Annotated_file_lists" / "training.csv"
    table.write_text(table.read_text().replace("7/0.jpg,5,10", "7/0.jpg,50,10"))
    with pytest.raises(DamagedDataError, match=r"0\.jpg has its face at .*outside the picture of 30×40"):
        AffectNet(folder, "train")[0]


@pytest.mark.parametrize("value", ["11", "text", "[3, 4]"])
def test_bad_npy_annotations_are_named(value: str, tmp_path: Path) -> None:
    write_affectnet(tmp_path, form="npy")
    array = np.array([3, 4]) if value == "[3, 4]" else np.array(value)
    np.save(tmp_path / "train_set" / "annotations" / "2_exp.npy", array)
    with pytest.raises(DamagedDataError, match=r"annotations/2_"):
        AffectNet(tmp_path, "train")[2]
    assert len(AffectNet(tmp_path, "train", on_damaged="skip")) == 7


def test_npy_annotations_may_be_numbers(tmp_path: Path) -> None:
    write_affectnet(tmp_path, form="npy")
    for ending, value in (("exp", 5), ("val", 0.125), ("aro", -0.25)):
        np.save(tmp_path / "train_set" / "annotations" / f"0_{ending}.npy", np.array(value))
    sample = AffectNet(tmp_path, "train")[0]
    assert sample["expression"] == 5
    assert sample["valence_arousal"].tolist() == [0.125, -0.25]
