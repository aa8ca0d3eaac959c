"""The embedded catalogue `rooms`: an object in a coloured room, similar to 3D Shapes.

Six factors have 480,000 combinations. A picture is linear in the colours of floor, wall and object.
So each of the 480 geometries (scale, shape, orientation) is ray-traced once, into the brightness of
these three surfaces per pixel, and a picture is one product of brightness and colours.
"""

import colorsys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from adde.schema import Labels
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.catalogues.drawn.grids import Keys, Pictures, drawn_grid, numbers, schema_of
from adde.shards.catalogues.tables.tabular import TableOptions

Array = npt.NDArray[np.floating[Any]]
Hit = tuple[Array, Array]
"""Distances (n,) along rays, infinite where a ray misses, and normals (3, n) at the hits."""

HUES = np.arange(10) / 10
SCALES = np.linspace(0.75, 1.25, 8)
SHAPES = ("cube", "cylinder", "sphere", "capsule")
ORIENTATIONS = np.linspace(-30, 30, 15)
SCHEMA = schema_of(
    {
        "floor_hue": numbers(HUES),
        "wall_hue": numbers(HUES),
        "object_hue": numbers(HUES),
        "scale": numbers(SCALES),
        "shape": SHAPES,
        "orientation": numbers(ORIENTATIONS),
    }
)
SIZES = range(16, 257)
"""Sides of a picture in pixels."""

SAMPLES = 4
"""Rays per pixel along each side."""

WALL = 5.0
"""Half the width of the room."""
CAMERA, TARGET, FIELD = (4.6, 2.6), 0.8, 58.0
"""Distance and height of the camera, height it points at, and field of view in degrees."""
TURN = 0.35
"""Rotation of a cube in radians, so that every view shows two faces."""
LIGHT = np.array((-0.45, -0.55, 0.95), np.float32) / np.float32(1.1874)
AMBIENT, DIFFUSE, SHADOW = 0.42, 0.58, 0.45
"""Brightness is AMBIENT + DIFFUSE x cosine of the angle to the light; shadow multiplies it by
SHADOW."""
NEAR = np.float32(1e-3)

COLOURS = np.array([colorsys.hsv_to_rgb(hue, 0.85, 1) for hue in HUES], np.float32) * 255


def rooms(options: TableOptions, items: int, seed: int, size: int) -> Catalogue:
    """Return the catalogue `rooms` with `items` combinations; see `drawn_grid`."""
    return drawn_grid(
        "rooms", SCHEMA, render, options, items=items, seed=seed, size=size, sizes=SIZES
    )


def render(labels: Labels, size: int, keys: Keys | None = None) -> Pictures:
    """Draw pictures (n, size, size, 3) of labels (n, 6). Nothing is random, so `keys` is unused."""
    pictures = np.empty((len(labels), size, size, 3), np.uint8)
    buffer = np.empty((size * size, 3), np.float32)
    for picture, (floor, wall, thing, *geometry) in zip(pictures, labels.tolist()):
        np.matmul(brightness(*geometry, size), COLOURS[[floor, wall, thing]], out=buffer)
        buffer += 0.5
        picture[...] = buffer.reshape(picture.shape)
    return pictures


@lru_cache(maxsize=len(SCALES) * len(SHAPES) * len(ORIENTATIONS))
def brightness(scale: int, shape: int, orientation: int, size: int) -> Array:
    """Return (size x size, 3): share of floor, wall and object in each pixel, times brightness."""
    origin, rays, distance, material, lit = _room(orientation, size)
    thing = _objects(float(SCALES[scale]))[SHAPES[shape]]
    met, normal = thing(origin, rays)
    seen = met < distance
    # The floor is in shadow where the object blocks the light.
    floor = np.flatnonzero((material == 0) & ~seen)
    shaded = np.isfinite(thing(origin + rays[:, floor] * distance[floor], LIGHT[:, None])[0])
    lit = lit.copy()
    lit[floor[shaded]] *= SHADOW
    lit[seen] = _lambert(normal[:, seen])
    material = np.where(seen, 2, material)
    # Average the SAMPLES x SAMPLES rays of each pixel.
    shares = (material[:, None] == np.arange(3)) * lit[:, None]
    cells = shares.reshape(size, SAMPLES, size, SAMPLES, 3).mean(axis=(1, 3), dtype=np.float32)
    return np.ascontiguousarray(cells.reshape(-1, 3))


@lru_cache(maxsize=len(ORIENTATIONS))
def _room(orientation: int, size: int) -> tuple[Array, Array, Array, npt.NDArray[np.int8], Array]:
    """Return the empty room: camera (3, 1), rays (3, n), distances (n,), material (n,), light (n,).

    Material is 0 for floor and 1 for wall.
    """
    angle = np.radians(ORIENTATIONS[orientation])
    away, height = CAMERA
    origin = np.array([away * np.sin(angle), -away * np.cos(angle), height])
    ahead = np.array([0, 0, TARGET]) - origin
    ahead /= np.linalg.norm(ahead)
    right = np.cross(ahead, [0, 0, 1])
    right /= np.linalg.norm(right)
    count = size * SAMPLES
    place = (2 * (np.arange(count) + 0.5) / count - 1) * np.tan(np.radians(FIELD / 2))
    rays = ahead[:, None] + right[:, None] * np.tile(place, count)
    rays = rays - np.cross(right, ahead)[:, None] * np.repeat(place, count)
    rays = (rays / np.linalg.norm(rays, axis=0)).astype(np.float32)
    origin = origin.astype(np.float32)[:, None]
    with np.errstate(divide="ignore"):
        to_walls = np.where(rays[:2] > 0, WALL - origin[:2], -WALL - origin[:2]) / rays[:2]
        to_floor = np.where(rays[2] < 0, -origin[2] / rays[2], np.inf)
    distances = np.vstack([to_floor, to_walls]).astype(np.float32)
    nearest = distances.argmin(axis=0)
    normals = np.zeros_like(rays)
    normals[2, nearest == 0] = 1
    for axis in range(2):
        there = nearest == axis + 1
        normals[axis, there] = -np.sign(rays[axis, there])
    material = np.minimum(nearest, 1).astype(np.int8)
    return origin, rays, distances.min(axis=0), material, _lambert(normals)


def _lambert(normals: Array) -> Array:
    return np.float32(AMBIENT) + np.float32(DIFFUSE) * np.maximum(0, LIGHT @ normals)


def _objects(scale: float) -> dict[str, Callable[[Array, Array], Hit]]:
    """Return each shape's intersection function of origins and directions (3, n or 1)."""
    radius, height = np.float32(0.85 * scale), np.float32(1.75 * scale)
    slim, tall = np.float32(0.62 * scale), np.float32(2.3 * scale)
    return {
        "cube": lambda o, d: _cube(o, d, np.float32(0.8 * scale)),
        "cylinder": lambda o, d: _nearest(
            _tube(o, d, radius, np.float32(0), height), _disc(o, d, radius, height)
        ),
        "sphere": lambda o, d: _sphere(o, d, np.float32(scale), np.float32(scale)),
        "capsule": lambda o, d: _nearest(
            _tube(o, d, slim, slim, tall - slim),
            _nearest(_sphere(o, d, slim, slim), _sphere(o, d, slim, tall - slim)),
        ),
    }


def _sphere(origin: Array, rays: Array, radius: np.float32, height: np.float32) -> Hit:
    """Intersect a sphere above the middle of the floor."""
    start = origin - np.array([[0], [0], [height]], np.float32)
    ahead = (rays * start).sum(axis=0)
    inside = ahead**2 - (start**2).sum(axis=0) + radius**2
    distance = _or_miss(-ahead - np.sqrt(np.maximum(inside, 0)), inside > 0)
    return distance, (start + rays * _finite(distance)) / radius


def _tube(origin: Array, rays: Array, radius: np.float32, low: np.float32, high: np.float32) -> Hit:
    """Intersect the side of an upright cylinder."""
    level = (rays[:2] ** 2).sum(axis=0)
    ahead = (rays[:2] * origin[:2]).sum(axis=0)
    inside = ahead**2 - level * ((origin[:2] ** 2).sum(axis=0) - radius**2)
    distance = (-ahead - np.sqrt(np.maximum(inside, 0))) / np.maximum(level, NEAR**2)
    height = origin[2] + distance * rays[2]
    distance = _or_miss(distance, (inside > 0) & (height >= low) & (height <= high))
    normal = (origin + rays * _finite(distance)) / radius
    normal[2] = 0
    return distance, normal


def _disc(origin: Array, rays: Array, radius: np.float32, height: np.float32) -> Hit:
    """Intersect the top of a cylinder, from above."""
    with np.errstate(divide="ignore"):
        distance = (height - origin[2]) / np.where(rays[2] < 0, rays[2], np.float32(np.nan))
    met = origin[:2] + rays[:2] * distance
    distance = _or_miss(distance, (met**2).sum(axis=0) <= radius**2)
    normal = np.zeros((3, len(distance)), np.float32)
    normal[2] = 1
    return distance, normal


def _cube(origin: Array, rays: Array, half: np.float32) -> Hit:
    """Intersect a cube on the floor, rotated by TURN."""
    cosine, sine = np.cos(TURN), np.sin(TURN)
    turn = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]], np.float32)
    start = turn @ (origin - np.array([[0], [0], [half]], np.float32))
    rays = turn @ rays
    rays = np.where(np.abs(rays) < 1e-9, np.float32(1e-9), rays)
    enter = (-np.sign(rays) * half - start) / rays
    leave = (np.sign(rays) * half - start) / rays
    side = enter.argmax(axis=0)
    distance = _or_miss(enter.max(axis=0), enter.max(axis=0) < leave.min(axis=0))
    normal = np.where(np.arange(3)[:, None] == side, -np.sign(rays), np.float32(0))
    return distance, turn.T @ normal


def _nearest(one: Hit, other: Hit) -> Hit:
    first = one[0] <= other[0]
    return np.where(first, one[0], other[0]), np.where(first, one[1], other[1])


def _or_miss(distance: Array, met: npt.NDArray[np.bool_]) -> Array:
    """Keep distances in front of the rays' origins; misses become infinite."""
    return np.where(met & (distance > NEAR), distance, np.float32(np.inf))


def _finite(distance: Array) -> Array:
    return np.where(np.isfinite(distance), distance, np.float32(0))
