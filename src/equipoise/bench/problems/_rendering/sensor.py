"""What a depth camera fails to see, and the boxes of what the camera sees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.bench.problems._rendering.casting import Hits, Surfaces
from equipoise.bench.problems._rendering.scene import THINGS, Array, Camera, Room

BASELINE = 0.075
"""Metres between projector and camera of a structured-light sensor."""

RANGE = (0.4, 8.0)
"""Metres between which it sees."""

MIN_PIXELS = 1 / 300
"""The share of a picture that a thing must cover to be boxed."""


def holes(camera: Camera, surfaces: Surfaces, hits: Hits, random: np.random.Generator) -> NDArray[np.bool_]:
    """Returns where a depth camera gives no value `[H, W]`.

    Holes are shadows of the projector beside near edges, edges, glass, surfaces seen at a grazing angle, what
    is too near or too far, and specks.
    """
    depth = hits.depth
    transparent = np.array([material.transparent for material in surfaces.materials])[hits.surface]
    gloss = np.array([material.gloss for material in surfaces.materials])[hits.surface]
    emission = np.array([material.emission for material in surfaces.materials])[hits.surface]
    facing = np.abs((hits.normal * (hits.point - np.array(camera.position)[:, None, None])).sum(0))
    facing /= np.linalg.norm(hits.point - np.array(camera.position)[:, None, None], axis=0)
    blobs = _blobs(random, depth.shape)
    missing = _projector_shadow(camera, depth) | (_edges(depth) & (random.random(depth.shape) < 0.6))
    missing |= transparent & (blobs < 0.9)
    missing |= (emission > 0) & ~transparent & (blobs < 0.4)
    missing |= (gloss > 0.5) & (blobs < 0.3)
    missing |= facing < 0.12 * random.random(depth.shape) + 0.06 * blobs
    missing |= (depth < RANGE[0]) | (depth > RANGE[1])
    missing |= random.random(depth.shape) < 0.004
    return missing


def boxes(room: Room, thing: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64]]:
    """Returns tight boxes `[M, 4]` (left, top, right, bottom in pixels) and class indices `[M]`.

    Args:
        room: what was cast.
        thing: index of the thing in every pixel `[H, W]`, −1 for the room.
    """
    found, labels = [], []
    for index in np.unique(thing[thing >= 0]):
        rows, columns = np.nonzero(thing == index)
        if len(rows) >= MIN_PIXELS * thing.size:
            found.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
            labels.append(THINGS.index(room.things[index].kind))
    return np.array(found, dtype=np.float64).reshape(-1, 4), np.array(labels, dtype=np.int64)


def _projector_shadow(camera: Camera, depth: Array) -> NDArray[np.bool_]:
    """Pixels that the projector, to the camera's left, does not reach: something nearer stands in its way.

    The projector sees column x at x − d, with disparity d = baseline · focal / depth; a pixel is hidden if one to
    its right, no farther off than their disparities differ, is nearer.
    """
    disparity = BASELINE * camera.focal / depth
    shadow = np.zeros(depth.shape, dtype=bool)
    for shift in range(1, int(np.ceil(disparity.max())) + 1):
        shadow[:, :-shift] |= disparity[:, shift:] - disparity[:, :-shift] >= shift
    return shadow


def _edges(depth: Array) -> NDArray[np.bool_]:
    """Pixels beside a jump in depth."""
    result = np.zeros(depth.shape, dtype=bool)
    logarithm = np.log(depth)
    rows = np.abs(np.diff(logarithm, axis=0)) > 0.06
    columns = np.abs(np.diff(logarithm, axis=1)) > 0.06
    result[1:] |= rows
    result[:-1] |= rows
    result[:, 1:] |= columns
    result[:, :-1] |= columns
    return result


def _blobs(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Noise in [0, 1] that hangs together over some pixels."""
    height, width = shape
    coarse = random.random((height // 6 + 2, width // 6 + 2))
    return np.kron(coarse, np.ones((6, 6)))[:height, :width] * 0.8 + 0.2 * random.random((height, width))
