"""dSprites and MPI3D: exact factors, all combinations, published as .npz archives."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from adde.errors import UserError, untrusted
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.catalogues.drawn.grids import (
    Pictures,
    Source,
    all_combinations,
    grid_catalogue,
    numbered,
    schema_of,
)
from adde.shards.catalogues.public.pixel_array import BLOCK, unpacked
from adde.shards.catalogues.tables.tabular import TableOptions

DSPRITES = ("shape", "scale", "orientation", "x", "y")
DSPRITES_SHAPES = ("square", "ellipse", "heart")
DSPRITES_NOTICE = (
    "orientation: its first and its last value, 0 and a full turn, are the same pictures"
)

MPI3D_REST = {"size": 2, "height": 3, "background": 3, "horizontal": 40, "vertical": 40}
MPI3D_COLOURS = (6, 4)
"""Number of colours, and of shapes: in the first releases, and in the one of real objects."""


def read_dsprites(path: Path, options: TableOptions, size: int) -> Catalogue:
    """Read dSprites: `imgs` (N, 64, 64) of 0 and 1 and `latents_classes` (N, 6) of an .npz.

    The first latent is left out: it is a colour with a single value.

    Raises:
        UserError: The file does not follow its authors' description, or see `grid_splits`.
    """
    with _archive(path, "dSprites") as archive:
        classes = _member(archive, path, "latents_classes").astype(np.int64)
        if classes.ndim != 2 or classes.shape[1] != 6 or classes[:, 0].any():
            raise UserError(
                f"{path}: expected latents_classes (N, 6) whose first is 0, a colour of one "
                f"value, found {classes.shape}"
            )
        labels = classes[:, 1:]
        schema = schema_of(
            {
                name: DSPRITES_SHAPES if name == "shape" else numbered(int(column.max()) + 1)
                for name, column in zip(DSPRITES, labels.T)
            }
        )
        source = _unpacked_member(archive, path, "imgs", len(labels), 2, size, times=255)
    notices = (DSPRITES_NOTICE,)
    return grid_catalogue("dsprites", schema, None, labels, source, options, str(path), notices)


def read_mpi3d(path: Path, options: TableOptions, size: int) -> Catalogue:
    """Read MPI3D: `images` (N, side, side, 3) of an .npz, all combinations in order.

    Raises:
        UserError: The file does not follow its authors' description, or see `grid_splits`.
    """
    with _archive(path, "MPI3D") as archive:
        count = _shape(archive, path, "images")[0]
        rest = int(np.prod([*MPI3D_REST.values()]))
        several = [number for number in MPI3D_COLOURS if number**2 * rest == count]
        if not several:
            valid = " or ".join(f"{number**2 * rest:,}" for number in MPI3D_COLOURS)
            raise UserError(f"{path}: expected {valid} pictures in 'images', found {count:,}")
        source = _unpacked_member(archive, path, "images", count, 3, size)
    sizes = {"colour": several[0], "shape": several[0], **MPI3D_REST}
    schema = schema_of({name: numbered(size) for name, size in sizes.items()})
    labels = all_combinations(schema.sizes)
    return grid_catalogue("mpi3d", schema, None, labels, source, options, str(path))


def _archive(path: Path, name: str) -> zipfile.ZipFile:
    if not path.is_file():
        raise UserError(f"{path}: expected the .npz of {name}, found no file")
    with untrusted(path, f"the .npz of {name}"):
        return zipfile.ZipFile(path)


def _member(archive: zipfile.ZipFile, path: Path, name: str) -> npt.NDArray[Any]:
    with untrusted(path, f"an array {name!r}"), _opened(archive, path, name) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _shape(archive: zipfile.ZipFile, path: Path, name: str) -> tuple[int, ...]:
    with untrusted(path, f"an array {name!r} of bytes"), _opened(archive, path, name) as file:
        shape, in_columns, dtype = _header(file)
        if in_columns or dtype != np.uint8:
            raise ValueError(f"{dtype}, by columns: {in_columns}")
        return shape


def _opened(archive: zipfile.ZipFile, path: Path, name: str) -> IO[bytes]:
    if f"{name}.npy" not in archive.namelist():
        found = [re.sub(r"\.npy$", "", member) for member in archive.namelist()]
        raise UserError(f"{path}: expected an array {name!r}, found {found}")
    return archive.open(f"{name}.npy")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _unpacked_member(
    archive: zipfile.ZipFile,
    path: Path,
    name: str,
    count: int,
    rank: int,
    size: int,
    times: int = 1,
) -> Source:
    """Return the `count` pictures of an archive's array; `rank` 2 is grey, 3 is RGB."""
    shape = _shape(archive, path, name)
    if len(shape) != rank + 1 or shape[0] != count or (rank == 3 and shape[3] != 3):
        raise UserError(
            f"{path}: expected {name!r} ({count}, height, width{', 3' if rank == 3 else ''}), "
            f"found {shape}"
        )

    def blocks() -> Iterator[Pictures]:
        picture = int(np.prod(shape[1:]))
        with untrusted(path, f"the pixels of {name!r}"), _opened(archive, path, name) as file:
            _header(file)
            for start in range(0, count, BLOCK):
                length = min(BLOCK, count - start) * picture
                content = file.read(length)
                if len(content) != length:
                    raise ValueError(f"the end after {start * picture + len(content):,} bytes")
                yield np.frombuffer(content, np.uint8).reshape(-1, *shape[1:]) * np.uint8(times)

    return unpacked(path.with_suffix(".images.npy"), [path], shape, blocks(), size)
