"""Rendered rooms: images with the class, depth and normal of every pixel, boxes, and a depth camera's holes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.bench.problems._rendering.casting import cast, list_surfaces
from equipoise.bench.problems._rendering.layout import random_camera, random_room
from equipoise.bench.problems._rendering.scene import CLASSES, PLANE_CLASSES, THINGS, Camera, Room
from equipoise.bench.problems._rendering.sensor import boxes, holes
from equipoise.bench.problems._rendering.shading import shade

__all__ = ["CLASSES", "THINGS", "render", "render_many"]

MOST_BOXES = 24

Picture = dict[str, NDArray[np.generic]]


def render(room: Room, camera: Camera, random: np.random.Generator) -> Picture:
    """Renders what a camera sees of a room.

    Returns:
        `image` uint8 `[3, H, W]`, `class` uint8 `[H, W]` (index into `CLASSES`), `thing` int16 `[H, W]` (index into
        the room's things, −1 for the room), `depth` float32 `[H, W]` in metres along the optical axis, `normal`
        float32 `[3, H, W]` (unit, towards the camera, in its coordinates: x right, y down, z forward), `hole` bool
        `[H, W]` (no depth there), `boxes` float32 `[24, 4]` (left, top, right, bottom; the largest, padded with 0)
        and `labels` int64 `[24]` (index into `THINGS`, −1 padding).
    """
    surfaces = list_surfaces(room)
    hits = cast(room, camera, surfaces)
    thing = surfaces.thing[hits.surface]
    kinds = [*(CLASSES.index(name) for name in PLANE_CLASSES)]
    kinds += [CLASSES.index(room.things[index].kind) for index in surfaces.thing[len(kinds) :]]
    found, labels = boxes(room, thing)
    largest = np.argsort(-np.prod(found[:, 2:] - found[:, :2], axis=1), kind="stable")[:MOST_BOXES]
    padded_boxes, padded_labels = np.zeros((MOST_BOXES, 4), np.float32), np.full(MOST_BOXES, -1)
    padded_boxes[: len(largest)], padded_labels[: len(largest)] = found[largest], labels[largest]
    return {
        "image": shade(room, camera, surfaces, hits, random),
        "class": np.array(kinds, np.uint8)[hits.surface],
        "thing": thing.astype(np.int16),
        "depth": hits.depth.astype(np.float32),
        "normal": np.einsum("ij,jhw->ihw", camera.rotation, hits.normal).astype(np.float32),
        "hole": holes(camera, surfaces, hits, random),
        "boxes": padded_boxes,
        "labels": padded_labels,
    }


def render_many(indices: range, seed: int, height: int = 96, width: int = 128) -> Picture:
    """Renders pictures of random rooms, one each; stacked as `[N, …]`.

    Picture `i` of a seed is the same whatever else is rendered with it.
    """
    pictures = []
    for index in indices:
        random = np.random.default_rng((seed, index))
        room = random_room(random)
        pictures.append(render(room, random_camera(random, room, height, width), random))
    return {name: np.stack([picture[name] for picture in pictures]) for name in pictures[0]}
