"""The embedded catalogue `sprites`: a white shape on black, similar to dSprites.

Five factors have 737,280 combinations. `sprites-colour` draws each shape in a random colour and
`sprites-noisy` puts it on noise; neither is a factor. As in dSprites, a square looks nearly the
same after a quarter turn, and an ellipse after half a turn.
"""

from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt

from adde.schema import Labels
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.catalogues.drawn.grids import Keys, Pictures, drawn_grid, numbers, schema_of
from adde.shards.catalogues.tables.tabular import TableOptions

VARIANTS = ("sprites", "sprites-colour", "sprites-noisy")
Mask = npt.NDArray[np.float32]

SHAPES = ("square", "ellipse", "heart")
SCALES = np.linspace(0.5, 1, 6)
TURNS = np.arange(40) * 360 / 41
"""Degrees. dSprites has both 0 and 360, which look the same; here no two turns of a shape do."""
POSITIONS = 32
SCHEMA = schema_of(
    {
        "shape": SHAPES,
        "scale": numbers(SCALES),
        "orientation": numbers(TURNS),
        "x": numbers(np.linspace(0, 1, POSITIONS)),
        "y": numbers(np.linspace(0, 1, POSITIONS)),
    }
)
SIDE = 64
SIZES = (SIDE // 2, SIDE, 2 * SIDE, 4 * SIDE)
"""Sides of a picture in pixels for which all steps of x and y are equal."""
PATCH = SIDE - POSITIONS + 1
"""Side of the square in which a shape turns, in a picture of side SIDE."""
SAMPLES = 8
"""Sample points per pixel along each side."""


def sprites(variant: str, options: TableOptions, items: int, seed: int, size: int) -> Catalogue:
    """Return a catalogue of sprites with `items` combinations; see `drawn_grid`."""
    draw = partial(render, variant=variant)
    return drawn_grid(
        variant, SCHEMA, draw, options, items=items, seed=seed, size=size, sizes=SIZES
    )


def render(
    labels: Labels, size: int, keys: Keys | None = None, variant: str = "sprites"
) -> Pictures:
    """Draw pictures (n, size, size, 3).

    Args:
        labels: (n, 5).
        size: Side in pixels, one of SIZES.
        keys: (n, 2) seeds of each picture's colour or noise; only `sprites` works without.
        variant: One of VARIANTS.
    """
    drawn = max(size, SIDE)  # steps are whole pixels only from SIDE on; smaller ones are averaged
    step = drawn // SIDE
    pictures = np.empty((len(labels), size, size, 3), np.uint8)
    for row, (shape, scale, turn, x, y) in enumerate(labels.tolist()):
        patch = mask(shape, scale, turn, step)
        covered = np.zeros((drawn, drawn), np.float32)
        covered[y * step : y * step + len(patch), x * step : x * step + len(patch)] = patch
        if size < SIDE:
            covered = covered.reshape(size, 2, size, 2).mean(axis=(1, 3))
        if variant == "sprites":
            pictures[row] = (covered * 255 + 0.5)[:, :, None]
            continue
        assert keys is not None
        rng = np.random.default_rng(keys[row])
        if variant == "sprites-colour":
            light = covered[:, :, None] * rng.uniform(0.5, 1, 3)
        else:
            light = np.maximum(covered[:, :, None], rng.random((size, size, 3)))
        pictures[row] = light * 255 + 0.5
    return pictures


@lru_cache(maxsize=len(SHAPES) * len(SCALES) * len(TURNS))
def mask(shape: int, scale: int, turn: int, step: int) -> Mask:
    """Return (P, P): the share of each pixel that a shape covers, with P = PATCH x step."""
    side = PATCH * step
    count = side * SAMPLES
    place = (2 * (np.arange(count) + 0.5) / count - 1) / SCALES[scale]
    angle = np.radians(TURNS[turn])
    across, down = place[None, :], place[:, None]
    x = np.cos(angle) * across + np.sin(angle) * down
    y = np.cos(angle) * down - np.sin(angle) * across
    inside = {
        "square": np.maximum(np.abs(x), np.abs(y)) <= 0.64,
        "ellipse": (x / 0.9) ** 2 + (y / 0.52) ** 2 <= 1,
        "heart": _heart(x / 0.72, 0.2 - y / 0.72),
    }[SHAPES[shape]]
    return inside.reshape(side, SAMPLES, side, SAMPLES).mean(axis=(1, 3), dtype=np.float32)


def _heart(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    return (x**2 + y**2 - 1) ** 3 <= x**2 * y**3
