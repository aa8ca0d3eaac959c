"""Cars3D: one .mat file per car, with a picture of each elevation and azimuth."""

from pathlib import Path
from typing import Any

import numpy as np

from adde.errors import UserError, library, untrusted
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.catalogues.drawn.grids import (
    Pictures,
    all_combinations,
    grid_catalogue,
    numbered,
    schema_of,
)
from adde.shards.catalogues.public.pixel_array import unpacked
from adde.shards.catalogues.tables.tabular import TableOptions

ELEVATIONS, AZIMUTHS = 4, 24
VIEWS = ELEVATIONS * AZIMUTHS


def read_cars3d(folder: Path, options: TableOptions, size: int) -> Catalogue:
    """Read a folder of .mat files with `im` (height, width, 3, 24, 4).

    Raises:
        UserError: scipy is not installed, a file does not follow its authors' description, or see
            `grid_splits`.
    """
    files = sorted(folder.glob("*.mat"))
    if len(files) < 2:
        raise UserError(
            f"{folder}: expected a folder of .mat files, one for each car (data/cars of the "
            f"archive), found {len(files)}"
        )
    schema = schema_of(
        {
            "elevation": numbered(ELEVATIONS),
            "azimuth": numbered(AZIMUTHS),
            "car": [path.stem for path in files],
        }
    )
    # Within a file the elevation changes fastest.
    labels = all_combinations((len(files), AZIMUTHS, ELEVATIONS))[:, ::-1]
    shape = (len(labels), *_car(files[0]).shape[1:])
    blocks = (_car(path, shape[1:]) for path in files)
    source = unpacked(folder / "cars3d.images.npy", files, shape, blocks, size)
    return grid_catalogue("cars3d", schema, None, labels, source, options, str(folder))


def _car(path: Path, shape: tuple[int, ...] | None = None) -> Pictures:
    """Return the pictures (96, height, width, 3) of a car."""
    reader = library("scipy.io", "study")
    with untrusted(path, "a .mat file of a car"):
        found: Any = reader.loadmat(path).get("im")
    if found is None or found.dtype != np.uint8 or found.shape[2:] != (3, AZIMUTHS, ELEVATIONS):
        raise UserError(
            f"{path}: expected 'im' (height, width, 3, 24, 4) uint8, found "
            f"{None if found is None else (found.shape, str(found.dtype))}"
        )
    pictures: Pictures = found.transpose(3, 4, 0, 1, 2).reshape(VIEWS, *found.shape[:2], 3)
    if shape is not None and pictures.shape[1:] != shape:
        raise UserError(f"{path}: expected pictures {shape} as others, found {pictures.shape[1:]}")
    return pictures
