"""Ray casting: which surface every ray meets first, where, and how it lies. Everything in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.bench.problems._rendering.scene import SHAPES, Array, Camera, Material, Part, Room, Thing, turn

PLANES = 6
"""The room itself comes first among the surfaces: walls at x = 0, x = size, y = 0, y = size; floor; ceiling."""

NEAR = 1e-6

CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])

FLAT = 0.12
"""Metres; what is thinner, as a picture on its wall, throws no shadow that one would see."""


@dataclass(frozen=True)
class Surfaces:
    """All surfaces of a room as arrays `[S, …]`: first the room's six planes, then the parts of its things.

    Attributes:
        materials: one per surface.
        thing: index of the thing it is a part of, −1 for the room.
        shape: index into `SHAPES`, −1 for the room.
        rotation: from the world to the coordinates of its thing.
        origin: the part's centre in the world.
        extent: see `Part`.
    """

    materials: tuple[Material, ...]
    thing: NDArray[np.int64]
    shape: NDArray[np.int64]
    rotation: Array
    origin: Array
    extent: Array


@dataclass(frozen=True)
class Hits:
    """What the camera's rays meet, per pixel.

    Attributes:
        depth: metres along the optical axis `[H, W]`.
        surface: index into the surfaces `[H, W]`.
        point: in the world `[3, H, W]`.
        normal: unit, towards the camera, in the world `[3, H, W]`.
        local_point, local_normal: the same in the coordinates of the part `[3, H, W]`.
    """

    depth: Array
    surface: NDArray[np.int64]
    point: Array
    normal: Array
    local_point: Array
    local_normal: Array


def list_surfaces(room: Room) -> Surfaces:
    """Returns the room's surfaces as arrays."""
    parts = [(index, thing, part) for index, thing in enumerate(room.things) for part in thing.parts]
    rotations = [turn(thing.yaw) for _, thing, _ in parts]
    return Surfaces(
        materials=(*[room.walls] * 4, room.floor, room.ceiling, *(part.material for _, _, part in parts)),
        thing=np.array([-1] * PLANES + [index for index, _, _ in parts]),
        shape=np.array([-1] * PLANES + [SHAPES.index(part.shape) for _, _, part in parts]),
        rotation=np.array([np.eye(3)] * PLANES + [rotation.T for rotation in rotations]),
        origin=np.array(
            [np.zeros(3)] * PLANES
            + [
                np.array(thing.position) + rotation @ np.array(part.center)
                for rotation, (_, thing, part) in zip(rotations, parts, strict=True)
            ]
        ),
        extent=np.array([(1.0, 1.0, 1.0)] * PLANES + [part.extent for _, _, part in parts]),
    )


def cast(room: Room, camera: Camera, surfaces: Surfaces) -> Hits:
    """Follows the camera's rays to the first surface."""
    rays = camera.rays()
    depth, surface = _meet_room(room, np.array(camera.position), rays)
    index = PLANES
    for thing in room.things:
        rotation = turn(thing.yaw).T
        origin = rotation @ (np.array(camera.position) - np.array(thing.position))
        for part, window in zip(thing.parts, _windows(thing, camera), strict=True):
            if window is not None:
                directions = np.einsum("ij,jhw->ihw", rotation, rays[:, window[0], window[1]])
                found = meet(part, origin, directions)
                nearer = found < depth[window]
                depth[window][nearer] = found[nearer]
                surface[window][nearer] = index
            index += 1
    return _describe(camera, rays, depth, surface, surfaces)


def visibility(room: Room, light: Array, points: Array) -> NDArray[np.bool_]:
    """Returns which of the points `[3, N]` a point light reaches. In the points' precision, good to a millimetre."""
    reached = np.ones(points.shape[1], dtype=bool)
    directions = points - light.astype(points.dtype)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / directions
    for thing in room.things:
        low, high = (bound.astype(points.dtype) for bound in thing.world_bounds - light)
        if (high - low).min() < FLAT or ((low < 0) & (high > 0)).all():
            continue  # and a lamp does not stand in its own light
        near, far = _slabs(low, high, inverse)
        close = np.flatnonzero((near < far) & (far > 0) & (near < 1) & reached)
        if len(close):
            rotation = turn(thing.yaw).T
            origin = (rotation @ (light - np.array(thing.position))).astype(points.dtype)
            turned = rotation.astype(points.dtype) @ directions[:, close]
            for part in thing.parts:
                reached[close] &= meet(part, origin, turned) > 1 - 1e-3
    return reached


def meet(part: Part, origin: Array, directions: Array) -> Array:
    """Returns how many times each direction `[3, …]` leads from the origin `[3]` to the part; inf if it misses it."""
    start = (origin - np.array(part.center, origin.dtype)).reshape(3, *[1] * (directions.ndim - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return _MEET[part.shape](part.extent, start, directions)


def _slabs(low: Array, high: Array, inverse: Array) -> tuple[Array, Array]:
    """Where rays from 0, given by one over their directions, enter and leave a box: it is hit if enter < leave."""
    near, far = np.full_like(inverse[0], -np.inf), np.full_like(inverse[0], np.inf)
    for axis in range(3):
        one, other = low[axis] * inverse[axis], high[axis] * inverse[axis]
        near = np.maximum(near, np.minimum(one, other))
        far = np.minimum(far, np.maximum(one, other))
    return near, far


def _meet_box(extent: Any, start: Array, directions: Array) -> Array:
    half = np.array(extent, start.dtype).reshape(start.shape)
    near, far = _slabs(-half - start, half - start, 1 / directions)
    return np.where((near < far) & (near > NEAR), near, np.inf)


def _meet_ellipsoid(extent: Any, start: Array, directions: Array) -> Array:
    axes = np.array(extent, start.dtype).reshape(start.shape)
    start, directions = start / axes, directions / axes
    return _first_root(_dot(directions, directions), _dot(start, directions), _dot(start, start) - 1)


def _meet_frustum(extent: Any, start: Array, directions: Array) -> Array:
    bottom, top, half = extent
    slope = (top - bottom) / (2 * half)
    radius = (bottom + top) / 2 + slope * start[2]
    x, y, z = directions
    side = _first_root(
        x**2 + y**2 - (slope * z) ** 2,
        start[0] * x + start[1] * y - radius * slope * z,
        start[0] ** 2 + start[1] ** 2 - radius**2,
        valid=lambda t: np.abs(start[2] + t * z) < half,
    )
    for level, cap in ((-half, bottom), (half, top)):
        t = (level - start[2]) / z
        inside = (start[0] + t * x) ** 2 + (start[1] + t * y) ** 2 < cap**2
        side = np.where(inside & (t > NEAR) & (t < side), t, side)
    return side


def _dot(one: Array, other: Array) -> Array:
    product: Array = one[0] * other[0] + one[1] * other[1] + one[2] * other[2]
    return product


def _first_root(a: Array, b: Array, c: Array, valid: Callable[[Array], NDArray[np.bool_]] = np.isfinite) -> Array:
    """The least valid positive root of a t² + 2 b t + c; inf if there is none."""
    root = np.sqrt(b**2 - a * c)  # NaN, and so never valid, where the ray misses
    found = np.full(root.shape, np.inf)
    for t in ((-b - root) / a, (-b + root) / a):
        found = np.where((t > NEAR) & (t < found) & valid(t), t, found)
    return found


_MEET: dict[str, Callable[[Any, Array, Array], Array]] = {
    "box": _meet_box,
    "frustum": _meet_frustum,
    "ellipsoid": _meet_ellipsoid,
}


def _meet_room(room: Room, origin: Array, rays: Array) -> tuple[Array, NDArray[np.int64]]:
    """From inside the room every ray meets a plane."""
    positive = rays > 0
    bounds = np.where(positive, np.array(room.size)[:, None, None], 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(rays == 0, np.inf, (bounds - origin[:, None, None]) / rays)
    axis = distance.argmin(0)
    side = np.take_along_axis(positive, axis[None], 0)[0]
    return np.take_along_axis(distance, axis[None], 0)[0], 2 * axis + side


def _windows(thing: Thing, camera: Camera) -> list[tuple[slice, slice] | None]:
    """The rectangle of pixels in which each part can be seen; None if it cannot."""
    centers = np.array([part.center for part in thing.parts])
    halves = np.array([part.half for part in thing.parts])
    corners = centers[:, None] + CORNERS * halves[:, None]
    corners = corners @ turn(thing.yaw).T + (np.array(thing.position) - np.array(camera.position))
    x, y, z = np.moveaxis(corners @ camera.rotation.T, -1, 0)
    front = z > NEAR
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = np.clip(x / z * camera.focal + camera.width / 2, 0, camera.width)
        rows = np.clip(y / z * camera.focal + camera.height / 2, 0, camera.height)
    windows: list[tuple[slice, slice] | None] = []
    for some, every, part_rows, part_columns in zip(front.any(1), front.all(1), rows, columns, strict=True):
        if every:
            row = slice(int(part_rows.min()), int(np.ceil(part_rows.max())))
            column = slice(int(part_columns.min()), int(np.ceil(part_columns.max())))
            windows.append((row, column) if row.start < row.stop and column.start < column.stop else None)
        else:  # what reaches behind the camera can be anywhere
            windows.append((slice(0, camera.height), slice(0, camera.width)) if some else None)
    return windows


def _describe(camera: Camera, rays: Array, depth: Array, surface: NDArray[np.int64], surfaces: Surfaces) -> Hits:
    """Points and normals where the rays end."""
    point = np.array(camera.position)[:, None, None] + depth * rays
    origin = np.moveaxis(surfaces.origin[surface], -1, 0)
    rotation = surfaces.rotation[surface]
    local_point = np.einsum("hwij,jhw->ihw", rotation, point - origin)
    shape = np.where(surface < PLANES, -1, surfaces.shape[surface])
    extent = np.moveaxis(surfaces.extent[surface], -1, 0)
    local_normal = np.zeros_like(point)
    plane = shape == -1
    local_normal[:, plane] = _plane_normals(surface[plane])
    for number, normals in enumerate((_box_normals, _frustum_normals, _ellipsoid_normals)):
        chosen = shape == number
        local_normal[:, chosen] = normals(extent[:, chosen], local_point[:, chosen])
    normal = np.einsum("hwji,jhw->ihw", rotation, local_normal)
    return Hits(depth, surface, point, normal, local_point, local_normal)


def _plane_normals(surface: NDArray[np.int64]) -> Array:
    table = np.zeros((PLANES, 3))
    table[np.arange(PLANES), np.arange(PLANES) // 2] = (1, -1) * 3  # inwards
    normals: Array = table[surface].T
    return normals


def _box_normals(extent: Array, point: Array) -> Array:
    axis = (np.abs(point) - extent).argmax(0)[None]
    normals = np.zeros_like(point)
    np.put_along_axis(normals, axis, np.sign(np.take_along_axis(point, axis, 0)), 0)
    return normals


def _frustum_normals(extent: Array, point: Array) -> Array:
    bottom, top, half = extent
    cap = half - np.abs(point[2]) < 1e-9
    sides = np.stack([point[0], point[1], -np.hypot(point[0], point[1]) * (top - bottom) / (2 * half)])
    sides /= np.linalg.norm(sides, axis=0)
    caps = np.stack([0 * half, 0 * half, np.sign(point[2])])
    return np.where(cap, caps, sides)


def _ellipsoid_normals(extent: Array, point: Array) -> Array:
    normals = point / extent**2
    unit: Array = normals / np.linalg.norm(normals, axis=0)
    return unit
