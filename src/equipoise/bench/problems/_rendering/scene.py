"""What a rendered room is made of. World coordinates are metres with z up; the room stands at the origin."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Color = tuple[float, float, float]
Vector = tuple[float, float, float]

CLASSES = (
    *("wall", "floor", "ceiling"),
    *("window", "door", "picture", "table", "chair", "sofa", "bed", "cabinet", "lamp", "plant"),
)
"""Every pixel is one of these."""

PLANE_CLASSES = ("wall", "wall", "wall", "wall", "floor", "ceiling")
"""What the room's own planes are: at x = 0, x = size, y = 0, y = size, z = 0, z = size."""

THINGS = CLASSES[3:]
"""What is detected: everything but the room itself."""

TEXTURES = ("plain", "wood", "planks", "tiles", "stripes", "weave", "painting", "sky")
SHAPES = ("box", "frustum", "ellipsoid")


@dataclass(frozen=True)
class Material:
    """How a surface looks and what a depth camera sees of it.

    Attributes:
        color: linear RGB.
        second: the colour that the texture mixes in.
        texture: a name in `TEXTURES`.
        scale: the texture's period in metres.
        gloss: strength of highlights, from 0.
        emission: light of its own, in units of a white picture.
        transparent: the depth camera mostly sees nothing there (glass).
    """

    color: Color
    second: Color
    texture: str = "plain"
    scale: float = 0.1
    gloss: float = 0.0
    emission: float = 0.0
    transparent: bool = False


@dataclass(frozen=True)
class Part:
    """A solid in the coordinates of its thing.

    Attributes:
        shape: "box", "frustum" (upright, a cylinder if both radii are equal) or "ellipsoid".
        center: of the solid.
        extent: half the edges of a box; bottom radius, top radius and half the height of a frustum; semi-axes.
        material: its surface.
    """

    shape: str
    center: Vector
    extent: Vector
    material: Material

    @property
    def half(self) -> Vector:
        """Half the edges of the box around it."""
        if self.shape == "frustum":
            radius = max(self.extent[0], self.extent[1])
            return (radius, radius, self.extent[2])
        return self.extent


@dataclass(frozen=True)
class Thing:
    """A piece of furniture: parts that belong together, turned by `yaw` about the vertical and moved to `position`.

    Its own coordinates have the floor (or where it stands) at z = 0 and its front towards +y.
    """

    kind: str
    parts: tuple[Part, ...]
    position: Vector = (0.0, 0.0, 0.0)
    yaw: float = 0.0

    @cached_property
    def bounds(self) -> Array:
        """The lowest and highest corner `[2, 3]` in its own coordinates."""
        centers = np.array([part.center for part in self.parts])
        halves = np.array([part.half for part in self.parts])
        return np.stack([(centers - halves).min(0), (centers + halves).max(0)])

    @cached_property
    def world_bounds(self) -> Array:
        """The lowest and highest corner `[2, 3]` of a box along the world's axes around it."""
        low, high = self.bounds
        corners = np.array([(x, y) for x in (low[0], high[0]) for y in (low[1], high[1])]) @ turn(self.yaw)[:2, :2].T
        position = np.array(self.position)
        bounds: Array = position + np.array([[*corners.min(0), low[2]], [*corners.max(0), high[2]]])
        return bounds


@dataclass(frozen=True)
class Light:
    """A point light; with a `normal` it shines to that side only, as a window does.

    Attributes:
        position: where.
        color: linear RGB, radiant intensity.
        normal: the axis of a light that shines by Lambert's cosine; None shines everywhere alike.
        shadows: whether things stand in its way.
    """

    position: Vector
    color: Color
    normal: Vector | None = None
    shadows: bool = True


@dataclass(frozen=True)
class Room:
    """A box-shaped room and what is in it.

    Attributes:
        size: extent along x, y and z, in metres.
        walls, floor, ceiling: their surfaces.
        things: the furniture, windows and doors included.
        lights: the lights.
        ambient: light from everywhere, linear RGB.
    """

    size: Vector
    walls: Material
    floor: Material
    ceiling: Material
    things: tuple[Thing, ...] = ()
    lights: tuple[Light, ...] = ()
    ambient: Color = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; its coordinates have x to the right, y down and z along the optical axis.

    Attributes:
        position: in the room.
        yaw, pitch, roll: radians; 0 looks along +x, level; positive pitch looks up, positive roll turns clockwise.
        focal: focal length in pixels; the principal point is the picture's centre.
        height, width: pixels.
    """

    position: Vector
    yaw: float
    pitch: float
    roll: float
    focal: float
    height: int
    width: int
    rotation: Array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Computes the rotation `[3, 3]` from world to camera; its rows are the camera's axes in the world."""
        forward = np.array(
            [np.cos(self.pitch) * np.cos(self.yaw), np.cos(self.pitch) * np.sin(self.yaw), np.sin(self.pitch)]
        )
        right = np.array([np.sin(self.yaw), -np.cos(self.yaw), 0.0])
        down = np.cross(forward, right)
        cosine, sine = np.cos(self.roll), np.sin(self.roll)
        rotation = np.stack([cosine * right + sine * down, cosine * down - sine * right, forward])
        object.__setattr__(self, "rotation", rotation)

    def rays(self) -> Array:
        """Returns a ray per pixel `[3, height, width]` in the world, scaled so that its length is depth."""
        x = (np.arange(self.width) + 0.5 - self.width / 2) / self.focal
        y = (np.arange(self.height) + 0.5 - self.height / 2) / self.focal
        axis_x, axis_y, axis_z = self.rotation[:, :, None, None]
        rays: Array = axis_x * x[None, None, :] + axis_y * y[None, :, None] + axis_z
        return rays


def turn(yaw: float) -> Array:
    """Returns the rotation `[3, 3]` about the vertical that takes a thing's own coordinates to the world's."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
