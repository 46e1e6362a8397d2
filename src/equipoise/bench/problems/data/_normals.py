"""Surface normals from depth, for data that comes without them."""

from __future__ import annotations

import torch
from torch import Tensor

KINECT_SIZE = (480, 640)
KINECT_FOCAL = (519.46961112127485, 518.85790117450188)
KINECT_CENTRE = (253.73616633400465, 325.58244941119034)
"""NYUv2's colour camera, rows first, in pixels counted from 1 as the data set's own toolbox does."""


def normals_from_depth(depth: Tensor, radius: int = 4, tolerance: float = 0.05) -> Tensor:
    """Estimates the surface normal of every pixel by fitting a plane to the pixels around it.

    A plane `n·P = d` seen by a pinhole camera has `1/z = (n_x x + n_y y + n_z)/d` with `x`, `y` the pixel's position
    divided by the focal length, so the fit is a linear least-squares problem in the inverse depth, and exact on a
    plane. Only pixels whose depth differs from the middle one's by less than `tolerance` of it take part: the rest
    lies on other surfaces. Coordinates have x to the right, y down and z along the optical axis; the normals
    look at the camera. NYUv2's camera is assumed, scaled to the size of the map.

    Args:
        depth: metres, `[1, H, W]`; NaN, or what is not above 0, is missing.
        radius: the window has 2·radius + 1 pixels a side.
        tolerance: share of the depth.

    Returns:
        Unit normals, float32 `[3, H, W]`; NaN where the depth is missing or the pixels around it do not span a plane.
    """
    height, width = depth.shape[-2:]
    scales = (height / KINECT_SIZE[0], width / KINECT_SIZE[1])
    focal_y, focal_x = (focal * scale for focal, scale in zip(KINECT_FOCAL, scales, strict=True))
    centre_y, centre_x = (
        (centre - 0.5) * scale - 0.5 for centre, scale in zip(KINECT_CENTRE, scales, strict=True)
    )  # pixel centres counted from 0
    z = depth.reshape(height, width).float()
    valid = z.isfinite() & (z > 0)
    z = torch.where(valid, z, torch.inf)
    inverse = 1 / z
    # Normal equations of q = a·dx + b·dy + c around each pixel: dx, dy the offsets divided by the focal length, q the
    # inverse depth less the middle pixel's. A row of the window shares its dy.
    sums = {name: torch.zeros_like(z) for name in ("1", "x", "y", "xx", "xy", "yy", "q", "xq", "yq")}
    for row in range(-radius, radius + 1):
        y = row / focal_y
        here_y, there_y = _overlap(height, row)
        middle, middle_inverse, near = z[here_y], inverse[here_y], tolerance * z[here_y]
        line = {name: torch.zeros_like(middle) for name in ("1", "x", "xx", "q", "xq")}
        for column in range(-radius, radius + 1):
            x = column / focal_x
            here, there = _overlap(width, column)
            # ∞ − ∞ is NaN, and NaN is not below anything.
            weight = ((z[there_y, there] - middle[:, here]).abs_() < near[:, here]).float()
            value = (inverse[there_y, there] - middle_inverse[:, here]).mul_(weight)
            line["1"][:, here] += weight
            line["x"][:, here].add_(weight, alpha=x)
            line["xx"][:, here].add_(weight, alpha=x * x)
            line["q"][:, here] += value
            line["xq"][:, here].add_(value, alpha=x)
        for name, part, factor in (
            ("1", "1", 1.0),
            ("x", "x", 1.0),
            ("xx", "xx", 1.0),
            ("q", "q", 1.0),
            ("xq", "xq", 1.0),
            ("y", "1", y),
            ("xy", "x", y),
            ("yy", "1", y * y),
            ("yq", "q", y),
        ):
            sums[name][here_y].add_(line[part], alpha=factor)
    count = sums["1"].clamp(min=1)
    mean_x, mean_y, mean_q = sums["x"] / count, sums["y"] / count, sums["q"] / count
    xx, xy, yy = (
        sums[name] / count - product
        for name, product in (("xx", mean_x * mean_x), ("xy", mean_x * mean_y), ("yy", mean_y * mean_y))
    )
    xq, yq = sums["xq"] / count - mean_x * mean_q, sums["yq"] / count - mean_y * mean_q
    determinant = xx * yy - xy * xy
    spanned = valid & (determinant > 1e-3 * (xx + yy) ** 2)
    safe = torch.where(spanned, determinant, 1.0)
    a, b = (yy * xq - xy * yq) / safe, (xx * yq - xy * xq) / safe
    c = inverse + mean_q - a * mean_x - b * mean_y
    # Back from offsets to positions in the picture: 1/z = a·x + b·y + (c − a·x₀ − b·y₀).
    rows = (torch.arange(height, dtype=z.dtype) - centre_y).reshape(-1, 1) / focal_y
    columns = (torch.arange(width, dtype=z.dtype) - centre_x) / focal_x
    normals = -torch.stack([a, b, c - a * columns - b * rows])
    normals = normals / torch.linalg.vector_norm(normals, dim=0)
    return torch.where(spanned, normals, torch.nan)


def _overlap(length: int, offset: int) -> tuple[slice, slice]:
    """The positions whose neighbour at `offset` exists, and those neighbours."""
    return slice(max(0, -offset), length - max(0, offset)), slice(max(0, offset), length - max(0, -offset))
