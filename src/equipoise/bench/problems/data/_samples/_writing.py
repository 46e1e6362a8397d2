"""What the made-up data sets are written with: pictures, JPEG files and lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from equipoise.bench.problems.data._files import Sample

Truth = dict[str, list[Sample]]


def make_picture(random: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Makes soft blobs of colour, which JPEG keeps nearly as they are."""
    coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def as_tensor(picture: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)


def save_jpeg(path: Path, picture: NDArray[np.uint8]) -> None:
    Image.fromarray(picture).save(path, quality=95, subsampling=0)


def save_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
