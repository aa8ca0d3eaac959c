"""Public sets of exact factors as their authors publish them: dSprites, Cars3D, SmallNORB, MPI3D.

Pixels are unpacked once to a plain array beside the files. Every combination of the factors is
there, in SmallNORB ten times: as many toys of each category, which is no factor.
"""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from adde.errors import UserError, library, untrusted
from adde.schema import Labels, Schema
from adde.shards.catalogues.catalogue import Items
from adde.shards.catalogues.grids import grid_splits, numbers, schema_of, sizes_of
from adde.shards.catalogues.pixel_array import BLOCK, PixelRows, unpacked
from adde.shards.catalogues.splits import require_items, splits_by_hash
from adde.shards.catalogues.tabular import TableOptions

Bytes = npt.NDArray[np.uint8]

DSPRITES = ("shape", "scale", "orientation", "x", "y")
DSPRITES_SHAPES = ("square", "ellipse", "heart")

CARS3D = {"elevation": 4, "azimuth": 24}

NORB_PARTS = {"train": "5x46789x9x18x6x2x96x96-training", "test": "5x01235x9x18x6x2x96x96-testing"}
NORB_SCHEMA = schema_of(
    {
        "category": ("animal", "human", "plane", "truck", "car"),
        "elevation": numbers(np.arange(30.0, 75, 5)),
        "azimuth": numbers(np.arange(0.0, 360, 20)),
        "lighting": numbers(np.arange(6.0)),
    }
)
NORB_TYPES = {0x1E3D4C55: np.dtype("<u1"), 0x1E3D4C54: np.dtype("<i4")}

MPI3D_REST = {"size": 2, "height": 3, "background": 3, "horizontal": 40, "vertical": 40}
MPI3D_COLOURS = (6, 4)
"""Numbers of colours and of shapes: of the first releases, and of the one of real objects."""


def read_dsprites(path: Path, options: TableOptions, size: int) -> Items:
    """dSprites: `imgs` (N, 64, 64) of 0 and 1 and `latents_classes` (N, 6) of an .npz.

    The first latent, a colour of one value, is left out.

    Raises:
        UserError: the file is not what its authors describe, or as of `grid_splits`.
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
                name: DSPRITES_SHAPES if name == "shape" else _numbered(int(column.max()) + 1)
                for name, column in zip(DSPRITES, labels.T)
            }
        )
        rows = _unpacked_member(archive, path, "imgs", len(labels), 2, size, times=255)
    told = "orientation: its first and its last value, 0 and a full turn, are the same pictures"
    return _grid("dsprites", schema, labels, rows, options, path, (told,))


def read_mpi3d(path: Path, options: TableOptions, size: int) -> Items:
    """MPI3D: `images` (N, side, side, 3) of an .npz, every combination in order of the factors.

    Raises:
        UserError: the file is not what its authors describe, or as of `grid_splits`.
    """
    with _archive(path, "MPI3D") as archive:
        count = _shape(archive, path, "images")[0]
        rest = int(np.prod([*MPI3D_REST.values()]))
        several = [number for number in MPI3D_COLOURS if number**2 * rest == count]
        if not several:
            valid = " or ".join(f"{number**2 * rest:,}" for number in MPI3D_COLOURS)
            raise UserError(f"{path}: expected {valid} pictures in 'images', found {count:,}")
        rows = _unpacked_member(archive, path, "images", count, 3, size)
    sizes = {"colour": several[0], "shape": several[0], **MPI3D_REST}
    schema = schema_of({name: _numbered(size) for name, size in sizes.items()})
    labels = np.stack(np.unravel_index(np.arange(count), schema.sizes), axis=1).astype(np.int64)
    return _grid("mpi3d", schema, labels, rows, options, path)


def read_cars3d(folder: Path, options: TableOptions, size: int) -> Items:
    """Cars3D: a folder of .mat files, one a car, with `im` (height, width, 3, 24, 4).

    Raises:
        UserError: scipy is not installed, a file is not what its authors describe, or as of
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
            **{name: _numbered(count) for name, count in CARS3D.items()},
            "car": tuple(path.stem for path in files),
        }
    )
    # In a file azimuths are slow and elevations fast.
    car, azimuth, elevation = np.unravel_index(np.arange(len(files) * 96), (len(files), 24, 4))
    labels = np.stack([elevation, azimuth, car], axis=1).astype(np.int64)
    shape = (len(labels), *_car(files[0]).shape[1:])
    blocks = (_car(path, shape[1:]) for path in files)
    rows = unpacked(folder / "cars3d.images.npy", files, shape, blocks, size)
    return _grid("cars3d", schema, labels, rows, options, folder)


def _car(path: Path, shape: tuple[int, ...] | None = None) -> Bytes:
    """Pictures (96, height, width, 3) of a car."""
    reader = library("scipy.io", "study")
    with untrusted(path, "a .mat file of a car"):
        found: Any = reader.loadmat(path).get("im")
    if found is None or found.dtype != np.uint8 or found.shape[2:] != (3, 24, 4):
        raise UserError(
            f"{path}: expected 'im' (height, width, 3, 24, 4) uint8, found "
            f"{None if found is None else (found.shape, str(found.dtype))}"
        )
    pictures: Bytes = found.transpose(3, 4, 0, 1, 2).reshape(96, *found.shape[:2], 3)
    if shape is not None and pictures.shape[1:] != shape:
        raise UserError(f"{path}: expected pictures {shape} as others, found {pictures.shape[1:]}")
    return pictures


def read_smallnorb(folder: Path, options: TableOptions, size: int) -> Items:
    """SmallNORB: the six .mat files of the training and the testing part, unzipped.

    The left picture of each pair. Its own parts are the splits, validation items drawn from
    training, unless combinations are held out.

    Raises:
        UserError: a file is missing or is not what its authors describe, or as of `grid_splits`.
    """
    parts = {part: _norb_part(folder, name) for part, name in NORB_PARTS.items()}
    pictures = [pixels for pixels, _, _ in parts.values()]
    labels = np.concatenate([values for _, values, _ in parts.values()])
    item_ids = [
        f"{part}-{row:05d}-toy{toy}"
        for part, (_, _, toys) in parts.items()
        for row, toy in enumerate(toys.tolist())
    ]
    shape = (len(labels), *pictures[0].shape[1:])
    blocks = (block for part in pictures for block in _blocks(part))
    files = [_norb_path(folder, name, "dat") for name in NORB_PARTS.values()]
    rows = unpacked(folder / "smallnorb.images.npy", files, shape, blocks, size)
    if options.hold_out:
        splits = grid_splits(NORB_SCHEMA, item_ids, labels, options, str(folder))
    else:
        drawn = splits_by_hash(item_ids, options.val_share, 0)
        own = [part for part, (_, values, _) in parts.items() for _ in values]
        splits = tuple("test" if part == "test" else split for part, split in zip(own, drawn))
        require_items(splits, options.val_share, options.test_share, str(folder))
    return Items(
        "smallnorb", NORB_SCHEMA, item_ids, labels, splits, rows, factors=sizes_of(NORB_SCHEMA)
    )


def _norb_part(folder: Path, name: str) -> tuple[Bytes, Labels, Labels]:
    """Left pictures (N, height, width), labels (N, 4) and toys (N,) of one part."""
    paths = {kind: _norb_path(folder, name, kind) for kind in ("dat", "cat", "info")}
    pairs, category, info = (_norb_matrix(path) for path in paths.values())
    if pairs.ndim != 4 or pairs.shape[1] != 2 or pairs.dtype != np.uint8:
        raise UserError(
            f"{paths['dat']}: expected bytes (N, 2, height, width), found {pairs.dtype} "
            f"{pairs.shape}"
        )
    if category.size != len(pairs) or info.shape != (len(pairs), 4):
        raise UserError(
            f"{folder}: expected {len(pairs)} categories and infos of four of {name}, as pictures, "
            f"found {category.shape} and {info.shape}"
        )
    toy, elevation, azimuth, lighting = info.astype(np.int64).T
    labels = np.stack([category.reshape(-1), elevation, azimuth // 2, lighting], axis=1)
    bad = np.argwhere((labels < 0) | (labels >= np.array(NORB_SCHEMA.sizes)))
    if len(bad):
        row, column = bad[0].tolist()
        raise UserError(
            f"{paths['info' if column else 'cat']}: expected {NORB_SCHEMA.names[column]} from 0 to "
            f"{NORB_SCHEMA.sizes[column] - 1}, found {labels[row, column]} at row {row}"
        )
    return pairs[:, 0], labels.astype(np.int64), toy


def _norb_path(folder: Path, name: str, kind: str) -> Path:
    return folder / f"smallnorb-{name}-{kind}.mat"


def _norb_matrix(path: Path) -> npt.NDArray[Any]:
    """A matrix as the authors' page describes its format, mapped."""
    if not path.is_file():
        hint = "; gunzip it first" if path.with_name(path.name + ".gz").exists() else ""
        raise UserError(f"{path}: expected a file of SmallNORB, found none{hint}")
    with untrusted(path, "a matrix of SmallNORB"):
        with path.open("rb") as file:
            magic, rank = np.frombuffer(file.read(8), "<i4").tolist()
            # At least three lengths are written, whatever the rank.
            shape = np.frombuffer(file.read(4 * max(3, rank)), "<i4")[:rank].tolist()
            start = file.tell()
        if magic not in NORB_TYPES:
            raise ValueError(f"magic {magic:#x}, not one of {[*map(hex, NORB_TYPES)]}")
        return np.memmap(path, NORB_TYPES[magic], "r", start, tuple(shape))


def _grid(
    name: str,
    schema: Schema,
    labels: Labels,
    rows: PixelRows,
    options: TableOptions,
    source: Path,
    notices: tuple[str, ...] = (),
) -> Items:
    ids = [f"{row:07d}" for row in range(len(labels))]
    splits = grid_splits(schema, ids, labels, options, str(source))
    return Items(name, schema, ids, labels, splits, rows, notices, sizes_of(schema))


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


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
) -> PixelRows:
    """Pictures of an archive's array of `count` pictures; `rank` 2 is grey, 3 is RGB."""
    shape = _shape(archive, path, name)
    if len(shape) != rank + 1 or shape[0] != count or (rank == 3 and shape[3] != 3):
        raise UserError(
            f"{path}: expected {name!r} ({count}, height, width{', 3' if rank == 3 else ''}), "
            f"found {shape}"
        )

    def blocks() -> Iterator[Bytes]:
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


def _blocks(pictures: Bytes) -> Iterator[Bytes]:
    for start in range(0, len(pictures), BLOCK):
        yield pictures[start : start + BLOCK]
