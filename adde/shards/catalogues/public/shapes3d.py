"""3D Shapes: 480,000 pictures of 64 x 64 pixels, every combination of six factors once.

`3dshapes.h5` holds `images` (N, 64, 64, 3) uint8 and `labels` (N, 6) float64, in the order of
FACTORS.
"""

from pathlib import Path
from typing import Any

import numpy as np

from adde.errors import UserError, library, untrusted
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.catalogues.drawn.grids import grid_catalogue, numbers, schema_of
from adde.shards.catalogues.public.pixel_array import blocks_of, unpacked
from adde.shards.catalogues.tables.tabular import TableOptions

FACTORS = ("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation")


def read_shapes3d(path: Path, options: TableOptions, size: int) -> Catalogue:
    """Read 3dshapes.h5 as a catalogue; item ids are row numbers.

    Raises:
        UserError: h5py is not installed, the file does not follow the module's description, or see
            `grid_splits`.
    """
    h5py = library("h5py", "train")
    if not path.is_file():
        raise UserError(f"3dshapes: expected a file, found none at {path}")
    with untrusted(path, "3dshapes.h5"), h5py.File(path) as file:
        images: Any = file["images"]
        factors = np.asarray(file["labels"], dtype=np.float64)
        if images.ndim != 4 or images.dtype != np.uint8 or factors.shape != (len(images), 6):
            raise UserError(
                f"{path}: expected images (N, side, side, 3) uint8 and labels (N, 6), found "
                f"{images.shape} {images.dtype} and {factors.shape}"
            )
        array = path.with_suffix(".images.npy")
        source = unpacked(array, [path], images.shape, blocks_of(images), size)
    columns = [np.unique(column, return_inverse=True) for column in factors.T]
    schema = schema_of({name: numbers(values) for name, (values, _) in zip(FACTORS, columns)})
    labels = np.stack([inverse.reshape(-1) for _, inverse in columns], axis=1).astype(np.int64)
    item_ids = [f"{row:06d}" for row in range(len(factors))]
    return grid_catalogue("3dshapes", schema, item_ids, labels, source, options, str(path))
