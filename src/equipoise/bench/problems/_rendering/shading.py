"""Colours what the camera sees: textures, lights with shadows, highlights, exposure and the sensor's noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.bench.problems._rendering.casting import PLANES, Hits, Surfaces, visibility
from equipoise.bench.problems._rendering.scene import TEXTURES, Array, Camera, Light, Room

LATTICE = 64
BRIGHT = 0.6
"""What the mean of the brighter half of a picture is exposed to, linear."""


def shade(room: Room, camera: Camera, surfaces: Surfaces, hits: Hits, random: np.random.Generator) -> NDArray[np.uint8]:
    """Returns the picture `[3, H, W]`."""
    shape = hits.depth.shape
    surface = hits.surface.ravel()
    # Colours end as bytes: single precision will do.
    point, normal = (array.reshape(3, -1).astype(np.float32) for array in (hits.point, hits.normal))
    view = np.array(camera.position, np.float32)[:, None] - point
    view /= np.linalg.norm(view, axis=0)
    albedo = _texture(surfaces, surface, hits.local_point.reshape(3, -1), hits.local_normal.reshape(3, -1), random)
    gloss = np.array([material.gloss for material in surfaces.materials])[surface]
    emission = np.array([material.emission for material in surfaces.materials])[surface]

    light = np.array(room.ambient)[:, None] * _openness(room, point, normal) * (0.8 + 0.2 * normal[2])
    highlight = np.zeros_like(light)
    for source in room.lights:
        arriving, towards = _arrive(room, source, point, normal)
        light += np.array(source.color)[:, None] * arriving
        half = towards + view
        half /= np.linalg.norm(half, axis=0) + 1e-9
        highlight += np.array(source.color)[:, None] * arriving * np.maximum(0, (half * normal).sum(0)) ** 40
    linear = albedo * light + 2 * gloss * highlight
    reflecting = np.sort(linear[:, emission == 0].mean(0)) if (emission == 0).any() else np.ones(1)
    linear *= BRIGHT * random.uniform(0.75, 1.15) / (reflecting[len(reflecting) // 2 :].mean() + 1e-9)
    linear = np.where(emission > 0, albedo * emission, linear)
    return _photograph(linear.reshape(3, *shape), random)


def _photograph(linear: Array, random: np.random.Generator) -> NDArray[np.uint8]:
    """White balance, a lens that is not quite sharp, highlights that roll off, gamma, noise."""
    linear = linear * random.uniform(0.93, 1.07, (3, 1, 1))
    for axis in (1, 2):
        padded = np.pad(linear, [(0, 0)] + [(1, 1) if axis == other else (0, 0) for other in (1, 2)], mode="edge")
        before, after = (
            padded.take(range(linear.shape[axis]), axis),
            padded.take(range(2, linear.shape[axis] + 2), axis),
        )
        linear = 0.15 * before + 0.7 * linear + 0.15 * after
    encoded = np.clip(linear * (1 + linear / 4) / (1 + linear), 0, 1) ** (1 / 2.2)
    noise = random.standard_normal(encoded.shape, dtype=np.float32) * random.uniform(0.005, 0.018)
    return (np.clip(encoded + noise, 0, 1) * 255 + 0.5).astype(np.uint8)


def _openness(room: Room, point: Array, normal: Array) -> Array:
    """Ambient occlusion where room planes meet: each plane that is near and that one does not lie in darkens."""
    result = np.ones(point.shape[1])
    for axis in range(3):
        for distance, facing in ((point[axis], normal[axis]), (room.size[axis] - point[axis], -normal[axis])):
            result *= 1 - 0.4 * np.exp(-distance / 0.25) * (facing < 0.5)
    return result


def _arrive(room: Room, light: Light, point: Array, normal: Array) -> tuple[Array, Array]:
    """How much of a light falls on the points, and the direction to it."""
    position = np.array(light.position)
    towards = position[:, None] - point
    squared = (towards**2).sum(0)
    towards /= np.sqrt(squared)
    arriving = np.maximum(0, (towards * normal).sum(0)) / (squared + 0.3)
    if light.normal is not None:
        arriving *= np.maximum(0, -(towards * np.array(light.normal)[:, None]).sum(0)) * 2
    if light.shadows:
        lit = np.flatnonzero(arriving > 0)
        arriving[lit] *= visibility(room, position, point[:, lit])
    return arriving, towards


def _texture(
    surfaces: Surfaces, surface: NDArray[np.int64], point: Array, normal: Array, random: np.random.Generator
) -> Array:
    """The colour of every point, mixed of its material's two by its texture."""
    materials = surfaces.materials
    first = np.array([material.color for material in materials])[surface].T
    second = np.array([material.second for material in materials])[surface].T
    kind = np.array([TEXTURES.index(material.texture) for material in materials])[surface]
    scale = np.array([material.scale for material in materials])[surface]
    offset = random.uniform(0, LATTICE, (len(materials), 2))[surface].T
    lattice = random.random((LATTICE, LATTICE))

    axis = np.abs(normal).argmax(0)
    u = np.where(axis == 0, point[1], point[0]) / scale
    v = np.where(axis == 2, point[1], point[2]) / scale
    lying = (surfaces.extent[surface, 0] < surfaces.extent[surface, 2]) & (axis != 2) & (surface >= PLANES)
    along, across = np.where(lying, v, u), np.where(lying, u, v)  # wood's grain runs along the longer side
    mix = np.zeros(len(surface))
    for number, name in enumerate(TEXTURES):
        chosen = np.flatnonzero(kind == number)
        if len(chosen):
            shift = offset[:, chosen]
            if name == "wood":
                mix[chosen] = _wood(lattice, along[chosen], across[chosen], shift)
            else:
                mix[chosen] = _PATTERNS[name](lattice, u[chosen], v[chosen], shift)
    color: Array = first + (second - first) * mix
    return color


def _noise(lattice: Array, u: Array, v: Array) -> Array:
    """Smooth noise in [0, 1] with period 1."""
    column, row = np.floor(u), np.floor(v)
    x, y = u - column, v - row
    x, y = x * x * (3 - 2 * x), y * y * (3 - 2 * y)
    i, j = column.astype(np.int64) % LATTICE, row.astype(np.int64) % LATTICE
    k, m = (i + 1) % LATTICE, (j + 1) % LATTICE
    top = lattice[j, i] * (1 - x) + lattice[j, k] * x
    noise: Array = top * (1 - y) + (lattice[m, i] * (1 - x) + lattice[m, k] * x) * y
    return noise


def _plain(lattice: Array, u: Array, v: Array, shift: Array) -> Array:
    return _noise(lattice, u + shift[0], v + shift[1])


def _wood(lattice: Array, u: Array, v: Array, shift: Array) -> Array:
    rings = v + 0.8 * _noise(lattice, u / 4 + shift[0], v + shift[1])
    grain = _noise(lattice, u / 2 + shift[1], 5 * v + shift[0])
    return np.asarray(0.25 + 0.25 * np.sin(2 * np.pi * rings) + 0.5 * grain)


def _planks(lattice: Array, u: Array, v: Array, shift: Array) -> Array:
    row = np.floor(v)
    along = u / 6 + 0.37 * row
    board = lattice[row.astype(np.int64) % LATTICE, np.floor(along).astype(np.int64) % LATTICE]
    seam = (v - row < 0.05) | (along - np.floor(along) < 0.012)
    grain = _noise(lattice, u / 3 + 7 * row, 4 * v + shift[0])
    return np.where(seam, 1.4, 0.65 * board + 0.35 * grain)


def _tiles(lattice: Array, u: Array, v: Array, shift: Array) -> Array:
    column, row = np.floor(u), np.floor(v)
    joint = (u - column < 0.05) | (v - row < 0.05)
    checker = (column + row) % 2 * (shift[0] > LATTICE / 2)
    return np.where(joint, 1.3, 0.85 * checker + 0.15 * _noise(lattice, 3 * u + shift[0], 3 * v + shift[1]))


def _stripes(lattice: Array, u: Array, v: Array, shift: Array) -> Array:
    return np.where((u + shift[0]) % 1 < 0.45, 1.0, 0.0)


def _weave(lattice: Array, u: Array, v: Array, shift: Array) -> Array:
    return 0.5 * _noise(lattice, u + shift[0], v + shift[1]) + 0.5 * _noise(lattice, u / 5 + shift[1], v / 5 + shift[0])


def _painting(lattice: Array, u: Array, v: Array, shift: Array) -> Array:
    form = _noise(lattice, 2 * u + shift[0], 2 * v + shift[1]) + 0.4 * v
    return np.where(form > 0.55, 1.0, 0.25) * (0.7 + 0.3 * _noise(lattice, 6 * u + shift[1], 6 * v))


def _sky(lattice: Array, u: Array, v: Array, shift: Array) -> Array:
    horizon = -0.35 + 0.35 * _noise(lattice, u * 2 + shift[0], shift[1])
    return np.where(v < horizon, 1.0, 0.25 * _noise(lattice, u + shift[0], 2 * v + shift[1]))


_PATTERNS = {
    "plain": _plain,
    "planks": _planks,
    "tiles": _tiles,
    "stripes": _stripes,
    "weave": _weave,
    "painting": _painting,
    "sky": _sky,
}
