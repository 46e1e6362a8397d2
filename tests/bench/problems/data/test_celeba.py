from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("h5py")

from PIL import Image

from equipoise.bench.problems.data import CelebA, DamagedDataError
from equipoise.bench.problems.data._samples import write_celeba


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("nested", [False, True])
def test_reads_what_was_written(split: str, nested: bool, tmp_path: Path, assert_samples) -> None:
    truth = write_celeba(tmp_path)
    if nested:  # as the archive's own folders have it
        for folder, name in (
            ("Anno", "list_attr_celeba.txt"),
            ("Eval", "list_eval_partition.txt"),
            ("Img", "img_align_celeba"),
        ):
            (tmp_path / folder).mkdir()
            (tmp_path / name).rename(tmp_path / folder / name)
    assert_samples(CelebA(tmp_path, split), truth[split])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images written out by hand."""
    (tmp_path / "img_align_celeba").mkdir()
    for index in (1, 2, 3):
        Image.new("RGB", (178, 218), (10 * index, 0, 0)).save(tmp_path / f"img_align_celeba/00000{index}.jpg")
    (tmp_path / "list_attr_celeba.txt").write_text(
        "3\nBald Smiling \n000001.jpg -1  1\n000002.jpg  1  1\n000003.jpg  1 -1\n"
    )
    (tmp_path / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg 2\n000003.jpg 0\n")
    return tmp_path


def test_values(folder: Path) -> None:
    reader = CelebA(folder, "train")
    assert reader.attributes == ("Bald", "Smiling")
    assert [(int(s["Bald"]), int(s["Smiling"])) for s in reader] == [(0, 1), (1, 0)]
    assert reader[0]["input"].shape == (3, 218, 178)
    assert abs(int(reader[1]["input"][0, 100, 100]) - 30) < 3
    assert len(CelebA(folder, "test")) == 1


@pytest.mark.parametrize(
    ("file", "old", "new", "message", "left"),
    [
        (
            "list_attr_celeba.txt",
            "000003.jpg  1 -1",
            "000003.jpg  1 0",
            "line 5: expected an image's name and 2 val",
            1,
        ),
        ("list_attr_celeba.txt", "000003.jpg  1 -1", "000003.jpg  1", "line 5: expected an image's name and 2 val", 1),
        ("list_attr_celeba.txt", "000003.jpg  1 -1\n", "", "says that it has '3' images, but has 2 lines", 1),
        (
            "list_eval_partition.txt",
            "000003.jpg 0",
            "000003.jpg 7",
            "line 3: expected an image's name and 0, 1 or 2",
            1,
        ),
        ("list_eval_partition.txt", "000003.jpg 0", "000003.jpg 0\n000009.jpg 0", "has no line for 000009.jpg", 2),
    ],
)
def test_damaged_annotations(folder: Path, file: str, old: str, new: str, message: str, left: int) -> None:
    path = folder / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DamagedDataError, match=f"CelebA: .*{message}"):
        CelebA(folder, "train")
    reader = CelebA(folder, "train", on_damaged="skip")
    assert len(reader) == left
    assert any(message in line for line in reader.damaged)
