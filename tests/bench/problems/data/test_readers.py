"""What holds for every reader: what is missing is said, what is damaged is named and can be left out."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("h5py")

import numpy as np
import torch
from torch.utils.data import DataLoader

from equipoise.bench.problems.data import (
    NYUDMT,
    READERS,
    AffectNet,
    AffWild2,
    CelebA,
    DamagedDataError,
    Emotic,
    MissingDataError,
    NYUDepthPairs,
    NYUv2,
    NYUv2Arrays,
    PascalVOC,
    _samples,
    augmentation,
    collate,
    preparation,
)
from equipoise.bench.problems.data._files import read_array

WRITERS = {
    CelebA: _samples.write_celeba,
    AffWild2: _samples.write_affwild2,
    AffectNet: _samples.write_affectnet,
    Emotic: _samples.write_emotic,
    NYUv2: _samples.write_nyuv2,
    NYUv2Arrays: _samples.write_nyuv2_arrays,
    NYUDMT: _samples.write_nyud_mt,
    PascalVOC: _samples.write_pascal_voc,
    NYUDepthPairs: _samples.write_nyu_depth_pairs,
}
# A file of the training split that one sample needs, and how many samples that is.
VICTIMS = {
    CelebA: ("img_align_celeba/000003.jpg", 1),
    AffWild2: ("cropped_aligned/24_left/00002.jpg", 1),
    AffectNet: ("Manually_Annotated_Images/1/train0.jpg", 1),
    Emotic: ("emotic/emodb_small/images/picture2.jpg", 2),
    NYUv2Arrays: ("train/depth/1.npy", 1),
    NYUDMT: ("normals/0002.npy", 1),
    PascalVOC: ("VOC2012/SegmentationClass/2008_000003.png", 1),
    NYUDepthPairs: ("sync/kitchen_0028b/sync_depth_00002.png", 1),
}


def test_every_reader_is_tested() -> None:
    assert set(WRITERS) == set(READERS)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_an_empty_folder_says_what_is_missing_and_where_to_get_it(reader: type, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError) as caught:
        reader(tmp_path, "train")
    message = str(caught.value)
    assert str(tmp_path) in message
    assert reader.source.name in message
    assert reader.source.layout in message
    assert "https://" in message or "http://" in message
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_unknown_split(reader: type, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"split must be one of 'train', .* found 'training'"):
        reader(tmp_path, "training")
    with pytest.raises(ValueError, match="on_damaged must be one of 'error', 'skip', found 'ignore'"):
        reader(tmp_path, "train", on_damaged="ignore")


@pytest.mark.parametrize("reader", VICTIMS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("damage", ["cut off", "missing", "something else"])
def test_damaged_files_are_named_and_can_be_left_out(
    reader: type, damage: str, tmp_path: Path, cut_off, assert_samples, caplog: pytest.LogCaptureFixture
) -> None:
    truth = WRITERS[reader](tmp_path)["train"]
    victim, samples = VICTIMS[reader]
    path = tmp_path / victim
    assert len(reader(tmp_path, "train", on_damaged="skip").damaged) == 0
    if damage == "cut off":
        cut_off(path)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"<html>Not found</html>")

    if damage == "missing" and reader in (AffWild2, PascalVOC):
        # Not damage there: no face was found in the frame; the picture is not labelled for segmentation.
        assert reader(tmp_path, "train", on_damaged="skip").damaged == []
        return
    broken = reader(tmp_path, "train")
    assert len(broken) == len(truth)
    failures = []
    for index in range(len(broken)):
        try:
            broken[index]
        except DamagedDataError as error:
            failures.append((index, str(error)))
    assert len(failures) == samples
    for _, message in failures:
        assert str(path) in message
        assert reader.source.name in message
        assert 'on_damaged="skip"' in message

    with caplog.at_level(logging.WARNING, "equipoise"):
        rest = reader(tmp_path, "train", on_damaged="skip")
    assert len(rest.damaged) == samples
    assert all(str(path) in message for message in rest.damaged)
    lost = {index for index, _ in failures}
    assert_samples(rest, [sample for index, sample in enumerate(truth) if index not in lost])
    assert f"left out {samples} damaged of {len(truth)}" in caplog.text
    assert str(path) in caplog.text


def test_damage_to_everything_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    _samples.write_celeba(tmp_path, (2, 1, 1))
    for path in (tmp_path / "img_align_celeba").iterdir():
        path.write_bytes(b"")
    with pytest.raises(MissingDataError, match="no sample is left to read"):
        CelebA(tmp_path, "train", on_damaged="skip")


class Trap:
    """Would make a folder if it were unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.folder,)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    trap = tmp_path / "trapped"
    np.save(tmp_path / "object.npy", np.array([Trap(trap)], dtype=object), allow_pickle=True)
    (tmp_path / "plain.npy").write_bytes(pickle.dumps(Trap(trap)))
    for name in ("object.npy", "plain.npy"):
        with pytest.raises(DamagedDataError, match=name):
            read_array(tmp_path / name)
    assert not trap.exists()


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_batches_for_training_and_evaluation(reader: type, tmp_path: Path) -> None:
    torch.manual_seed(0)
    WRITERS[reader](tmp_path)
    size = (64, 96)
    for transform in (augmentation(size, scales=(1.0, 1.2, 1.5), colour=0.2), preparation(size)):
        loader = DataLoader(reader(tmp_path, "train", transform=transform), batch_size=3, collate_fn=collate)
        for batch in loader:
            inputs = batch["input"]
            for images in inputs.values() if isinstance(inputs, dict) else [inputs]:
                assert images.dtype == torch.float32
                assert type(images) is torch.Tensor
                assert images.shape[1:] == (3, *size)
                assert images.isfinite().all()
            for name in {"segmentation", "depth", "normals"} & batch.keys():
                assert batch[name].shape[-2:] == size


def test_readers_work_in_worker_processes(tmp_path: Path, assert_samples) -> None:
    truth = _samples.write_nyuv2(tmp_path, (3, 1), (24, 32))["train"]
    loader = DataLoader(NYUv2(tmp_path, "train"), batch_size=None, num_workers=1)
    found = [{name: value for name, value in sample.items() if name != "normals"} for sample in loader]
    assert_samples(found, [{name: value for name, value in sample.items() if name != "normals"} for sample in truth])
