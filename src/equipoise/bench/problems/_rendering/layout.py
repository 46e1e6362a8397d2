"""Furnishes a room at random and puts a camera into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from equipoise.bench.problems._rendering import furniture
from equipoise.bench.problems._rendering.furniture import ON_THE_FLOOR, Random, shade, tint
from equipoise.bench.problems._rendering.scene import Array, Camera, Color, Light, Material, Room, Thing

STYLES = (
    ("bed", "chest", "cabinet", "table", "chair", "plant", "lamp", "chest"),
    ("sofa", "cabinet", "sofa", "chest", "lamp", "plant", "cabinet"),
    ("cabinet", "chest", "sofa", "plant", "lamp", "chair"),
    ("table", "cabinet", "bed", "chair", "sofa", "plant", "chest", "lamp"),
)
"""What stands along the walls of a bedroom, a living room, a dining room and a study, in the order of trying."""

CENTRES = ((), ("low",), ("dining",), ())
"""What may stand in the middle of each."""

GAP = 0.05


def random_room(random: Random) -> Room:
    """Draws a furnished room."""
    size = (random.uniform(3.2, 5.8), random.uniform(3.2, 5.8), random.uniform(2.35, 2.9))
    style = int(random.integers(len(STYLES)))
    things: list[Thing] = []
    blocked: list[Array] = []

    def put(thing: Thing, clearance: float = 0.0) -> bool:
        bounds = thing.world_bounds
        taken = bounds + GAP / 2 * np.array([[-1], [1]])
        if (bounds[0] < -1e-6).any() or (bounds[1] > np.array(size) + 1e-6).any():
            return False
        if any(_overlap(taken, other) for other in blocked):
            return False
        things.append(thing)
        blocked.append(taken)
        if clearance:
            front = taken.copy()
            forward = furniture_front(thing)
            front[0] += np.minimum(0, forward * clearance)
            front[1] += np.maximum(0, forward * clearance)
            blocked.append(front)
        return True

    def try_put(make: str, tries: int = 8) -> Thing | None:
        thing = ON_THE_FLOOR[make](random)
        for _ in range(tries):
            placed = _against_wall(random, thing, size, 0.0)
            if put(placed):
                return placed
        return None

    put(_on_wall(random, furniture.door(random), size, 0.0), clearance=0.7)
    for _ in range(int(random.integers(1, 4))):
        put(_on_wall(random, furniture.window(random), size, random.uniform(1.45, 1.6)))
    for centre in CENTRES[style]:
        _furnish_centre(random, centre, size, put)
    for name in STYLES[style]:
        placed = try_put(name) if random.random() < 0.9 else None
        if placed is not None:
            _decorate(random, placed, things, blocked)
    for _ in range(int(random.integers(2, 6))):
        put(_on_wall(random, furniture.picture(random), size, random.uniform(1.4, 1.7)))
    lights = _lights(random, size, things, put)
    return Room(
        size=size,
        walls=_wall(random),
        floor=_floor(random),
        ceiling=Material((0.8, 0.8, 0.78), (0.74, 0.74, 0.72), "plain", 0.8),
        things=tuple(things),
        lights=lights,
        ambient=shade((1.0, 0.98, 0.95), random.uniform(0.15, 0.3)),
    )


def random_camera(random: Random, room: Room, height: int, width: int) -> Camera:
    """Draws a camera that stands free in the room and looks across it, a little down."""
    size = np.array(room.size)
    bounds = np.array([thing.world_bounds for thing in room.things]).reshape(-1, 2, 3)
    cameras: list[tuple[float, int, Camera]] = []
    for _ in range(10):
        position = np.array([*random.uniform(0.1, 0.9, 2) * size[:2], random.uniform(1.2, 1.7)])
        target = size[:2] * random.normal(0.5, 0.12, 2)
        yaw = np.arctan2(*(target - position[:2])[::-1]) + random.normal(0, 0.2)
        camera = Camera(
            position=tuple(position.tolist()),
            yaw=float(yaw),
            pitch=random.uniform(-0.42, -0.08),
            roll=random.normal(0, 0.025),
            focal=width * random.uniform(0.62, 0.85),
            height=height,
            width=width,
        )
        cameras.append((_prospect(camera, bounds), len(cameras), camera))
    return max(cameras)[2]


def _prospect(camera: Camera, bounds: Array) -> float:
    """How many things' middles are in the picture; less than 0 if something stands too near to the camera."""
    if not len(bounds):
        return 0.0
    outside = np.maximum(0, np.maximum(bounds[:, 0] - camera.position, camera.position - bounds[:, 1]))
    if np.linalg.norm(outside, axis=1).min() < 0.5:
        return -1.0
    x, y, z = camera.rotation @ (bounds.mean(1) - camera.position).T
    inside = (np.abs(x * camera.focal) < z * camera.width / 2) & (np.abs(y * camera.focal) < z * camera.height / 2)
    return float((inside & (z > 0.8)).sum())


def furniture_front(thing: Thing) -> Array:
    """Returns the direction of its front in the world."""
    return np.array([-np.sin(thing.yaw), np.cos(thing.yaw), 0.0])


def _overlap(one: Array, other: Array) -> bool:
    return bool((one[0] < other[1]).all() and (other[0] < one[1]).all())


def _on_wall(random: Random, thing: Thing, size: tuple[float, float, float], height: float) -> Thing:
    """Hangs it on a wall chosen at random, its back to it, anywhere along it."""
    return _against_wall(random, thing, size, height, gap=0.0, jitter=0.0)


def _against_wall(
    random: Random,
    thing: Thing,
    size: tuple[float, float, float],
    height: float,
    gap: float = 0.02,
    jitter: float = 0.05,
) -> Thing:
    low, high = thing.bounds
    side = int(random.integers(4))
    along = size[0] if side % 2 == 0 else size[1]
    margin = max(-low[0], high[0]) + gap
    place = random.uniform(margin, max(margin, along - margin))
    back = gap - low[1] + (0.06 if jitter else 0.0)
    x, y = ((place, back), (size[0] - back, place), (place, size[1] - back), (back, place))[side]
    yaw = (0.0, np.pi / 2, np.pi, -np.pi / 2)[side] + random.normal(0, 1) * jitter
    return replace(thing, position=(x, y, height), yaw=float(yaw))


def _furnish_centre(
    random: Random, centre: str, size: tuple[float, float, float], put: Callable[[Thing], bool]
) -> None:
    """A table in the middle, with chairs around it if it is for dining."""
    thing = furniture.table(random, low=centre == "low")
    x, y = (size[axis] * random.uniform(0.42, 0.58) for axis in (0, 1))
    yaw = random.integers(2) * np.pi / 2 + random.normal(0, 0.12)
    if not put(replace(thing, position=(x, y, 0.0), yaw=float(yaw))) or centre == "low":
        return
    high = thing.bounds[1]
    seat = furniture.chair(random)
    for side, turned in ((1, np.pi), (-1, 0.0)):
        for shift in (-0.5, 0.5) if high[0] > 0.55 else (0.0,):
            if random.random() < 0.8:
                offset = np.array([shift * high[0], side * (high[1] + random.uniform(0.25, 0.45))])
                cosine, sine = np.cos(yaw), np.sin(yaw)
                place = (x + cosine * offset[0] - sine * offset[1], y + sine * offset[0] + cosine * offset[1], 0.0)
                put(replace(seat, position=place, yaw=float(yaw + turned + random.normal(0, 0.15))))


def _decorate(random: Random, placed: Thing, things: list[Thing], blocked: list[Array]) -> None:
    """Puts a lamp or a small plant on a table or a low cabinet."""
    top = placed.bounds[1, 2]
    if placed.kind not in ("table", "cabinet") or top > 1.1 or random.random() < 0.4:
        return
    ornament = furniture.table_lamp(random) if random.random() < 0.65 else furniture.plant(random)
    shift = random.uniform(-0.5, 0.5) * placed.bounds[1, 0]
    x = placed.position[0] + np.cos(placed.yaw) * shift
    y = placed.position[1] + np.sin(placed.yaw) * shift
    ornament = replace(ornament, position=(float(x), float(y), float(top)))
    if not any(_overlap(ornament.world_bounds + np.array([0, 0, GAP]), other) for other in blocked):
        things.append(ornament)
        blocked.append(ornament.world_bounds)


def _lights(
    random: Random, size: tuple[float, float, float], things: list[Thing], put: Callable[[Thing], bool]
) -> tuple[Light, ...]:
    """A ceiling light with a pendant around it, the windows and the lamps."""
    warm = tint(random, (0.08, 0.13), (0.05, 0.3), (1.0, 1.0))
    drop = random.uniform(0.35, 0.7)
    x, y = (size[axis] * random.uniform(0.4, 0.6) for axis in (0, 1))
    if random.random() < 0.7:
        put(replace(furniture.pendant(random, drop), position=(x, y, size[2] - drop)))
    lights = [Light((x, y, size[2] - drop + 0.12), shade(warm, random.uniform(1.2, 2.6)))]
    daylight = random.uniform(0.5, 3.0)
    for thing in things:
        position = np.array(thing.position)
        if thing.kind == "window":
            front = furniture_front(thing)
            place = position + 0.2 * front
            lights.append(Light(tuple(place.tolist()), shade((0.9, 0.96, 1.0), daylight), tuple(front.tolist())))
        elif thing.kind == "lamp" and thing.position[2] < 1.2:
            top = thing.bounds[1, 2]
            lights.append(
                Light((position[0], position[1], position[2] + top - 0.1), shade((1.0, 0.85, 0.6), 0.35), shadows=False)
            )
    return tuple(lights)


def _wall(random: Random) -> Material:
    color = tint(random, (0, 1), (0.02, 0.35), (0.5, 0.85))
    if random.random() < 0.25:
        return Material(color, shade(color, random.uniform(0.75, 0.9)), "stripes", random.uniform(0.2, 0.5))
    return Material(color, shade(color, 0.93), "plain", random.uniform(0.4, 1.0))


def _floor(random: Random) -> Material:
    kind = int(random.integers(3))
    color: Color
    if kind == 0:
        color = tint(random, (0.05, 0.1), (0.4, 0.7), (0.3, 0.65))
        return Material(color, shade(color, 0.6), "planks", random.uniform(0.12, 0.2), gloss=0.25)
    if kind == 1:
        color = tint(random, (0, 1), (0.0, 0.25), (0.45, 0.8))
        return Material(color, shade(color, random.uniform(0.5, 0.8)), "tiles", random.uniform(0.3, 0.5), gloss=0.4)
    color = tint(random, (0, 1), (0.05, 0.5), (0.2, 0.6))
    return Material(color, shade(color, 0.8), "weave", random.uniform(0.04, 0.08))
