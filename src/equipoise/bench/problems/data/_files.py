"""What every reader of a data set shares: errors that help, damaged files by name, decoding without pickles."""

from __future__ import annotations

import logging
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import loadmat
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from equipoise._checks import check_choice

Sample = dict[str, Any]
"""One example: the network's input under "input", and every task's label, which may be missing."""

Transform = Callable[[Sample], Sample]
"""What a reader applies to a sample: `equipoise.bench.problems.data.augmentation`, any torchvision v2 transform, …"""

logger = logging.getLogger("equipoise")

CHUNK = 256
"""Samples that one thread checks at a time."""

DECODING_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    SyntaxError,
    EOFError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow, NumPy, SciPy and h5py raise for a file that is not what its name says."""


class MissingDataError(FileNotFoundError):
    """A data set is not where it was looked for; the message shows the expected layout and where to request it."""


class DamagedDataError(ValueError):
    """A file of a data set is missing, cut off or not what it should be; the message names it."""


@dataclass(frozen=True)
class Source:
    """A data set as it is handed out.

    Attributes:
        name: what it is called.
        layout: the files that are read, as a tree.
        request: where to request or download it, one line.
    """

    name: str
    layout: str
    request: str

    def find(self, root: Path, *places: str) -> Path:
        """Returns the first of `places` under `root` that exists.

        Raises:
            MissingDataError: none does.
        """
        for place in places:
            if (root / place).exists():
                return root / place
        raise self.missing(f"{root / places[0]} is missing" + "".join(f", and so is {root / p}" for p in places[1:]))

    def missing(self, what: str) -> MissingDataError:
        """Returns the error that says what is missing."""
        return MissingDataError(
            f"{self.name}: {what}.\nExpected in the data folder:\n{self.layout}\nWhere to get it: {self.request}"
        )


class Reader(Dataset[Sample], ABC):
    """Base of the readers: `reader[i]` is a `Sample`, after the transform.

    A subclass reads the annotations in `__init__`, reports what is wrong in them with `_report`, and ends with
    `_finish`; `_read` gives one sample.

    Attributes:
        source: what the data set is, set by the subclass.
        damaged: what was left out, each with the file's name and what is wrong with it.
    """

    source: ClassVar[Source]

    def __init__(self, transform: Transform | None, on_damaged: str) -> None:
        self.transform = transform
        self.on_damaged = check_choice("on_damaged", on_damaged, ("error", "skip"))
        self.damaged: list[str] = []
        self._order: NDArray[np.int64] = np.empty(0, np.int64)

    @abstractmethod
    def _read(self, index: int) -> Sample:
        """Returns sample `index` of those annotated.

        Raises:
            DamagedDataError: a file it needs is damaged.
        """

    def _group(self, index: int) -> Hashable:
        """Hook: what annotated sample `index` comes from, if others come from it too. By default none does."""
        return index

    @property
    def groups(self) -> list[Hashable]:
        """What each sample comes from: a video, a scene. To divide the data, divide these, not the samples."""
        return [self._group(index) for index in self._order.tolist()]

    def _complete(self, sample: Sample) -> Sample:
        """Hook: adds what can be computed and cannot be damaged. The default adds nothing."""
        return sample

    def _report(self, message: str) -> None:
        """Leaves out something damaged that was found in the annotations, or raises."""
        if self.on_damaged == "error":
            raise DamagedDataError(f"{self.source.name}: {message} {ADVICE}")
        self.damaged.append(message)

    def _finish(self, count: int) -> None:
        """Takes `count` samples; with on_damaged="skip", reads them all and leaves out the damaged ones."""
        self._order = np.arange(count)
        if self.on_damaged == "skip":
            with ThreadPoolExecutor() as pool:
                chunks = pool.map(self._find_damaged, range(0, count, CHUNK))
                found = {index: message for chunk in chunks for index, message in chunk.items()}
            self.damaged.extend(found.values())
            self._order = np.array([index for index in range(count) if index not in found], dtype=np.int64)
        if self.damaged:
            logger.warning(
                "%s: left out %d damaged of %d samples or lines: %s",
                self.source.name,
                len(self.damaged),
                len(self._order) + len(self.damaged),
                " ".join(self.damaged[:10]) + (" …" if len(self.damaged) > 10 else ""),
            )
        if not len(self._order):
            raise self.source.missing("no sample is left to read")

    def _find_damaged(self, start: int) -> dict[int, str]:
        found = {}
        for index in self._order[start : start + CHUNK].tolist():
            try:
                self._read(index)
            except DamagedDataError as error:
                found[index] = str(error)
        return found

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Sample:
        try:
            sample = self._complete(self._read(int(self._order[index])))
        except DamagedDataError as error:
            raise DamagedDataError(f"{self.source.name}: {error} {ADVICE}") from error
        return sample if self.transform is None else self.transform(sample)


ADVICE = 'Fetch the data again, or leave out what is damaged: on_damaged="skip", in the command line --on-damaged skip.'


@contextmanager
def decoding(path: Path, kind: str) -> Iterator[None]:
    """Turns what a decoder raises into an error that names the file.

    Raises:
        DamagedDataError: the block failed to read the file.
    """
    try:
        yield
    except DamagedDataError:
        raise
    except FileNotFoundError:
        raise DamagedDataError(f"{path} is missing.") from None
    except DECODING_ERRORS as error:
        raise DamagedDataError(f"{path} is not a readable {kind}: {str(error).rstrip('.')}.") from error


def read_image(path: Path) -> tv_tensors.Image:
    """Returns an image as uint8 `[3, H, W]`, RGB.

    Raises:
        DamagedDataError: the file is missing, cut off or no image.
    """
    with decoding(path, "image"), Image.open(path) as image:
        return tv_tensors.Image(functional.pil_to_tensor(image.convert("RGB")))


def read_map(path: Path) -> NDArray[Any]:
    """Returns the values of an image of one channel as they are stored, such as class indices or millimetres.

    Raises:
        DamagedDataError: the file is missing, cut off, or has several channels.
    """
    with decoding(path, "image"), Image.open(path) as image:
        values = np.array(image)
        if values.ndim != 2:
            raise DamagedDataError(f"{path} has {values.shape[-1]} channels, expected one value per pixel.")
        return values


def read_array(path: Path, kinds: str = "iuf") -> NDArray[Any]:
    """Returns the array of a `.npy` file; an array of Python objects is refused, as it would be unpickled.

    Args:
        path: the file.
        kinds: NumPy's letters for the kinds of values that are expected, by default whole and other numbers.

    Raises:
        DamagedDataError: the file is missing, cut off, or not an array of plain values.
    """
    with decoding(path, ".npy array"):
        array: NDArray[Any] = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise DamagedDataError(f"{path} is an archive of arrays, expected a single array.")
        return check_kind(path, array, kinds)


def read_mat(path: Path) -> Mapping[str, Any]:
    """Returns the variables of a MATLAB file (version 5).

    Raises:
        DamagedDataError: the file is missing, cut off, or no such file.
    """
    with decoding(path, "MATLAB 5 file"):
        variables: Mapping[str, Any] = loadmat(path)
        return variables


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a text file, without those that are empty at its end.

    Raises:
        DamagedDataError: the file is missing or is not UTF-8.
    """
    with decoding(path, "text file"):
        return path.read_text(encoding="utf-8-sig").rstrip().splitlines()


def check_kind(path: Path, array: NDArray[Any], kinds: str = "iuf") -> NDArray[Any]:
    """Returns the array if its values are of the expected kinds.

    Raises:
        DamagedDataError: they are not.
    """
    if array.dtype.kind not in kinds:
        raise DamagedDataError(f"{path} has values of type {array.dtype}, expected numbers.")
    return array


def check_pixels(path: Path, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Checks an array's shape against the image it belongs to.

    Raises:
        DamagedDataError: it differs.
    """
    if array.shape != shape:
        raise DamagedDataError(f"{path} has shape {array.shape}, expected {shape}.")
