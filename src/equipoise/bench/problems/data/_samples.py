"""Small data sets with made-up content in the official layouts, for trying things out where there is no data.

Each function writes one into a folder and returns what was written: for every split, the samples that its reader
should give, before any transform, in its order. Pictures stored as JPEG are only nearly what they were.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from equipoise.bench.problems.data import affectnet, affwild2, celeba, emotic, pascal_voc
from equipoise.bench.problems.data._files import Sample
from equipoise.bench.problems.data._normals import KINECT_CENTRE, KINECT_FOCAL, KINECT_SIZE

Truth = dict[str, list[Sample]]


def write_celeba(folder: Path, images: Sequence[int] = (8, 4, 4), seed: int = 0) -> Truth:
    """Writes CelebA: how many images for training, validation and test."""
    random = np.random.default_rng(seed)
    count = sum(images)
    labels = random.integers(0, 2, (count, len(celeba.ATTRIBUTES)))
    partition = np.repeat([0, 1, 2], images)
    (folder / "img_align_celeba").mkdir(parents=True)
    attributes = [str(count), " ".join(celeba.ATTRIBUTES)]
    partitions = []
    truth: Truth = {"train": [], "validation": [], "test": []}
    for index in range(count):
        name = f"{index + 1:06d}.jpg"
        picture = _picture(random, (218, 178))
        _save_jpeg(folder / "img_align_celeba" / name, picture)
        attributes.append(name + "".join(f" {2 * value - 1:2d}" for value in labels[index]))
        partitions.append(f"{name} {partition[index]}")
        named = dict(zip(celeba.ATTRIBUTES, torch.from_numpy(labels[index]).unbind(), strict=True))
        truth[("train", "validation", "test")[partition[index]]].append({"input": _tensor(picture), **named})
    _save_lines(folder / "list_attr_celeba.txt", attributes)
    _save_lines(folder / "list_eval_partition.txt", partitions)
    return truth


def write_affwild2(folder: Path, frames: int = 6, seed: int = 0) -> Truth:
    """Writes Aff-Wild2 with four videos: each set annotates some of them, some frames not, some without a face."""
    random = np.random.default_rng(seed)
    sets = {
        "AU_Detection_Challenge": ",".join(affwild2.ACTION_UNITS),
        "EXPR_Classification_Challenge": ",".join(name.capitalize() for name in affwild2.EXPRESSIONS),
        "VA_Estimation_Challenge": "valence,arousal",
    }
    annotated = {
        "train": {"1-30-1280x720": (0, 1, 2), "24_left": (0, 2), "7-60-1920x1080": (1,)},
        "validation": {"video5": (0, 1, 2), "7-60-1920x1080": (2,)},  # one video is in both splits, as in the original
    }
    truth: Truth = {}
    pictures = {}
    for video in sorted({video for split in annotated.values() for video in split}):
        (folder / "cropped_aligned" / video).mkdir(parents=True)
        for frame in range(1, frames):  # no face in the last one
            pictures[video, frame] = picture = _picture(random, (112, 112))
            _save_jpeg(folder / "cropped_aligned" / video / f"{frame:05d}.jpg", picture)
    for split, name in (("train", "Train_Set"), ("validation", "Validation_Set")):
        truth[split] = []
        for part in sets:
            (folder / "Annotations" / part / name).mkdir(parents=True)
        for video, parts in sorted(annotated[split].items()):
            columns: list[list[list[float]]] = [
                [random.integers(0, 2, 12).tolist() if 0 in parts else [-1] * 12 for _ in range(frames)],
                [[int(random.integers(0, 8))] if 1 in parts else [-1] for _ in range(frames)],
                [random.integers(-1000, 1001, 2).tolist() if 2 in parts else [-5000, -5000] for _ in range(frames)],
            ]
            columns[0][1][3] = -1  # one unit of one frame
            columns[1][2] = [-1]
            columns[2][2] = [-5000, -5000]
            for number, (set_name, header) in enumerate(sets.items()):
                if number in parts:
                    rows = [[value / 1000 for value in row] if number == 2 else row for row in columns[number]]
                    lines = [header, *(",".join(f"{value:g}" for value in row) for row in rows)]
                    _save_lines(folder / "Annotations" / set_name / name / f"{video}.txt", lines)
            if split == "train" and video in annotated["validation"]:
                continue
            for frame in range(1, frames):
                units, expression, affect = (column[frame - 1] for column in columns)
                if max(units) == -1 and expression == [-1] and affect[0] == -5000:
                    continue
                numbers = [value / 1000 if value > -5000 else np.nan for value in affect]
                truth[split].append(
                    {
                        "input": _tensor(pictures[video, frame]),
                        "action_units": torch.tensor(units),
                        "expression": torch.tensor(expression[0]),
                        "valence_arousal": torch.tensor(numbers, dtype=torch.float32),
                    }
                )
    return truth


def write_affectnet(folder: Path, images: Sequence[int] = (8, 4), form: str = "csv", seed: int = 0) -> Truth:
    """Writes AffectNet in the form "csv" or "npy": how many images for training and validation."""
    random = np.random.default_rng(seed)
    truth: Truth = {}
    for split, count in zip(("train", "validation"), images, strict=True):
        table, directory = affectnet.SPLITS[split]
        samples = truth[split] = []
        rows = []
        for index in range(count):
            code = (index + seed) % 8 if index % 4 != 1 else 8  # every fourth without an expression
            missing = index % 4 == 2
            affect = [-2.0, -2.0] if missing else (random.integers(-1000, 1001, 2) / 1000).tolist()
            picture = _picture(random, (96, 80))
            left, top, width, height = 5, 7, 60, 70
            if form == "csv":
                image = f"{index % 3 + 1}/{split}{index}.jpg"
                path = folder / "Manually_Annotated_Images" / image
                path.parent.mkdir(parents=True, exist_ok=True)
                _save_jpeg(path, picture)
                landmarks = ";".join(f"{value:.2f}" for value in random.uniform(0, 80, 136))
                rows.append([image, left, top, width, height, landmarks, code, *affect])
                seen = picture[top : top + height, left : left + width]
            else:
                for part in ("images", "annotations"):
                    (folder / directory / part).mkdir(parents=True, exist_ok=True)
                _save_jpeg(folder / directory / "images" / f"{index}.jpg", picture)
                values = {"exp": code % 8, "val": affect[0], "aro": affect[1], "lnd": random.uniform(0, 80, 136)}
                for ending, value in values.items():
                    array = value if ending == "lnd" else np.array(str(value))  # numbers are stored as text
                    np.save(folder / directory / "annotations" / f"{index}_{ending}.npy", array)
                seen = picture
            known = code if code < 8 else (-1 if form == "csv" else code % 8)
            samples.append(
                {
                    "input": _tensor(seen),
                    "expression": torch.tensor(known),
                    "valence_arousal": torch.tensor([np.nan if missing else value for value in affect]).float(),
                }
            )
        if form == "csv":
            with (folder / table).open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                if split == "train":  # as in the originals
                    writer.writerow(affectnet.COLUMNS)
                writer.writerows(rows)
    return truth


def write_emotic(folder: Path, images: Sequence[int] = (6, 3, 3), seed: int = 0) -> Truth:
    """Writes EMOTIC: how many images, of one or two people each, for training, validation and test."""
    random = np.random.default_rng(seed)
    truth: Truth = {}
    variables = {}
    number = 0
    for (split, variable), count in zip(emotic.SPLITS.items(), images, strict=True):
        samples = truth[split] = []
        fields = ("filename", "folder", "image_size", "original_database", "person")
        entries = np.empty((1, count), dtype=[(field, object) for field in fields])
        for index in range(count):
            number += 1
            directory, name = ("mscoco/images", "emodb_small/images")[index % 2], f"picture{number}.jpg"
            height, width = 90 + 6 * index, 120
            picture = _picture(random, (height, width))
            path = folder / "emotic" / directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _save_jpeg(path, picture)
            people = []
            for person in range(1 + index % 2):
                left, top, right, bottom = 10 + 20 * person, 5, 60 + 80 * person, 80  # the second leaves the picture
                categories = np.sort(random.choice(26, 1 + int(random.integers(4)), replace=False))
                affect = random.integers(1, 11, 3).astype(np.float64)
                if person:
                    affect[:] = np.nan
                people.append(_emotic_person((left, top, right, bottom), categories, affect, variable != "train"))
                right = min(right, width)
                samples.append(
                    {
                        "input": {
                            "image": _tensor(picture),
                            "person": _tensor(picture[top:bottom, left:right]),
                        },
                        "box": torch.tensor([[left, top, right, bottom]], dtype=torch.float32),
                        "categories": torch.isin(torch.arange(26), torch.from_numpy(categories)).long(),
                        "dimensions": torch.from_numpy(affect).float(),
                    }
                )
            size = {"n_col": width, "n_row": height}
            entries[0, index] = (name, directory, size, {"name": "mscoco", "info": "made up"}, np.array([people]))
        variables[variable] = entries
    (folder / "Annotations").mkdir()
    savemat(folder / "Annotations" / "Annotations.mat", variables, do_compression=True)
    return truth


def _emotic_person(
    box: tuple[int, int, int, int], categories: NDArray[np.int64], affect: NDArray[np.float64], combined: bool
) -> NDArray[Any]:
    """One person's struct; the sets for validation and test have several annotators and what they say combined."""
    names = np.array([[emotic.CATEGORIES[index] for index in categories]], dtype=object)
    dimensions = dict(zip(emotic.DIMENSIONS, affect, strict=True))
    fields: dict[str, Any] = {"body_bbox": np.array([box], dtype=np.float64)}
    if combined:
        other = np.array([[emotic.CATEGORIES[0]]], dtype=object)
        fields["annotations_categories"] = _structs({"categories": names}, {"categories": other})
        fields["combined_categories"] = names
        fields["annotations_continuous"] = _structs(dimensions, dict.fromkeys(emotic.DIMENSIONS, 1.0))
        fields["combined_continuous"] = dimensions
    else:
        fields["annotations_categories"] = {"categories": names}
        fields["annotations_continuous"] = dimensions
    person: NDArray[Any] = _structs(fields | {"gender": "Female", "age": "Adult"})[0, 0]
    return person


def _structs(*values: Mapping[str, Any]) -> NDArray[Any]:
    """A MATLAB struct array of one row."""
    array = np.empty((1, len(values)), dtype=[(name, object) for name in values[0]])
    for index, value in enumerate(values):
        array[0, index] = tuple(value.values())
    return array


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
            truth[split].append(sample | {"input": _tensor(picture).double().div(255).float()})
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
            _save_jpeg(folder / "images" / f"{names[-1]}.jpg", picture)
            if form == "npy":
                Image.fromarray((classes + 1).astype(np.uint8)).save(folder / "segmentation" / f"{names[-1]}.png")
                np.save(folder / "depth" / f"{names[-1]}.npy", depth.astype(np.float32))
                np.save(folder / "normals" / f"{names[-1]}.npy", normals.astype(np.float32))
            else:
                savemat(folder / "segmentation" / f"{names[-1]}.mat", {"segmentation": (classes + 1).astype(np.uint8)})
                savemat(folder / "depth" / f"{names[-1]}.mat", {"depth": depth.astype(np.float32)})
                _save_jpeg(folder / "normals" / f"{names[-1]}.jpg", np.rint((normals + 1) * 127.5).astype(np.uint8))
        _save_lines(folder / "gt_sets" / f"{listed}.txt", names)
    return truth


def write_pascal_voc(folder: Path, seed: int = 0) -> Truth:
    """Writes both years: 2007 with 3 pictures for training and 3 for testing, 2012 with 6 and 2.

    One picture of 2007 is also in 2012's segmentation val set, as `2007_…`. Half of 2012's pictures for training
    have labels for segmentation in SegmentationClass, all in SegmentationClassAug; the truth is for the former.
    """
    random = np.random.default_rng(seed)
    old, new = folder / "VOC2007", folder / "VOC2012"
    lists = {
        old: {
            "Main/trainval": ["000005", "000033", "000007"],
            "Main/test": ["000001", "000002", "000004"],
        },
        new: {
            "Main/trainval": [*(f"2008_00000{index}" for index in range(1, 7)), "2009_000001"],
            "Segmentation/val": ["2007_000033", "2009_000001"],
        },
    }
    kept: dict[tuple[Path, str], Sample] = {}
    for year, names_of in lists.items():
        for part in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
            (year / part).mkdir(parents=True, exist_ok=True)
        for name, names in names_of.items():
            _save_lines(year / "ImageSets" / f"{name}.txt", names)
        for name in dict.fromkeys(name for names in names_of.values() for name in names):
            size = (int(random.integers(90, 120)), int(random.integers(110, 140)))
            picture = _picture(random, size)
            _save_jpeg(year / "JPEGImages" / f"{name}.jpg", picture)
            objects = _write_objects(year / "Annotations" / f"{name}.xml", random, size)
            classes = np.zeros(size, np.uint8)
            for (left, top, right, bottom), label in zip(
                objects["boxes"].int().tolist(), objects["labels"], strict=True
            ):
                classes[top:bottom, left:right] = pascal_voc.BORDER
                classes[top + 2 : bottom - 2, left + 2 : right - 2] = int(label) + 1
            kept[year, name] = {
                "input": _tensor(picture),
                "detection": objects,
                "segmentation": torch.from_numpy(np.where(classes == pascal_voc.BORDER, -1, classes.astype(np.int64))),
            }
            if year == new:
                folders = ["SegmentationClassAug"]
                if name in lists[new]["Segmentation/val"] or int(name[-1]) % 2:
                    folders.append("SegmentationClass")
                for part in folders:
                    (year / part).mkdir(exist_ok=True)
                    _save_palette(year / part / f"{name}.png", classes)

    def unlabelled(sample: Sample) -> Sample:
        return sample | {"segmentation": torch.full_like(sample["segmentation"], -1)}

    train = [unlabelled(kept[old, name]) for name in ("000005", "000007")]
    for index in range(1, 7):
        sample = kept[new, f"2008_00000{index}"]
        train.append(sample if index % 2 else unlabelled(sample))
    test = [unlabelled(kept[old, name]) for name in lists[old]["Main/test"]]
    test += [kept[new, name] | {"detection": None} for name in lists[new]["Segmentation/val"]]
    return {"train": train, "test": test}


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
            _save_jpeg(folder / directory / scene / f"rgb_{index:05d}.jpg", picture)
            Image.fromarray(millimetres).save(folder / directory / scene / f"sync_depth_{index:05d}.png")
            start = "/" if split == "train" else ""  # as in the originals
            lines.append(f"{start}{scene}/rgb_{index:05d}.jpg {start}{scene}/sync_depth_{index:05d}.png 518.8579")
            metres = torch.from_numpy(millimetres.astype(np.float32) / 1000)[None]
            truth[split].append({"input": _tensor(picture), "depth": torch.where(metres > 0, metres, torch.nan)})
        _save_lines(folder / f"nyudepthv2_{split}_files_with_gt.txt", lines)
    return truth


def _write_objects(path: Path, random: np.random.Generator, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Writes an annotation of one to three objects and returns it as it should be read."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "folder").text = path.parents[1].name
    ElementTree.SubElement(root, "filename").text = f"{path.stem}.jpg"
    measures = ElementTree.SubElement(root, "size")
    for tag, value in zip(("height", "width", "depth"), (*size, 3), strict=True):
        ElementTree.SubElement(measures, tag).text = str(value)
    boxes, labels, difficult = [], [], []
    for index in range(int(random.integers(1, 4))):
        left, top = (int(random.integers(0, side // 3)) for side in (size[1], size[0]))
        right, bottom = (int(random.integers(side // 2, side)) for side in (size[1], size[0]))
        boxes.append([left, top, right, bottom])
        labels.append(int(random.integers(len(pascal_voc.CLASSES))))
        difficult.append(index == 2)
        element = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(element, "name").text = pascal_voc.CLASSES[labels[-1]]
        ElementTree.SubElement(element, "difficult").text = str(int(difficult[-1]))
        frame = ElementTree.SubElement(element, "bndbox")
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), (left + 1, top + 1, right, bottom), strict=True):
            ElementTree.SubElement(frame, tag).text = str(value)
        part = ElementTree.SubElement(element, "part")  # a box within an object, not an object
        ElementTree.SubElement(part, "name").text = "head"
    ElementTree.ElementTree(root).write(path)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.tensor(labels),
        "difficult": torch.tensor(difficult),
    }


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
        "input": _tensor(picture),
        "segmentation": torch.from_numpy(classes),
        "depth": torch.where(known, metres, torch.nan),
        "normals": torch.where(known, torch.from_numpy(normals).float().permute(2, 0, 1), torch.nan),
    }


def _picture(random: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Soft blobs of colour, which JPEG keeps nearly as they are."""
    coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _tensor(picture: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)


def _save_jpeg(path: Path, picture: NDArray[np.uint8]) -> None:
    Image.fromarray(picture).save(path, quality=95, subsampling=0)


def _save_palette(path: Path, classes: NDArray[np.uint8]) -> None:
    """A PNG of one byte a pixel with a palette, as VOC's label maps are."""
    image = Image.fromarray(classes).convert("P")
    image.putdata(classes.ravel().tolist())
    image.putpalette([value for index in range(256) for value in (index * 37 % 256, index * 91 % 256, index)])
    image.save(path)


def _save_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
