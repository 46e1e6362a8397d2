"""Made-up people: CelebA, Aff-Wild2, AffectNet and EMOTIC."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import savemat

from equipoise.bench.problems.data import affectnet, affwild2, celeba, emotic
from equipoise.bench.problems.data._samples._writing import Truth, as_tensor, make_picture, save_jpeg, save_lines


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
        picture = make_picture(random, (218, 178))
        save_jpeg(folder / "img_align_celeba" / name, picture)
        attributes.append(name + "".join(f" {2 * value - 1:2d}" for value in labels[index]))
        partitions.append(f"{name} {partition[index]}")
        named = dict(zip(celeba.ATTRIBUTES, torch.from_numpy(labels[index]).unbind(), strict=True))
        truth[("train", "validation", "test")[partition[index]]].append({"input": as_tensor(picture), **named})
    save_lines(folder / "list_attr_celeba.txt", attributes)
    save_lines(folder / "list_eval_partition.txt", partitions)
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
            pictures[video, frame] = picture = make_picture(random, (112, 112))
            save_jpeg(folder / "cropped_aligned" / video / f"{frame:05d}.jpg", picture)
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
                    save_lines(folder / "Annotations" / set_name / name / f"{video}.txt", lines)
            if split == "train" and video in annotated["validation"]:
                continue
            for frame in range(1, frames):
                units, expression, affect = (column[frame - 1] for column in columns)
                if max(units) == -1 and expression == [-1] and affect[0] == -5000:
                    continue
                numbers = [value / 1000 if value > -5000 else np.nan for value in affect]
                truth[split].append(
                    {
                        "input": as_tensor(pictures[video, frame]),
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
            picture = make_picture(random, (96, 80))
            left, top, width, height = 5, 7, 60, 70
            if form == "csv":
                image = f"{index % 3 + 1}/{split}{index}.jpg"
                path = folder / "Manually_Annotated_Images" / image
                path.parent.mkdir(parents=True, exist_ok=True)
                save_jpeg(path, picture)
                landmarks = ";".join(f"{value:.2f}" for value in random.uniform(0, 80, 136))
                rows.append([image, left, top, width, height, landmarks, code, *affect])
                seen = picture[top : top + height, left : left + width]
            else:
                for part in ("images", "annotations"):
                    (folder / directory / part).mkdir(parents=True, exist_ok=True)
                save_jpeg(folder / directory / "images" / f"{index}.jpg", picture)
                values = {"exp": code % 8, "val": affect[0], "aro": affect[1], "lnd": random.uniform(0, 80, 136)}
                for ending, value in values.items():
                    array = value if ending == "lnd" else np.array(str(value))  # numbers are stored as text
                    np.save(folder / directory / "annotations" / f"{index}_{ending}.npy", array)
                seen = picture
            known = code if code < 8 else (-1 if form == "csv" else code % 8)
            samples.append(
                {
                    "input": as_tensor(seen),
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
            picture = make_picture(random, (height, width))
            path = folder / "emotic" / directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            save_jpeg(path, picture)
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
                            "image": as_tensor(picture),
                            "person": as_tensor(picture[top:bottom, left:right]),
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
