"""Rendered pictures on disk, so that a machine renders them once."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.bench.problems._rendering import render_many

KEPT = ("image", "class", "depth", "normal", "hole", "boxes", "labels")


def load_pictures(
    indices: range, seed: int, height: int, width: int, folder: Path | None = None
) -> dict[str, NDArray[np.generic]]:
    """Returns what `render_many` gives, all but `thing`, from the disk if it is there.

    A file that is damaged, or that another version of the renderer wrote, is made anew; where none can be
    written, none is.

    Args:
        indices: which pictures.
        seed: of the rooms.
        height: of a picture in pixels.
        width: of a picture in pixels.
        folder: where the file is; None means `equipoise` in the user's cache folder (`XDG_CACHE_HOME`, or `~/.cache`).
    """
    place = (folder or _cache_folder()) / f"rooms-{seed}-{indices.start}-{indices.stop}-{height}x{width}.npz"
    version = _version()
    pictures = _read(place, version)
    if pictures is None:
        rendered = render_many(indices, seed, height, width)
        pictures = {name: rendered[name] for name in KEPT}
        _write(place, {"version": np.array(version), **pictures})
    return pictures


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "equipoise"


def _version() -> str:
    """A fingerprint of the renderer's source: what it draws can change with any line."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def _read(place: Path, version: str) -> dict[str, NDArray[np.generic]] | None:
    try:
        with np.load(place, allow_pickle=False) as file:
            if str(file["version"]) != version:
                return None
            return {name: file[name] for name in KEPT}  # the archive's checksums tell damage
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _write(place: Path, arrays: dict[str, Any]) -> None:
    """Writes the file whole or not at all."""
    temporary = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=f".{place.stem}.", suffix=".npz")
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, place)
    except OSError:  # a full or read-only disk: the pictures are there, only not for the next time
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    except BaseException:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise
