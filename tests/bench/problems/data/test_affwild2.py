from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("h5py")

import torch
from PIL import Image

from equipoise.bench.problems.data import AffWild2, DamagedDataError, MissingDataError
from equipoise.bench.problems.data._samples import write_affwild2


@pytest.mark.parametrize("split", ["train", "validation"])
def test_reads_what_was_written(split: str, tmp_path: Path, assert_samples) -> None:
    truth = write_affwild2(tmp_path)
    reader = AffWild2(tmp_path, split)
    assert_samples(reader, truth[split])
    if split == "train":
        assert reader.held_out == ("7-60-1920x1080",)


AUS = "AU1,AU2,AU4,AU6,AU7,AU10,AU12,AU15,AU23,AU24,AU25,AU26"


@pytest.fixture(params=["Challenge", "Set"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Video a with all three sets, written out by hand, in the names of two editions."""
    names = (
        ("AU_Detection_Challenge", "EXPR_Recognition_Challenge", "VA_Estimation_Challenge", "Train_Set")
        if request.param == "Challenge"
        else ("AU_Set", "EXPR_Set", "VA_Set", "Training_Set")
    )
    above = tmp_path / "Annotations" if request.param == "Challenge" else tmp_path
    for name in names[:3]:
        for split in (names[3], "Validation_Set"):
            (above / name / split).mkdir(parents=True)
    (above / names[0] / names[3] / "a.txt").write_text(
        f"{AUS}\n1,0,0,0,0,0,0,0,0,0,0,1\n{','.join(['-1'] * 12)}\n0,0,0,0,0,0,-1,0,0,0,0,0\n{','.join(['0'] * 12)}\n"
    )
    (above / names[1] / names[3] / "a.txt").write_text("Neutral,Anger\n-1\n-1\n7\n0\n")
    (above / names[2] / names[3] / "a.txt").write_text("valence,arousal\n-0.5,1\n-5,-5\n0.25,-5\n0,0\n")
    (above / names[1] / names[3] / "b_left.txt").write_text("Neutral,Anger\n3\n")
    for video, frames in (("a", (1, 2, 3)), ("b_left", (1,))):
        (tmp_path / "cropped_aligned" / video).mkdir(parents=True)
        for frame in frames:
            Image.new("RGB", (112, 112)).save(tmp_path / "cropped_aligned" / video / f"{frame:05d}.jpg")
    return tmp_path


def test_invalid_values_are_missing_for_their_task_alone(folder: Path) -> None:
    reader = AffWild2(folder, "train")
    assert len(reader) == 3  # frame 2 of a has no label, frame 4 no face
    assert reader.without_face == 1
    first, third, other = reader
    assert first["action_units"].tolist() == [1] + [0] * 10 + [1]
    assert first["expression"] == -1
    assert first["valence_arousal"].tolist() == [-0.5, 1.0]
    assert third["action_units"].tolist() == [0] * 6 + [-1] + [0] * 5
    assert third["expression"] == 7
    assert third["valence_arousal"].isnan().all()  # one of the two alone is not a label
    assert other["action_units"].tolist() == [-1] * 12
    assert other["expression"] == 3
    assert other["action_units"].dtype == other["expression"].dtype == torch.int64
    assert other["valence_arousal"].dtype == torch.float32


def test_a_video_of_any_sets_validation_is_not_trained_on(folder: Path) -> None:
    place = next(path for path in folder.rglob("Validation_Set") if path.parent.name.startswith("AU"))
    (place / "b_right.txt").write_text(f"{AUS}\n{','.join(['0'] * 12)}\n")  # the other person in b
    reader = AffWild2(folder, "train")
    assert reader.held_out == ("b_left",)
    assert len(reader) == 2


@pytest.mark.parametrize("line", ["8", "-2", "1,1", "happy", "0.5", ""])
def test_bad_lines_are_named(folder: Path, line: str) -> None:
    path = next(path for path in folder.rglob("a.txt") if path.parents[1].name.startswith("EXPR"))
    path.write_text(f"Neutral,Anger\n-1\n-1\n{line}\n0\n")
    with pytest.raises(DamagedDataError, match=r"a\.txt, line 4: expected 1 values of the set “expression”"):
        AffWild2(folder, "train")
    reader = AffWild2(folder, "train", on_damaged="skip")
    assert len(reader.damaged) == 1
    assert reader[1]["expression"] == -1  # the frame is there for the other tasks
    assert reader[1]["action_units"][0] == 0


@pytest.mark.parametrize(("set_name", "line"), [("VA", "1.5,0"), ("VA", "nan,0"), ("AU", ",".join(["2"] * 12))])
def test_values_out_of_range_are_named(folder: Path, set_name: str, line: str) -> None:
    path = next(path for path in folder.rglob("a.txt") if path.parents[1].name.startswith(set_name))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DamagedDataError, match=r"a\.txt, line 6"):
        AffWild2(folder, "train")


def test_a_video_without_pictures(folder: Path) -> None:
    for path in (folder / "cropped_aligned" / "b_left").iterdir():
        path.unlink()
    (folder / "cropped_aligned" / "b_left").rmdir()
    with pytest.raises(DamagedDataError, match=r"b_left is missing, the pictures of an annotated video"):
        AffWild2(folder, "train")
    reader = AffWild2(folder, "train", on_damaged="skip")
    assert (len(reader), len(reader.damaged)) == (2, 1)


def test_a_missing_set_is_named(tmp_path: Path) -> None:
    (tmp_path / "cropped_aligned").mkdir()
    with pytest.raises(MissingDataError, match=r"Annotations/AU_Detection_Challenge/Train_Set is missing"):
        AffWild2(tmp_path, "train")
