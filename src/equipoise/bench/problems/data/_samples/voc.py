"""Made-up pictures of objects: PASCAL VOC of both years."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from equipoise.bench.problems.data import pascal_voc
from equipoise.bench.problems.data._files import Sample
from equipoise.bench.problems.data._samples._writing import Truth, as_tensor, make_picture, save_jpeg, save_lines


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
            save_lines(year / "ImageSets" / f"{name}.txt", names)
        for name in dict.fromkeys(name for names in names_of.values() for name in names):
            size = (int(random.integers(90, 120)), int(random.integers(110, 140)))
            picture = make_picture(random, size)
            save_jpeg(year / "JPEGImages" / f"{name}.jpg", picture)
            objects = _write_objects(year / "Annotations" / f"{name}.xml", random, size)
            classes = np.zeros(size, np.uint8)
            for (left, top, right, bottom), label in zip(
                objects["boxes"].int().tolist(), objects["labels"], strict=True
            ):
                classes[top:bottom, left:right] = pascal_voc.BORDER
                classes[top + 2 : bottom - 2, left + 2 : right - 2] = int(label) + 1
            kept[year, name] = {
                "input": as_tensor(picture),
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


def _save_palette(path: Path, classes: NDArray[np.uint8]) -> None:
    """A PNG of one byte a pixel with a palette, as VOC's label maps are."""
    image = Image.fromarray(classes).convert("P")
    image.putdata(classes.ravel().tolist())
    image.putpalette([value for index in range(256) for value in (index * 37 % 256, index * 91 % 256, index)])
    image.save(path)
