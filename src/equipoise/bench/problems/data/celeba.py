"""CelebA: 40 yes/no attributes of faces."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from equipoise._checks import check_choice
from equipoise.bench.problems.data._files import Reader, Sample, Source, Transform, read_image, read_lines

ATTRIBUTES = (
    "5_o_Clock_Shadow",
    "Arched_Eyebrows",
    "Attractive",
    "Bags_Under_Eyes",
    "Bald",
    "Bangs",
    "Big_Lips",
    "Big_Nose",
    "Black_Hair",
    "Blond_Hair",
    "Blurry",
    "Brown_Hair",
    "Bushy_Eyebrows",
    "Chubby",
    "Double_Chin",
    "Eyeglasses",
    "Goatee",
    "Gray_Hair",
    "Heavy_Makeup",
    "High_Cheekbones",
    "Male",
    "Mouth_Slightly_Open",
    "Mustache",
    "Narrow_Eyes",
    "No_Beard",
    "Oval_Face",
    "Pale_Skin",
    "Pointy_Nose",
    "Receding_Hairline",
    "Rosy_Cheeks",
    "Sideburns",
    "Smiling",
    "Straight_Hair",
    "Wavy_Hair",
    "Wearing_Earrings",
    "Wearing_Hat",
    "Wearing_Lipstick",
    "Wearing_Necklace",
    "Wearing_Necktie",
    "Young",
)
"""The names in the official file, in its order."""

PARTITIONS = {"train": 0, "validation": 1, "test": 2}


class CelebA(Reader):
    """The aligned images with the official partition.

    A sample has "input", uint8 `[3, 218, 178]` before the transform, and under each attribute's name an int64
    scalar, 1 if the face has it.

    Args:
        root: the data folder.
        split: "train" (162,770 images), "validation" (19,867) or "test" (19,962).
        transform: applied to every sample.
        on_damaged: "error" raises at the first damaged line or image; "skip" reads everything once, leaves out
            what is damaged and says how much that was.

    Attributes:
        attributes: the 40 names, in the file's order.

    Raises:
        MissingDataError: a file is not there.
        DamagedDataError: an annotation cannot be read, with on_damaged="error".

    Source: Liu et al., "Deep Learning Face Attributes in the Wild", ICCV 2015.
    """

    source = Source(
        name="CelebA",
        layout="""\
  list_attr_celeba.txt        (or Anno/list_attr_celeba.txt)
  list_eval_partition.txt     (or Eval/list_eval_partition.txt)
  img_align_celeba/000001.jpg (or Img/img_align_celeba/)""",
        request="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, “Align&Cropped Images”, attributes and partitions.",
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        transform: Transform | None = None,
        on_damaged: str = "error",
    ) -> None:
        super().__init__(transform, on_damaged)
        partition = PARTITIONS[check_choice("split", split, list(PARTITIONS))]
        folder = Path(root)
        attributes = self.source.find(folder, "list_attr_celeba.txt", "Anno/list_attr_celeba.txt")
        partitions = self.source.find(folder, "list_eval_partition.txt", "Eval/list_eval_partition.txt")
        self._images = self.source.find(folder, "img_align_celeba", "Img/img_align_celeba")
        chosen = self._read_partition(partitions, partition)
        self.attributes, labels = self._read_attributes(attributes, chosen)
        for name in sorted(chosen - labels.keys()):
            self._report(f"{attributes} has no line for {name}.")
        self._names = list(labels)
        self._labels = torch.tensor(list(labels.values()), dtype=torch.int8)
        self._finish(len(self._names))

    def _read_partition(self, path: Path, partition: int) -> set[str]:
        chosen = set()
        for number, line in enumerate(read_lines(path), 1):
            words = line.split()
            if len(words) != 2 or words[1] not in ("0", "1", "2"):
                self._report(f"{path}, line {number}: expected an image's name and 0, 1 or 2, found {line!r}.")
            elif int(words[1]) == partition:
                chosen.add(words[0])
        return chosen

    def _read_attributes(self, path: Path, chosen: set[str]) -> tuple[tuple[str, ...], dict[str, list[int]]]:
        lines = read_lines(path)
        names = tuple(lines[1].split()) if len(lines) > 1 else ()
        labels = {}
        for number, line in enumerate(lines[2:], 3):
            name, *values = line.split() or [""]
            if len(values) != len(names) or not {"1", "-1"}.issuperset(values):
                self._report(
                    f"{path}, line {number}: expected an image's name and {len(names)} values 1 or -1, "
                    f"found {line[:60]!r}."
                )
            elif name in chosen:
                labels[name] = [int(value == "1") for value in values]
        expected = lines[0].strip() if lines else ""
        if expected != str(len(lines) - 2):
            self._report(
                f"{path} says that it has {expected!r} images, but has {max(0, len(lines) - 2)} lines for them."
            )
        return names, labels

    def _read(self, index: int) -> Sample:
        labels = self._labels[index].long().unbind()
        image = read_image(self._images / self._names[index])
        return {"input": image, **dict(zip(self.attributes, labels, strict=True))}
