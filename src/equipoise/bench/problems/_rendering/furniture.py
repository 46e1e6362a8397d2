"""Furniture built of boxes, frustums and ellipsoids, each piece a little different every time."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from equipoise.bench.problems._rendering.scene import Color, Material, Part, Thing

Random = np.random.Generator

METAL = Material((0.35, 0.35, 0.36), (0.25, 0.25, 0.26), "plain", 0.3, gloss=0.6)
WHITE = Material((0.82, 0.81, 0.78), (0.74, 0.73, 0.71), "plain", 0.4, gloss=0.1)


def box(low: Sequence[float], high: Sequence[float], material: Material) -> Part:
    """Returns a box between two corners."""
    corners = np.array([low, high])
    return Part("box", tuple(corners.mean(0).tolist()), tuple((np.diff(corners, axis=0)[0] / 2).tolist()), material)


def cylinder(x: float, y: float, low: float, high: float, radius: float, material: Material) -> Part:
    """Returns an upright cylinder from z = low to z = high."""
    return Part("frustum", (x, y, (low + high) / 2), (radius, radius, (high - low) / 2), material)


def tint(
    random: Random, hue: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]
) -> Color:
    """Draws a colour between bounds."""
    return colorsys.hsv_to_rgb(random.uniform(*hue) % 1, random.uniform(*saturation), random.uniform(*value))


def shade(color: Color, factor: float) -> Color:
    """Returns a darker or lighter colour."""
    red, green, blue = color
    return red * factor, green * factor, blue * factor


def wood(random: Random) -> Material:
    """Draws a wood: from pale to dark, sometimes painted white."""
    if random.random() < 0.2:
        return WHITE
    color = tint(random, (0.05, 0.10), (0.45, 0.75), (0.22, 0.62))
    return Material(color, shade(color, 0.6), "wood", random.uniform(0.08, 0.16), gloss=0.2)


def fabric(random: Random, saturation: tuple[float, float] = (0.1, 0.75)) -> Material:
    """Draws a cloth: plain weave or stripes."""
    color = tint(random, (0, 1), saturation, (0.2, 0.75))
    if random.random() < 0.25:
        other = tint(random, (0, 1), (0, 0.4), (0.6, 0.85))
        return Material(color, other, "stripes", random.uniform(0.12, 0.3))
    return Material(color, shade(color, 0.8), "weave", random.uniform(0.03, 0.06))


def legs(x: float, y: float, height: float, thick: float, round_: bool, material: Material) -> list[Part]:
    """Returns four legs whose outer corners are at ±x, ±y."""
    corners = [(sx * (x - thick / 2), sy * (y - thick / 2)) for sx in (-1, 1) for sy in (-1, 1)]
    if round_:
        return [cylinder(cx, cy, 0, height, thick / 2, material) for cx, cy in corners]
    half = thick / 2
    return [box((cx - half, cy - half, 0), (cx + half, cy + half, height), material) for cx, cy in corners]


def table(random: Random, low: bool = False) -> Thing:
    """A table; `low`: before a sofa."""
    x, y = random.uniform(0.5, 0.8), random.uniform(0.38, 0.5)
    height = random.uniform(0.38, 0.48) if low else random.uniform(0.70, 0.78)
    top = wood(random)
    if not low and random.random() < 0.25:
        foot = METAL if random.random() < 0.5 else top
        return Thing(
            "table",
            (
                cylinder(0, 0, height - 0.04, height, y + 0.12, top),
                cylinder(0, 0, 0.03, height - 0.04, 0.05, foot),
                cylinder(0, 0, 0, 0.03, 0.28, foot),
            ),
        )
    support = METAL if random.random() < 0.3 else top
    parts = [box((-x, -y, height - 0.05), (x, y, height), replace(top, gloss=0.35))]
    parts += legs(x - 0.03, y - 0.03, height - 0.05, random.uniform(0.05, 0.09), random.random() < 0.4, support)
    return Thing("table", tuple(parts))


def chair(random: Random) -> Thing:
    """A chair with a board, slats or a cushioned back."""
    half, seat, top = random.uniform(0.20, 0.24), random.uniform(0.43, 0.48), random.uniform(0.82, 1.0)
    frame = wood(random) if random.random() < 0.8 else METAL
    cover = fabric(random) if random.random() < 0.5 else frame
    parts = legs(half, half, seat - 0.04, 0.045, random.random() < 0.4, frame)
    parts.append(box((-half, -half, seat - 0.04), (half, half, seat + 0.01), cover))
    for side in (-1, 1):
        middle = side * (half - 0.02)
        parts.append(box((middle - 0.02, -half, seat), (middle + 0.02, -half + 0.04, top), frame))
    if random.random() < 0.5:
        low = seat + random.uniform(0.08, 0.2)
        parts.append(box((-half + 0.04, -half + 0.005, low), (half - 0.04, -half + 0.035, top - 0.01), cover))
    else:
        heights = np.linspace(seat + 0.16, top - 0.06, 3)
        parts += [box((-half + 0.04, -half, z - 0.035), (half - 0.04, -half + 0.03, z + 0.035), frame) for z in heights]
    return Thing("chair", tuple(parts))


def sofa(random: Random) -> Thing:
    """An armchair or a sofa for two or three, with cushions."""
    seats = int(random.integers(1, 4))
    width, deep, arm, seat = random.uniform(0.62, 0.72), random.uniform(0.42, 0.48), random.uniform(0.13, 0.2), 0.42
    x, back = seats * width / 2, random.uniform(0.75, 0.9)
    cloth = fabric(random)
    pillow = fabric(random, (0.4, 0.9))
    parts = [
        box((-x, -deep, 0.08), (x, deep - 0.04, seat - 0.14), cloth),
        box((-x, -deep, seat - 0.14), (x, -deep + 0.2, back), cloth),
        box((-x - arm, -deep, 0.04), (-x, deep, seat + 0.2), cloth),
        box((x, -deep, 0.04), (x + arm, deep, seat + 0.2), cloth),
    ]
    for number in range(seats):
        left = -x + number * width
        parts.append(
            box((left + 0.012, -deep + 0.2, seat - 0.13), (left + width - 0.012, deep - 0.01, seat + 0.03), cloth)
        )
        if random.random() < 0.5:
            middle = left + width / 2
            parts.append(Part("ellipsoid", (middle, -deep + 0.29, seat + 0.2), (0.22, 0.09, 0.18), pillow))
    return Thing("sofa", tuple(parts))


def bed(random: Random) -> Thing:
    """A bed with headboard, mattress, blanket and pillows."""
    x, y = random.uniform(0.5, 0.85), random.uniform(0.98, 1.05)
    top = random.uniform(0.45, 0.6)
    frame, sheet, blanket = wood(random), WHITE, fabric(random)
    parts = [
        box((-x - 0.03, -y, 0.12), (x + 0.03, y, top - 0.2), frame),
        box((-x - 0.03, -y - 0.06, 0), (x + 0.03, -y, top + random.uniform(0.3, 0.6)), frame),
        box((-x, -y, top - 0.2), (x, y - 0.02, top), sheet),
        box((-x - 0.015, -y + random.uniform(0.6, 0.9), top - 0.25), (x + 0.015, y + 0.01, top + 0.03), blanket),
    ]
    parts += legs(x, y, 0.12, 0.08, False, frame)
    pillows = [0.0] if x < 0.65 else [-x / 2, x / 2]
    parts += [Part("ellipsoid", (p, -y + 0.27, top + 0.04), (0.31, 0.2, 0.085), sheet) for p in pillows]
    return Thing("bed", tuple(parts))


def cabinet(random: Random) -> Thing:
    """A wardrobe with doors, a chest of drawers or an open bookshelf."""
    return (_shelf, _wardrobe, _chest)[int(random.integers(3))](random)


def chest(random: Random) -> Thing:
    """A cabinet low enough to put something on."""
    return _chest(random)


def lamp(random: Random) -> Thing:
    """A floor lamp."""
    height, radius = random.uniform(1.4, 1.75), random.uniform(0.16, 0.22)
    return Thing(
        "lamp",
        (
            cylinder(0, 0, 0, 0.03, 0.14, METAL),
            cylinder(0, 0, 0.03, height - 0.02, 0.014, METAL),
            Part("frustum", (0, 0, height - 0.13), (radius, radius * 0.7, 0.13), _lampshade(random)),
        ),
    )


def table_lamp(random: Random) -> Thing:
    """A lamp to put on furniture."""
    body = Material(tint(random, (0, 1), (0.2, 0.8), (0.3, 0.8)), (0.5, 0.5, 0.5), "plain", 0.2, gloss=0.8)
    return Thing(
        "lamp",
        (
            cylinder(0, 0, 0, 0.02, 0.08, body),
            Part("ellipsoid", (0, 0, 0.12), (0.075, 0.075, 0.11), body),
            Part("frustum", (0, 0, 0.33), (0.15, 0.10, 0.1), _lampshade(random)),
        ),
    )


def pendant(random: Random, drop: float) -> Thing:
    """A lamp that hangs from the ceiling; z = 0 is where it ends."""
    shade_ = _lampshade(random)
    cord = cylinder(0, 0, 0.2, drop, 0.012, METAL)
    if random.random() < 0.5:
        return Thing("lamp", (Part("ellipsoid", (0, 0, 0.13), (0.15, 0.15, 0.13), shade_), cord))
    return Thing("lamp", (Part("frustum", (0, 0, 0.11), (0.24, 0.08, 0.11), shade_), cord))


def plant(random: Random) -> Thing:
    """A pot with a shrub."""
    scale = random.uniform(0.8, 1.3)
    pot = Material(tint(random, (0.02, 0.09), (0.2, 0.7), (0.35, 0.8)), (0.3, 0.25, 0.2), "plain", 0.2, gloss=0.2)
    leaf = tint(random, (0.25, 0.38), (0.6, 0.85), (0.18, 0.4))
    green = Material(leaf, shade(leaf, 0.35), "weave", 0.05)
    parts = [
        Part("frustum", (0, 0, 0.15 * scale), (0.11 * scale, 0.16 * scale, 0.15 * scale), pot),
        cylinder(0, 0, 0.3 * scale, 0.6 * scale, 0.02, Material((0.25, 0.16, 0.08), (0.2, 0.12, 0.06))),
    ]
    for angle in np.linspace(0, 2 * np.pi, 5, endpoint=False) + random.uniform(0, 2 * np.pi):
        reach, height = random.uniform(0.09, 0.17) * scale, random.uniform(0.5, 0.9) * scale
        axes = random.uniform(0.09, 0.17, 3) * scale
        center = (float(reach * np.cos(angle)), float(reach * np.sin(angle)), height)
        parts.append(Part("ellipsoid", center, tuple(axes.tolist()), green))
    return Thing("plant", tuple(parts))


def picture(random: Random) -> Thing:
    """A framed painting; its back is at y = 0 and its middle at z = 0."""
    x, z = random.uniform(0.2, 0.55), random.uniform(0.2, 0.4)
    frame = wood(random) if random.random() < 0.6 else Material((0.05, 0.05, 0.05), (0.08, 0.08, 0.08), gloss=0.3)
    paints = [tint(random, (0, 1), (0.3, 0.9), (0.15, 0.9)) for _ in range(2)]
    canvas = Material(paints[0], paints[1], "painting", random.uniform(0.2, 0.45))
    edge = 0.035
    return Thing(
        "picture",
        (box((-x, 0, -z), (x, 0.025, z), frame), box((-x + edge, 0.02, -z + edge), (x - edge, 0.03, z - edge), canvas)),
    )


def window(random: Random) -> Thing:
    """A window with bars and a sill; its back is at y = 0 and its middle at z = 0."""
    x, z = random.uniform(0.45, 0.95), random.uniform(0.45, 0.65)
    frame = WHITE if random.random() < 0.7 else wood(random)
    sky = tint(random, (0.53, 0.62), (0.15, 0.5), (0.85, 1.0))
    ground = tint(random, (0.2, 0.4), (0.1, 0.5), (0.5, 0.75))
    glass = Material(sky, ground, "sky", z, emission=1.8, transparent=True)
    edge = 0.05
    bars = [0.0] if x < 0.7 else [-x / 3, x / 3]
    return Thing(
        "window",
        (
            box((-x, 0, -z), (x, 0.02, z), glass),
            box((-x - edge, 0, -z - edge), (-x, 0.05, z + edge), frame),
            box((x, 0, -z - edge), (x + edge, 0.05, z + edge), frame),
            box((-x, 0, z), (x, 0.05, z + edge), frame),
            box((-x - edge, 0, -z - edge - 0.03), (x + edge, 0.14, -z), frame),
            *(box((bar - 0.02, 0, -z), (bar + 0.02, 0.04, z), frame) for bar in bars),
        ),
    )


def door(random: Random) -> Thing:
    """A door in its frame, with panels and a knob; its back is at y = 0."""
    x, top = random.uniform(0.4, 0.47), random.uniform(1.98, 2.1)
    leaf = wood(random)
    frame = WHITE if random.random() < 0.5 else leaf
    panel = replace(leaf, color=shade(leaf.color, 0.85))
    side = 1 if random.random() < 0.5 else -1
    return Thing(
        "door",
        (
            box((-x, 0, 0), (x, 0.03, top), leaf),
            box((-x - 0.08, 0, 0), (-x, 0.05, top + 0.08), frame),
            box((x, 0, 0), (x + 0.08, 0.05, top + 0.08), frame),
            box((-x, 0, top), (x, 0.05, top + 0.08), frame),
            box((-x + 0.12, 0.02, 1.12), (x - 0.12, 0.042, top - 0.14), panel),
            box((-x + 0.12, 0.02, 0.14), (x - 0.12, 0.042, 0.96), panel),
            Part("ellipsoid", (side * (x - 0.07), 0.07, 1.03), (0.035, 0.035, 0.035), METAL),
        ),
    )


def _lampshade(random: Random) -> Material:
    color = tint(random, (0.08, 0.14), (0.1, 0.35), (0.9, 1.0))
    return Material(color, shade(color, 0.9), "plain", 0.2, emission=1.8)


def _fronts(
    random: Random, x: float, y: float, low: float, high: float, columns: int, rows: int, material: Material
) -> list[Part]:
    """Doors or drawers in a grid, with knobs."""
    front = replace(material, color=shade(material.color, random.uniform(0.8, 1.15)))
    parts = []
    xs, zs = np.linspace(-x, x, columns + 1), np.linspace(low, high, rows + 1)
    for left, right in pairwise(xs):
        for bottom, top in pairwise(zs):
            parts.append(box((left + 0.012, y, bottom + 0.012), (right - 0.012, y + 0.018, top - 0.012), front))
            knob = ((left + right) / 2 if rows > 1 else right - 0.06, y + 0.03, (bottom + top) / 2)
            parts.append(Part("ellipsoid", knob, (0.018, 0.018, 0.018), METAL))
    return parts


def _wardrobe(random: Random) -> Thing:
    columns = int(random.integers(2, 4))
    x, y, top = columns * random.uniform(0.2, 0.27), random.uniform(0.25, 0.3), random.uniform(1.7, 2.05)
    body = wood(random)
    return Thing("cabinet", (box((-x, -y, 0), (x, y, top), body), *_fronts(random, x, y, 0.08, top, columns, 1, body)))


def _chest(random: Random) -> Thing:
    columns, rows = int(random.integers(1, 3)), int(random.integers(2, 4))
    x, y, top = columns * random.uniform(0.25, 0.4), random.uniform(0.2, 0.26), rows * random.uniform(0.22, 0.3)
    body = wood(random)
    fronts = _fronts(random, x, y, 0.06, top - 0.03, columns, rows, body)
    return Thing("cabinet", (box((-x, -y, 0), (x, y, top), body), *fronts))


def _shelf(random: Random) -> Thing:
    x, y, rows = random.uniform(0.35, 0.6), random.uniform(0.14, 0.18), int(random.integers(3, 6))
    top = rows * random.uniform(0.34, 0.4)
    body = wood(random)
    parts = [
        box((-x, -y, 0), (-x + 0.025, y, top), body),
        box((x - 0.025, -y, 0), (x, y, top), body),
        box((-x, -y, 0), (x, -y + 0.015, top), body),
    ]
    levels = np.linspace(0.02, top - 0.0125, rows + 1)
    parts += [box((-x, -y, z - 0.0125), (x, y, z + 0.0125), body) for z in levels]
    for level in levels[:-1]:
        left = -x + 0.03
        while (thick := random.uniform(0.06, 0.16)) + left < x - 0.03 and random.random() < 0.85:
            book = Material(tint(random, (0, 1), (0.2, 0.8), (0.2, 0.8)), (0.8, 0.8, 0.75), "stripes", thick / 2)
            high = level + random.uniform(0.18, 0.28)
            parts.append(
                box((left, -y + 0.02, level), (left + thick * 0.96, y - random.uniform(0.02, 0.08), high), book)
            )
            left += thick
    return Thing("cabinet", tuple(parts))


ON_THE_FLOOR: dict[str, Callable[[Random], Thing]] = {
    "bed": bed, "sofa": sofa, "cabinet": cabinet, "chest": chest, "table": table, "chair": chair, "lamp": lamp,
    "plant": plant,
}  # fmt: skip
"""What stands along the walls, by the name that a layout has for it."""
