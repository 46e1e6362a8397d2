"""NYUv2: classes, depth and surface normals of indoor pictures, in the three forms in which it goes round."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors

from equipoise._checks import check_choice
from equipoise.bench.problems.data._augmentation import DepthMap, NormalMap, SegmentationMap
from equipoise.bench.problems.data._files import (
    DamagedDataError,
    Reader,
    Sample,
    Source,
    Transform,
    check_kind,
    check_pixels,
    decoding,
    read_array,
    read_image,
    read_lines,
    read_map,
    read_mat,
)
from equipoise.bench.problems.data._normals import normals_from_depth

SPLITS = {"train": ("trainNdxs", "train"), "test": ("testNdxs", "val")}
RUNS = 80
"""Into so many runs of neighbours a split is divided: pictures of one scene follow each other."""


def room_of(scene: str) -> str:
    """Returns the room that a scene of NYU Depth V2 shows: `basement_0001a` and `basement_0001b` are one."""
    return re.sub(r"(?<=\d)[a-z]$", "", scene)


class _Indoor(Reader):
    """What the three forms share: pictures in the order of the scenes, whose names only the authors' file has."""

    def _group(self, index: int) -> Hashable:
        return index * RUNS // (int(self._order[-1]) + 1)


class NYUv2(_Indoor):
    """The authors' own file: 795 pictures for training, 654 for testing.

    A sample has "input", uint8 `[3, 480, 640]` before the transform; "segmentation", int64 `[H, W]` from 0, −1 where
    not labelled; "depth", float32 `[1, H, W]` in metres, NaN where unknown; "normals", float32 `[3, H, W]`, estimated
    from the depth (`normals_from_depth`), as the file has none: x to the right, y down, z along the optical axis,
    looking at the camera.

    Args:
        root: the folder with the file.
        split: "train" or "test".
        classes: 13, 40, or 894 for the file's own.
        transform: applied to every sample.
        on_damaged: "error" raises at the first damaged picture; "skip" reads everything once, leaves out what is
            damaged and says how much that was.

    Raises:
        MissingDataError: a file is not there.
        DamagedDataError: a file cannot be read, its classes are not those of the mapping, or it has more or fewer
            scenes than pictures.
        ValueError: `classes` is another number.

    Source: Silberman et al., "Indoor Segmentation and Support Inference from RGBD Images", ECCV 2012; 40 classes:
        Gupta et al., CVPR 2013; 13 classes: Couprie et al., ICLR 2013.
    """

    source = Source(
        name="NYUv2",
        layout="""\
  nyu_depth_v2_labeled.mat   (MATLAB 7.3, 2.8 GB)
  splits.mat
  classMapping40.mat         894 → 40 classes
  class13Mapping.mat         40 → 13 classes; only for 13""",
        request="https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html, “Labeled dataset”; the splits: "
        "http://horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat; the mappings: "
        "https://github.com/ankurhanda/nyuv2-meta-data (has the splits as well).",
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        classes: int = 40,
        transform: Transform | None = None,
        on_damaged: str = "error",
    ) -> None:
        super().__init__(transform, on_damaged)
        variable, _ = SPLITS[check_choice("split", split, list(SPLITS))]
        if classes not in (13, 40, 894):
            raise ValueError(f"classes must be 13, 40 or 894, found {classes!r}.")
        folder = Path(root)
        self._path = self.source.find(folder, "nyu_depth_v2_labeled.mat")
        with decoding(self._path, "MATLAB 7.3 file"), h5py.File(self._path) as file:
            count, names = len(file["images"]), _strings(file, "names")
            self._rooms = [room_of(scene) for scene in _strings(file, "scenes")] if "scenes" in file else []
        if self._rooms and len(self._rooms) != count:
            raise DamagedDataError(f"{self._path} has {count} pictures and the scenes of {len(self._rooms)}.")
        self._mapping = self._read_mapping(folder, names, classes)
        splits = self.source.find(folder, "splits.mat")
        with decoding(splits, "file of splits"):
            numbers = read_mat(splits)[variable].ravel().astype(np.int64)
        if not len(numbers) or numbers.min() < 1 or numbers.max() > count:
            raise DamagedDataError(
                f"{splits}: {variable!r} must number pictures from 1 to {count}, as {self._path} has them, "
                f"found {len(numbers)} from {numbers.min(initial=0)} to {numbers.max(initial=0)}."
            )
        self._pictures = numbers - 1
        self._finish(len(self._pictures))

    def _read_mapping(self, folder: Path, names: list[str], classes: int) -> NDArray[np.int64]:
        """Returns for each label of the file, from 0 for none, the class from 0, −1 for none."""
        if classes == 894:
            return np.arange(-1, len(names))
        path = self.source.find(folder, "classMapping40.mat")
        with decoding(path, "class mapping"):
            variables = read_mat(path)
            listed = [str(cell.ravel()[0]) for cell in variables["allClassName"].flat]
            mapping = variables["mapClass"].ravel().astype(np.int64)
        if listed != names or len(mapping) != len(names):
            different = next((pair for pair in zip(listed, names, strict=False) if pair[0] != pair[1]), None)
            raise DamagedDataError(
                f"{path} maps {len(listed)} classes, {self._path} has {len(names)}; "
                + (f"first difference: {different[0]!r} and {different[1]!r}." if different else "one list is longer.")
            )
        if classes == 13:
            path = self.source.find(folder, "class13Mapping.mat")
            with decoding(path, "class mapping"):
                groups = read_mat(path)["classMapping13"]["labels13"].ravel()[0].ravel().astype(np.int64)
                mapping = groups[mapping - 1]
        if mapping.min() < 1 or mapping.max() > classes:
            raise DamagedDataError(
                f"{path} must give classes from 1 to {classes}, found {mapping.min()} to {mapping.max()}."
            )
        return np.concatenate([[-1], mapping - 1])

    def _group(self, index: int) -> Hashable:
        return self._rooms[int(self._pictures[index])] if self._rooms else super()._group(index)

    def _read(self, index: int) -> Sample:
        number = int(self._pictures[index])
        what = Path(f"{self._path} (picture {number + 1})")
        with decoding(what, "picture"), h5py.File(self._path) as file:  # opened here, so that workers share nothing
            image, depth, labels = (file[name][number] for name in ("images", "depths", "labels"))
            segmentation = self._mapping[labels.T]
        return {
            "input": tv_tensors.Image(image.transpose(0, 2, 1).copy()),  # MATLAB's order is columns first
            "segmentation": SegmentationMap(segmentation),
            "depth": DepthMap(_depth(depth.T)),
        }

    def _complete(self, sample: Sample) -> Sample:
        return sample | {"normals": NormalMap(normals_from_depth(sample["depth"].as_subclass(Tensor)))}


class NYUv2Arrays(_Indoor):
    """The pictures as the authors of MTAN prepared them: 288×384, 13 classes, normals included.

    A sample is as that of `NYUv2`, with "input" float32 in [0, 1] before the transform. Depth 0 and normals of
    length 0 are missing.

    Args:
        root: the data folder.
        split: "train" (795 pictures) or "test" (654; the folder is called val).
        transform: applied to every sample.
        on_damaged: "error" raises at the first damaged array; "skip" reads everything once, leaves out what is
            damaged and says how much that was.

    Raises:
        MissingDataError: a folder is not there.
        DamagedDataError: an array is damaged, with on_damaged="error".

    Source: Liu et al., "End-to-End Multi-Task Learning with Attention", CVPR 2019.
    """

    source = Source(
        name="NYUv2 as arrays",
        layout="""\
  train/image/0.npy, train/label/0.npy, train/depth/0.npy, train/normal/0.npy, …/1.npy, …
  val/image/0.npy, …""",
        request="https://github.com/lorenmt/mtan, section “Datasets”: the pre-processed NYUv2.",
    )
    classes = 13

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        transform: Transform | None = None,
        on_damaged: str = "error",
    ) -> None:
        super().__init__(transform, on_damaged)
        _, folder = SPLITS[check_choice("split", split, list(SPLITS))]
        self._folders = {
            name: self.source.find(Path(root), f"{folder}/{name}") for name in ("image", "label", "depth", "normal")
        }
        numbers = {int(path.stem) for path in self._folders["image"].glob("*.npy") if path.stem.isdecimal()}
        # A picture that is not there leaves a hole in the numbers, to be reported as any other damage.
        self._finish(max(numbers, default=-1) + 1)

    def _read(self, index: int) -> Sample:
        paths = {name: folder / f"{index}.npy" for name, folder in self._folders.items()}
        arrays = {name: read_array(path) for name, path in paths.items()}
        size = arrays["image"].shape[:2]
        for name, shape in {"image": (*size, 3), "label": size, "depth": (*size, 1), "normal": (*size, 3)}.items():
            check_pixels(paths[name], arrays[name], shape)
        segmentation = _classes(arrays["label"], self.classes, paths["label"])
        return {
            "input": tv_tensors.Image(_channels_first(arrays["image"])),
            "segmentation": SegmentationMap(segmentation),
            "depth": DepthMap(_depth(arrays["depth"][..., 0])),
            "normals": NormalMap(_normals(arrays["normal"])),
        }


class NYUDMT(_Indoor):
    """The archive NYUD_MT: full resolution, 40 classes, normals included.

    A sample is as that of `NYUv2`. The background (0) is not labelled and not a class. Depth 0 and normals of
    length 0 are missing; of 8-bit normals, those shorter than ½.

    Args:
        root: the folder of the unpacked archive.
        split: "train" (795 pictures) or "test" (654; the list is called val).
        transform: applied to every sample.
        on_damaged: "error" raises at the first damaged file; "skip" reads everything once, leaves out what is
            damaged and says how much that was.

    Raises:
        MissingDataError: a folder or list is not there.
        DamagedDataError: a file is damaged, with on_damaged="error".

    Source: Maninis et al., "Attentive Single-Tasking of Multiple Tasks", CVPR 2019; Vandenhende et al., "Multi-Task
        Learning for Dense Prediction Tasks", TPAMI 2021.
    """

    source = Source(
        name="NYUD_MT",
        layout="""\
  gt_sets/train.txt, gt_sets/val.txt   a name a line
  images/<name>.jpg
  segmentation/<name>.png              (or .mat with a variable “segmentation”)
  depth/<name>.npy                     (or .mat with a variable “depth”)
  normals/<name>.npy                   (or .jpg, 8 bits a component)""",
        request="https://github.com/SimonVandenhende/Multi-Task-Learning-PyTorch, archive NYUD_MT.tgz (.png and .npy), "
        "or https://github.com/facebookresearch/astmt (.mat and .jpg).",
    )
    classes = 40

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        transform: Transform | None = None,
        on_damaged: str = "error",
    ) -> None:
        super().__init__(transform, on_damaged)
        _, name = SPLITS[check_choice("split", split, list(SPLITS))]
        base = Path(root)
        lines = read_lines(self.source.find(base, f"gt_sets/{name}.txt"))
        self._names = [line.strip() for line in lines if line.strip()]
        self._folders = {
            folder: self.source.find(base, folder) for folder in ("images", "segmentation", "depth", "normals")
        }
        self._finish(len(self._names))

    def _read(self, index: int) -> Sample:
        name = self._names[index]
        image = read_image(self._folders["images"] / f"{name}.jpg")
        size = (image.shape[1], image.shape[2])

        path = self._folders["segmentation"] / f"{name}.png"
        older = path.with_suffix(".mat")
        if older.is_file():
            path, labels = older, _variable(older, "segmentation")
        else:
            labels = read_map(path)
        check_pixels(path, labels, size)
        segmentation = _classes(labels.astype(np.int64) - 1, self.classes, path)

        path = self._folders["depth"] / f"{name}.npy"
        older = path.with_suffix(".mat")
        if older.is_file():
            path, depth = older, _variable(older, "depth")
        else:
            depth = read_array(path)
        depth = depth.squeeze(-1) if depth.shape[2:] == (1,) else depth
        check_pixels(path, depth, size)

        path = self._folders["normals"] / f"{name}.npy"
        older = path.with_suffix(".jpg")
        if older.is_file():
            path, normals, shortest = older, read_image(older).permute(1, 2, 0).numpy() / 127.5 - 1, 0.5
        else:
            normals, shortest = read_array(path), 0.0
        check_pixels(path, normals, (*size, 3))
        return {
            "input": image,
            "segmentation": SegmentationMap(segmentation),
            "depth": DepthMap(_depth(depth)),
            "normals": NormalMap(_normals(normals, shortest)),
        }


def _strings(file: Any, name: str) -> list[str]:
    """A cell array of strings, such as the classes' names: each 16-bit characters behind a reference."""
    return ["".join(map(chr, file[reference][()].ravel())) for reference in file[name][()].ravel()]


def _variable(path: Path, name: str) -> NDArray[Any]:
    with decoding(path, f"MATLAB file with a variable {name!r}"):
        return check_kind(path, read_mat(path)[name])


def _classes(labels: NDArray[Any], classes: int, path: Path) -> NDArray[np.int64]:
    """Classes from −1 as int64.

    Raises:
        DamagedDataError: there is another value.
    """
    values = labels.astype(np.int64)
    if values.size and (values.min() < -1 or values.max() >= classes or (values != labels).any()):
        raise DamagedDataError(
            f"{path} must have {classes} classes or none per pixel, found values that stand for "
            f"{labels.min()} to {labels.max()}."
        )
    return values


def _channels_first(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1), dtype=np.float32))


def _depth(metres: NDArray[Any]) -> Tensor:
    """Float32 `[1, H, W]`, NaN for what is not above 0 or not finite."""
    depth = torch.from_numpy(np.ascontiguousarray(metres, dtype=np.float32))[None]
    return torch.where((depth > 0) & depth.isfinite(), depth, torch.nan)


def _normals(vectors: NDArray[Any], shortest: float = 0.0) -> Tensor:
    """Float32 `[3, H, W]` of length 1, NaN for those not longer than `shortest` or not finite."""
    normals = _channels_first(vectors)
    length = torch.linalg.vector_norm(normals, dim=0)
    return torch.where((length > shortest) & length.isfinite(), normals / length, torch.nan)
