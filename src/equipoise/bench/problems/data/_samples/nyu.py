"""Made-up rooms with depth: NYUv2 in its three forms, and the pairs of pictures and depth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from equipoise.bench.problems.data._files import Sample
from equipoise.bench.problems.data._normals import KINECT_CENTRE, KINECT_FOCAL, KINECT_SIZE
from equipoise.bench.problems.data._samples._writing import Truth, as_tensor, save_jpeg, save_lines


def write_nyuv2(
    folder: Path, images: Sequence[int] = (4, 3), size: tuple[int, int] = (96, 128), seed: int = 0
) -> Truth:
    """Writes the authors' file with splits and mappings; the truth has 40 classes, and the scenes' own normals."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    count, classes = sum(images), 894
    names = [f"class {index + 1}" for index in range(classes)]
    mapping = random.integers(1, 41, classes)
    groups = random.integers(1, 14, 40)
    scenes = [_scene(random, size) for _ in range(count)]
    labels = [random.permutation(classes)[:5] for _ in range(count)]  # what the scenes' five classes are here
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        file["images"] = np.stack([picture.transpose(2, 1, 0) for picture, *_ in scenes])
        file["depths"] = np.stack([depth.T for _, _, depth, _ in scenes]).astype(np.float32)
        file["rawDepths"] = file["depths"][()]
        stored = [np.where(parts < 0, 0, ids[parts] + 1) for (_, parts, *_), ids in zip(scenes, labels, strict=True)]
        file["labels"] = np.stack([part.T for part in stored]).astype(np.uint16)
        rooms = [f"kitchen_{1 + index // 3:04d}{('', 'a', 'b')[index % 3]}" for index in range(count)]
        for variable, strings in (("names", names), ("scenes", rooms)):
            references = file.create_dataset(variable, (1, len(strings)), dtype=h5py.ref_dtype)
            for index, string in enumerate(strings):
                characters = np.array([[ord(character)] for character in string], dtype=np.uint16)
                references[0, index] = file.create_dataset(f"#refs#/{variable}{index}", data=characters).ref
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Jan  1 00:00:00 2012 HDF5 schema 1.00 ."
    with (folder / "nyu_depth_v2_labeled.mat").open("r+b") as raw:
        raw.write(header.ljust(124) + b"\x00\x02IM")
    order = random.permutation(count)
    chosen = {"train": np.sort(order[: images[0]]), "test": np.sort(order[images[0] :])}
    savemat(
        folder / "splits.mat",
        {f"{name}Ndxs": (numbers + 1).astype(np.uint16).reshape(-1, 1) for name, numbers in chosen.items()},
    )
    savemat(
        folder / "classMapping40.mat",
        {
            "mapClass": mapping.astype(np.uint8).reshape(1, -1),
            "allClassName": np.array([names], dtype=object),
            "className": np.array([[f"group {index + 1}" for index in range(40)]], dtype=object),
        },
    )
    savemat(
        folder / "class13Mapping.mat",
        {
            "classMapping13": {
                "labels13": groups.astype(np.uint8).reshape(1, -1),
                "classNames": np.array([[f"kind {index + 1}" for index in range(13)]], dtype=object),
            }
        },
    )
    truth: Truth = {}
    for split, numbers in chosen.items():
        truth[split] = []
        for number in numbers:
            picture, parts, depth, normals = scenes[number]
            classes = np.append(mapping[labels[number]] - 1, -1)[parts]  # part −1 is the last
            truth[split].append(_dense(picture, classes, depth, normals))
    return truth


def write_nyuv2_arrays(
    folder: Path, images: Sequence[int] = (4, 3), size: tuple[int, int] = (96, 128), seed: int = 0
) -> Truth:
    """Writes NYUv2 as the authors of MTAN prepared it: how many pictures for training and test."""
    random = np.random.default_rng(seed)
    truth: Truth = {}
    for split, directory, count in zip(("train", "test"), ("train", "val"), images, strict=True):
        for part in ("image", "label", "depth", "normal"):
            (folder / directory / part).mkdir(parents=True)
        truth[split] = []
        for index in range(count):
            picture, classes, depth, normals = _scene(random, size)
            sample = _dense(picture, classes, depth, normals)
            truth[split].append(sample | {"input": as_tensor(picture).double().div(255).float()})
            arrays = {
                "image": picture / 255,
                "label": classes.astype(np.float64),
                "depth": depth[..., None],
                "normal": normals,
            }
            for part, array in arrays.items():
                np.save(folder / directory / part / f"{index}.npy", array)
    return truth


def write_nyud_mt(
    folder: Path,
    images: Sequence[int] = (4, 3),
    size: tuple[int, int] = (96, 128),
    form: str = "npy",
    seed: int = 0,
) -> Truth:
    """Writes the archive NYUD_MT in the form "npy" (and .png), or "mat" (and .jpg for the normals)."""
    random = np.random.default_rng(seed)
    for part in ("gt_sets", "images", "segmentation", "depth", "normals"):
        (folder / part).mkdir(parents=True)
    truth: Truth = {}
    number = 0
    for split, listed, count in zip(("train", "test"), ("train", "val"), images, strict=True):
        truth[split] = []
        names = []
        for _ in range(count):
            number += 1
            names.append(f"{number:04d}")
            picture, classes, depth, normals = _scene(random, size)
            truth[split].append(_dense(picture, classes, depth, normals))
            save_jpeg(folder / "images" / f"{names[-1]}.jpg", picture)
            if form == "npy":
                Image.fromarray((classes + 1).astype(np.uint8)).save(folder / "segmentation" / f"{names[-1]}.png")
                np.save(folder / "depth" / f"{names[-1]}.npy", depth.astype(np.float32))
                np.save(folder / "normals" / f"{names[-1]}.npy", normals.astype(np.float32))
            else:
                savemat(folder / "segmentation" / f"{names[-1]}.mat", {"segmentation": (classes + 1).astype(np.uint8)})
                savemat(folder / "depth" / f"{names[-1]}.mat", {"depth": depth.astype(np.float32)})
                save_jpeg(folder / "normals" / f"{names[-1]}.jpg", np.rint((normals + 1) * 127.5).astype(np.uint8))
        save_lines(folder / "gt_sets" / f"{listed}.txt", names)
    return truth


def write_nyu_depth_pairs(
    folder: Path, images: Sequence[int] = (6, 3), size: tuple[int, int] = (96, 128), seed: int = 0
) -> Truth:
    """Writes pictures with depth: how many for training and test."""
    random = np.random.default_rng(seed)
    truth: Truth = {}
    for split, directory, count in zip(("train", "test"), ("sync", "official_splits/test"), images, strict=True):
        truth[split] = []
        lines = []
        for index in range(count):
            scene = ("kitchen_0028b", "playroom_0004")[index % 2]
            picture, _, depth, _ = _scene(random, size)
            millimetres = np.rint(depth * 1000).astype(np.uint16)
            (folder / directory / scene).mkdir(parents=True, exist_ok=True)
            save_jpeg(folder / directory / scene / f"rgb_{index:05d}.jpg", picture)
            Image.fromarray(millimetres).save(folder / directory / scene / f"sync_depth_{index:05d}.png")
            start = "/" if split == "train" else ""  # as in the originals
            lines.append(f"{start}{scene}/rgb_{index:05d}.jpg {start}{scene}/sync_depth_{index:05d}.png 518.8579")
            metres = torch.from_numpy(millimetres.astype(np.float32) / 1000)[None]
            truth[split].append({"input": as_tensor(picture), "depth": torch.where(metres > 0, metres, torch.nan)})
        save_lines(folder / f"nyudepthv2_{split}_files_with_gt.txt", lines)
    return truth


def _scene(
    random: np.random.Generator, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """A room: picture, class (floor, ceiling, two walls, the end wall; −1 in a corner), depth in metres, normals.

    Depth and normals are 0 where a sensor saw nothing.
    """
    rows, columns = (
        ((np.arange(length) + 0.5) * full / length + 0.5 - centre) / focal
        for length, full, centre, focal in zip(size, KINECT_SIZE, KINECT_CENTRE, KINECT_FOCAL, strict=True)
    )
    rays = np.stack(np.broadcast_arrays(columns, rows[:, None], 1.0), -1)
    turn = random.uniform(-0.3, 0.3)
    facing = np.array([[0, -1, 0], [0, 1, 0], [1, 0, 0], [-1, 0, 0], [np.sin(turn), 0, -np.cos(turn)]])
    distances = random.uniform([1.2, 1.0, 1.5, 1.5, 3.0], [1.6, 1.4, 2.0, 2.0, 5.0])
    along = rays @ facing.T  # below 0 where a ray meets the plane
    depths = np.where(along < 0, -distances / np.where(along < 0, along, -1), np.inf)
    classes = depths.argmin(-1)
    depth = depths.min(-1)
    normals = facing[classes]
    colours = random.integers(40, 216, (5, 3))
    picture = np.clip(colours[classes] * (1.2 - depth[..., None] / 8), 0, 255).astype(np.uint8)
    hole = (slice(size[0] // 4, size[0] // 4 + 6), slice(size[1] // 2, size[1] // 2 + 9))
    depth[hole] = 0
    normals[hole] = 0
    classes[:5, :7] = -1
    return picture, classes, depth, normals


def _dense(
    picture: NDArray[np.uint8],
    classes: NDArray[np.int64],
    depth: NDArray[np.float64],
    normals: NDArray[np.float64],
) -> Sample:
    metres = torch.from_numpy(depth).float()[None]
    known = metres > 0
    return {
        "input": as_tensor(picture),
        "segmentation": torch.from_numpy(classes),
        "depth": torch.where(known, metres, torch.nan),
        "normals": torch.where(known, torch.from_numpy(normals).float().permute(2, 0, 1), torch.nan),
    }
