"""3D Shapes: 480,000 pictures of 64 x 64 pixels, every combination of six factors once.

`3dshapes.h5` holds `images` (N, 64, 64, 3) uint8 and `labels` (N, 6) float64, in the order of
FACTORS. It is compressed across pictures, so that reading one at random unpacks thousands: the
pixels are written once, in order, to a plain array beside it, which worker processes map.
"""

import importlib
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from adde.errors import UserError, foreign
from adde.files import atomic_path
from adde.schema import Attribute, Schema
from adde.shards.catalogues.catalogue import Items
from adde.shards.catalogues.splits import require_items, splits_by_hash

FACTORS = ("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation")
BLOCK = 4096
"""Pictures that are unpacked at a time."""


@dataclass(frozen=True)
class Pixels:
    """One picture of the unpacked array."""

    array: Path
    row: int
    unpacked: int
    """Time of change of the array."""

    def read(self) -> tuple[bytes, str]:
        """The picture as PNG."""
        buffer = io.BytesIO()
        with foreign(f"{self.array}, row {self.row}", "the pixels of a picture"):
            Image.fromarray(_mapped(self.array)[self.row]).save(buffer, "PNG")
        return buffer.getvalue(), "png"

    def stamp(self) -> str:
        """Which array, and when it was written."""
        return repr(self)


@dataclass(frozen=True)
class PixelRows:
    """The pictures of the unpacked array."""

    array: Path
    unpacked: int

    def __call__(self, row: int) -> Pixels:
        """The picture of a row."""
        return Pixels(self.array, row, self.unpacked)


@lru_cache(maxsize=1)
def _mapped(path: Path) -> npt.NDArray[np.uint8]:
    return np.load(path, mmap_mode="r")


def read_shapes3d(path: Path, val_share: float, test_share: float) -> Items:
    """Reads 3dshapes.h5 as a catalogue; splits are drawn by a hash of the row's number.

    Raises:
        UserError: h5py is not installed, or the file is not what the module describes.
    """
    try:
        h5py: Any = importlib.import_module("h5py")
    except ImportError:
        raise UserError("3dshapes: expected h5py; pip install 'adde[train]'") from None
    if not path.is_file():
        raise UserError(f"3dshapes: expected a file, found none at {path}")
    with foreign(path, "3dshapes.h5"), h5py.File(path) as file:
        images, factors = file["images"], np.asarray(file["labels"], dtype=np.float64)
        if images.ndim != 4 or images.dtype != np.uint8 or factors.shape != (len(images), 6):
            raise UserError(
                f"{path}: expected images (N, side, side, 3) uint8 and labels (N, 6), found "
                f"{images.shape} {images.dtype} and {factors.shape}"
            )
        array = _unpack(path, images)
    columns = [np.unique(column, return_inverse=True) for column in factors.T]
    schema = Schema(
        tuple(
            Attribute(name, tuple(f"{value:.4g}" for value in values))
            for name, (values, _) in zip(FACTORS, columns)
        )
    )
    item_ids = [f"{row:06d}" for row in range(len(factors))]
    splits = splits_by_hash(item_ids, val_share, test_share)
    require_items(splits, val_share, test_share, str(path))
    labels = np.stack([inverse.reshape(-1) for _, inverse in columns], axis=1).astype(np.int64)
    rows = PixelRows(array, array.stat().st_mtime_ns)
    return Items("3dshapes", schema, item_ids, labels, splits, rows)


def _unpack(path: Path, images: Any) -> Path:
    """The pixels as a plain array beside the file, written unless it is there and newer."""
    array = path.with_suffix(".images.npy")
    if array.exists() and array.stat().st_mtime_ns >= path.stat().st_mtime_ns:
        return array
    with atomic_path(array) as temporary, temporary.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": images.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in tqdm(
            range(0, len(images), BLOCK), f"unpack {path.name}", unit="block", disable=None
        ):
            file.write(np.asarray(images[start : start + BLOCK]).tobytes())
    return array
