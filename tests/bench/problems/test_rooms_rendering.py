"""The renderer against closed forms, and against marching along its rays in small steps."""

import math
from dataclasses import replace

import numpy as np
import pytest

from equipoise.bench.problems._rendering import CLASSES, MOST_BOXES, THINGS, render, render_many
from equipoise.bench.problems._rendering.casting import cast, list_surfaces, visibility
from equipoise.bench.problems._rendering.layout import random_camera, random_room
from equipoise.bench.problems._rendering.scene import Camera, Light, Material, Part, Room, Thing
from equipoise.bench.problems._rendering.sensor import BASELINE, holes

GREY = Material((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SIZE = (5.0, 4.0, 3.0)
LEVEL = Camera((1.0, 2.0, 1.5), yaw=0.0, pitch=0.0, roll=0.0, focal=40.0, height=48, width=64)
TILTED = Camera((1.2, 0.9, 1.6), yaw=0.6, pitch=-0.3, roll=0.1, focal=45.0, height=48, width=64)


NEIGHBOURS = [
    (slice(None, -2), slice(1, -1)),
    (slice(2, None), slice(1, -1)),
    (slice(1, -1), slice(None, -2)),
    (slice(1, -1), slice(2, None)),
]


def room_with(*things):
    return Room(SIZE, GREY, GREY, GREY, things, (Light((2.5, 2.0, 2.8), (2.0, 2.0, 2.0)),))


def see(room, camera):
    return cast(room, camera, list_surfaces(room))


def back_project(depth, camera):
    """Camera coordinates of every pixel, from the pinhole model alone."""
    rows, columns = np.mgrid[: camera.height, : camera.width] + 0.5
    return np.stack(
        [
            (columns - camera.width / 2) / camera.focal * depth,
            (rows - camera.height / 2) / camera.focal * depth,
            depth,
        ]
    )


def to_world(camera):
    """Columns: the camera's right, down and forward in the world, from its angles by composed rotations."""

    def about(axis, angle):
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        matrix = np.eye(3)
        matrix[i, i] = matrix[j, j] = math.cos(angle)
        matrix[i, j], matrix[j, i] = -math.sin(angle), math.sin(angle)
        return matrix

    level = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], dtype=float)  # looks along +x
    return about(2, camera.yaw) @ about(1, -camera.pitch) @ level @ about(2, camera.roll)


def test_level_camera_in_an_empty_room_sees_walls_floor_and_ceiling_at_their_depths():
    picture = render(room_with(), LEVEL, np.random.default_rng(0))
    rows, columns = np.mgrid[:48, :64] + 0.5
    x, y = (columns - 32) / 40, (rows - 24) / 40
    sides = {"front": np.full(x.shape, 4.0), "side": 2.0 / abs(x), "level": 1.5 / abs(y)}
    expected = np.minimum.reduce(list(sides.values()))
    np.testing.assert_allclose(picture["depth"], expected, rtol=1e-6)
    front = sides["front"] == expected
    side = (sides["side"] == expected) & ~front
    level = (sides["level"] == expected) & ~front & ~side
    normal = np.zeros((3, 48, 64))
    normal[2][front] = -1
    normal[0][side] = -np.sign(x)[side]
    normal[1][level] = -np.sign(y)[level]
    np.testing.assert_allclose(picture["normal"], normal, atol=1e-6)
    kind = np.where(level, np.where(y > 0, CLASSES.index("floor"), CLASSES.index("ceiling")), CLASSES.index("wall"))
    assert (picture["class"] == kind).all()
    assert (picture["thing"] == -1).all()
    assert (picture["labels"] == -1).all()


def test_tilted_camera_sees_points_on_the_rooms_planes_with_the_planes_normals_in_its_coordinates():
    hits = see(room_with(), TILTED)
    rotation = to_world(TILTED)
    points = np.einsum("ij,jhw->ihw", rotation, back_project(hits.depth, TILTED))
    points += np.array(TILTED.position)[:, None, None]
    distances = np.stack(
        [points[0], SIZE[0] - points[0], points[1], SIZE[1] - points[1], points[2], SIZE[2] - points[2]]
    )
    assert distances.min() > -1e-9
    np.testing.assert_allclose(distances.min(0), 0, atol=1e-9)
    planes = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], dtype=float)
    expected = np.moveaxis((planes @ rotation)[distances.argmin(0)], -1, 0)
    picture = render(room_with(), TILTED, np.random.default_rng(0))
    np.testing.assert_allclose(picture["normal"], expected, atol=1e-6)


def test_sphere_is_seen_where_the_formula_says():
    center, radius = np.array([3.0, 2.2, 1.4]), 0.7
    sphere = Thing("lamp", (Part("ellipsoid", (0.0, 0.0, 0.0), (radius,) * 3, GREY),), tuple(center), yaw=0.7)
    hits = see(room_with(sphere), TILTED)
    rays = np.einsum("ij,jhw->ihw", to_world(TILTED), back_project(np.ones((48, 64)), TILTED))
    unit = rays / np.linalg.norm(rays, axis=0)
    offset = np.array(TILTED.position) - center
    along = np.einsum("i,ihw->hw", offset, unit)
    discriminant = along**2 - offset @ offset + radius**2
    seen = discriminant > 0
    assert 200 < seen.sum() < 2000
    assert (list_surfaces(room_with(sphere)).thing[hits.surface] == np.where(seen, 0, -1)).all()
    distance = (-along - np.sqrt(np.maximum(discriminant, 0)))[seen]
    forward = np.einsum("i,ihw->hw", to_world(TILTED)[:, 2], unit)[seen]
    np.testing.assert_allclose(hits.depth[seen], distance * forward, rtol=1e-9)
    points = np.array(TILTED.position)[:, None] + unit[:, seen] * distance
    np.testing.assert_allclose(hits.normal[:, seen], (points - center[:, None]) / radius, atol=1e-9)


def inside(thing, points):
    """Which world points lie in a thing, from the solids' definitions."""
    x, y, z = points - np.array(thing.position)[:, None]
    c, s = math.cos(thing.yaw), math.sin(thing.yaw)
    found = np.zeros(x.shape, dtype=bool)
    for part in thing.parts:
        px, py, pz = c * x + s * y - part.center[0], c * y - s * x - part.center[1], z - part.center[2]
        a, b, h = part.extent
        if part.shape == "box":
            found |= (abs(px) <= a) & (abs(py) <= b) & (abs(pz) <= h)
        elif part.shape == "ellipsoid":
            found |= (px / a) ** 2 + (py / b) ** 2 + (pz / h) ** 2 <= 1
        else:
            found |= (np.hypot(px, py) <= a + (b - a) * (pz + h) / (2 * h)) & (abs(pz) <= h)
    return found


SOLIDS = {
    "box": Part("box", (0.1, 0.0, 0.5), (0.5, 0.3, 0.5), GREY),
    "cylinder": Part("frustum", (0.0, 0.2, 0.6), (0.4, 0.4, 0.6), GREY),
    "cone up": Part("frustum", (0.0, 0.0, 0.5), (0.6, 0.2, 0.5), GREY),
    "cone down": Part("frustum", (0.0, 0.0, 0.5), (0.2, 0.6, 0.5), GREY),
    "cone seen from above": Part("frustum", (0.0, 0.0, 0.2), (0.8, 0.3, 0.2), GREY),
    "ellipsoid": Part("ellipsoid", (0.0, 0.1, 0.6), (0.6, 0.3, 0.5), GREY),
}


@pytest.mark.parametrize("name", SOLIDS)
def test_solids_are_met_where_marching_along_the_ray_first_enters_them(name):
    check_by_marching(room_with(Thing("table", (SOLIDS[name],), (2.6, 1.9, 0.3), yaw=0.5)), TILTED, seen=100)


@pytest.mark.parametrize("name", SOLIDS)
def test_normals_of_solids_follow_from_depth(name):
    fine = replace(TILTED, focal=10 * TILTED.focal, height=480, width=640)
    hits = see(room_with(Thing("table", (SOLIDS[name],), (2.6, 1.9, 0.3), yaw=0.5)), fine)
    points = np.einsum("ij,jhw->ihw", to_world(fine), back_project(hits.depth, fine))
    right, down = points[:, 1:-1, 2:] - points[:, 1:-1, :-2], points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    found = np.cross(down, right, axis=0)
    found /= np.linalg.norm(found, axis=0)
    center = hits.normal[:, 1:-1, 1:-1]
    smooth = (hits.surface >= 6)[1:-1, 1:-1]
    for rows, columns in NEIGHBOURS:
        smooth &= hits.surface[rows, columns] == hits.surface[1:-1, 1:-1]
        smooth &= np.abs(hits.normal[:, rows, columns] - center).max(0) < 0.02
    assert smooth.sum() > 10_000
    np.testing.assert_allclose(found[:, smooth], center[:, smooth], atol=0.01)


@pytest.mark.parametrize("index", range(6))
def test_random_rooms_are_met_where_marching_first_enters_them(index):
    random = np.random.default_rng(index)
    room = random_room(random)
    check_by_marching(room, random_camera(random, room, 24, 32), seen=0)


def check_by_marching(room, camera, seen, steps=200):
    hits = see(room, camera)
    rays = np.einsum("ij,jhw->ihw", to_world(camera), back_project(np.ones(hits.depth.shape), camera)).reshape(3, -1)
    position, depth = np.array(camera.position)[:, None], hits.depth.ravel()
    thing = list_surfaces(room).thing[hits.surface].ravel()
    assert (thing >= 0).sum() >= seen
    occupied = lambda t: np.any([inside(thing, position + t * rays) for thing in room.things], axis=0)  # noqa: E731
    if room.things:
        for share in np.linspace(0, 1, steps, endpoint=False):
            assert not (occupied(share * depth - 1e-6) & (share > 0)).any()  # nothing before
        behind = np.zeros(depth.shape, dtype=bool)
        for index, other in enumerate(room.things):
            behind |= (thing == index) & inside(other, position + (depth + 1e-7) * rays)
        assert behind[thing >= 0].all()  # and it just behind
    step = 1e-6
    toward = hits.normal.reshape(3, -1)
    assert ((toward * rays).sum(0) < 0).all()
    np.testing.assert_allclose(np.linalg.norm(toward, axis=0), 1, atol=1e-12)
    point = hits.point.reshape(3, -1)
    for index, other in enumerate(room.things):
        own = thing == index
        assert inside(other, point[:, own] - step * toward[:, own]).all()  # normals point out


def check_normals_follow_depth(depth, normal, surface, camera, least):
    """Where a pixel and its neighbours lie on one plane, the cross product of the differences is its normal."""
    points = back_project(depth.astype(np.float64), camera)
    right, down = points[:, 1:-1, 2:] - points[:, 1:-1, :-2], points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    found = np.cross(down, right, axis=0)
    found /= np.linalg.norm(found, axis=0)
    center = normal[:, 1:-1, 1:-1]
    flat = np.ones(center.shape[1:], dtype=bool)
    for rows, columns in NEIGHBOURS:
        flat &= surface[rows, columns] == surface[1:-1, 1:-1]
        flat &= np.abs(normal[:, rows, columns] - center).max(0) < 1e-6
    assert flat.mean() > least
    np.testing.assert_allclose(found[:, flat], center[:, flat], atol=2e-4)


@pytest.mark.parametrize("index", range(5))
def test_normals_of_flat_surfaces_follow_from_depth(index):
    random = np.random.default_rng((7, index))
    room = random_room(random)
    camera = random_camera(random, room, 96, 128)
    surface = see(room, camera).surface
    picture = render(room, camera, random)
    check_normals_follow_depth(picture["depth"], picture["normal"], surface, camera, least=0.4)


def test_boxes_are_tight_around_what_is_visible():
    pictures = render_many(range(12), seed=3)
    boxed = 0
    for thing, kind, boxes, labels in zip(
        *(pictures[name] for name in ("thing", "class", "boxes", "labels")), strict=True
    ):
        expected = set()
        for index in set(thing.ravel().tolist()) - {-1}:
            mask = thing == index
            if mask.sum() >= 96 * 128 / 300:
                columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
                names = {CLASSES[value] for value in kind[mask]}
                assert len(names) == 1
                expected.add((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1, THINGS.index(names.pop())))
        assert len(expected) <= MOST_BOXES
        found = [(*box, label) for box, label in zip(boxes.tolist(), labels.tolist(), strict=True) if label >= 0]
        assert set(found) == expected
        assert len(found) == len(expected)
        assert (boxes[labels == -1] == 0).all()
        boxed += len(found)
    assert boxed > 40


def test_pictures_depend_on_seed_and_index_alone():
    whole = render_many(range(4), seed=5, height=24, width=32)
    parts = [render_many(indices, seed=5, height=24, width=32) for indices in (range(1), range(1, 4))]
    other = render_many(range(4), seed=6, height=24, width=32)
    for name, array in whole.items():
        assert (array == np.concatenate([part[name] for part in parts])).all(), name
    assert (whole["image"] != other["image"]).mean() > 0.5
    assert (whole["image"][0] != whole["image"][1]).mean() > 0.5


def test_every_class_occurs_and_pictures_are_exposed():
    pictures = render_many(range(60), seed=1, height=48, width=64)
    share = np.bincount(pictures["class"].ravel(), minlength=len(CLASSES)) / pictures["class"].size
    assert share.min() > 0.001
    assert share.max() < 0.5
    brightness = pictures["image"].mean((1, 2, 3))
    assert brightness.min() > 60
    assert brightness.max() < 210
    assert np.isfinite(pictures["depth"]).all()
    assert pictures["depth"].min() > 0.1
    assert 0.03 < pictures["hole"].mean() < 0.2


def test_depth_is_missing_in_the_projectors_shadow():
    # A box 1 m from a camera that is 3 m from the wall: the shadow is as wide as their disparities differ.
    camera = replace(LEVEL, focal=200.0, height=40, width=200)
    screen = Thing("cabinet", (Part("box", (0.0, 0.0, 0.0), (0.01, 0.2, 2.0), GREY),), (2.01, 2.0, 1.5))
    room = replace(room_with(screen), size=(4.0, 40.0, 30.0))
    width = BASELINE * camera.focal * (1 / 1.0 - 1 / 3.0)
    assert width == pytest.approx(10)
    hits = see(room, camera)
    left = 100 - int(0.2 * camera.focal)
    assert hits.depth[20, left - 1] == pytest.approx(3)
    assert hits.depth[20, left] == pytest.approx(1)
    missing = holes(camera, list_surfaces(room), hits, np.random.default_rng(0))
    share = missing.mean(0)
    assert (share[left - 9 : left] == 1).all()
    rest = np.delete(share, np.r_[left - 10 : left + 1, 138:142])
    assert rest.mean() < 0.02  # specks alone


def test_depth_is_mostly_missing_on_glass_and_where_out_of_range():
    glass = replace(GREY, transparent=True)
    pane = Thing("window", (Part("box", (0.0, 0.0, 0.0), (0.02, 1.0, 0.5), glass),), (4.98, 2.0, 1.5))
    room = room_with(pane)
    hits = see(room, LEVEL)
    missing = holes(LEVEL, list_surfaces(room), hits, np.random.default_rng(0))
    on_glass = list_surfaces(room).thing[hits.surface] == 0
    assert missing[on_glass].mean() > 0.7
    assert missing[~on_glass & (hits.depth > 3.9)].mean() < 0.1
    for distance, gone in ((0.39, True), (0.41, False), (7.9, False), (8.1, True)):
        size = (distance + 1, 40.0, 30.0)
        hits = see(replace(room_with(), size=size), LEVEL)
        missing = holes(LEVEL, list_surfaces(room_with()), hits, np.random.default_rng(0))
        assert (missing[20:28, 28:36].mean() > 0.9) == gone


def test_shadow_falls_where_the_line_to_the_light_is_blocked():
    board = Thing("table", (Part("box", (0.0, 0.0, 0.0), (0.5, 0.5, 0.1), GREY),), (2.0, 2.0, 1.0))
    light = np.array([2.0, 2.0, 2.1])
    # The upper face, at 1.1, blocks first: 1 m below the light it is 0.5 wide, so 1.05 on the floor at most;
    # the lower face, 1.2 m below the light, 0.5 · 2.1 / 1.2 = 0.875.
    x = np.array([2.0, 2.5, 3.04, 3.06, 3.4])
    points = np.stack([x, np.full(5, 2.0), np.zeros(5)])
    assert visibility(room_with(board), light, points).tolist() == [False, False, False, True, True]


def test_brightness_of_a_lit_wall_falls_off_from_the_light():
    room = replace(room_with(), lights=(Light((4.0, 2.0, 1.5), (3.0, 3.0, 3.0)),), ambient=(0.05, 0.05, 0.05))
    image = render(room, LEVEL, np.random.default_rng(0))["image"].mean(0)
    assert image[20:28, 28:36].mean() > 1.3 * image[20:28, 16:20].mean()
