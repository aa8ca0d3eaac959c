"""SmallNORB: toys under exact poses and lights, published as six .mat files of its own format.

A category has ten toys, so every combination of the factors appears ten times. The toy is not a
factor.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adde.errors import UserError, untrusted
from adde.schema import Labels
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.catalogues.drawn.grids import Pictures, grid_splits, numbers, schema_of, sizes_of
from adde.shards.catalogues.public.pixel_array import blocks_of, unpacked
from adde.shards.catalogues.tables.splits import require_items, splits_by_hash
from adde.shards.catalogues.tables.tabular import TableOptions

PARTS = {"train": "5x46789x9x18x6x2x96x96-training", "test": "5x01235x9x18x6x2x96x96-testing"}
SCHEMA = schema_of(
    {
        "category": ("animal", "human", "plane", "truck", "car"),
        "elevation": numbers(np.arange(30.0, 75, 5)),
        "azimuth": numbers(np.arange(0.0, 360, 20)),
        "lighting": numbers(np.arange(6.0)),
    }
)
DTYPES = {0x1E3D4C55: np.dtype("<u1"), 0x1E3D4C54: np.dtype("<i4")}
"""Element type by the file's magic number."""


def read_smallnorb(folder: Path, options: TableOptions, size: int) -> Catalogue:
    """Read the six unzipped .mat files; of each stereo pair, use the left picture.

    The data set's own parts are the splits, with validation items drawn from training, unless
    combinations are held out.

    Raises:
        UserError: A file is missing or does not follow its authors' description, or see
            `grid_splits`.
    """
    parts = {part: _part(folder, name) for part, name in PARTS.items()}
    pictures = [pixels for pixels, _, _ in parts.values()]
    labels = np.concatenate([values for _, values, _ in parts.values()])
    item_ids = [
        f"{part}-{row:05d}-toy{toy}"
        for part, (_, _, toys) in parts.items()
        for row, toy in enumerate(toys.tolist())
    ]
    shape = (len(labels), *pictures[0].shape[1:])
    blocks = (block for part in pictures for block in blocks_of(part))
    files = [_path(folder, name, "dat") for name in PARTS.values()]
    source = unpacked(folder / "smallnorb.images.npy", files, shape, blocks, size)
    if options.hold_out:
        splits = grid_splits(SCHEMA, item_ids, labels, options, str(folder))
    else:
        drawn = splits_by_hash(item_ids, options.val_share, 0)
        own = [part for part, (_, values, _) in parts.items() for _ in values]
        splits = tuple("test" if part == "test" else split for part, split in zip(own, drawn))
        require_items(splits, options.val_share, options.test_share, str(folder))
    return Catalogue(
        "smallnorb", SCHEMA, item_ids, labels, splits, source, factors=sizes_of(SCHEMA)
    )


def _part(folder: Path, name: str) -> tuple[Pictures, Labels, Labels]:
    """Return the left pictures (N, height, width), labels (N, 4) and toys (N,) of one part."""
    paths = {kind: _path(folder, name, kind) for kind in ("dat", "cat", "info")}
    pairs, category, info = (_matrix(path) for path in paths.values())
    if pairs.ndim != 4 or pairs.shape[1] != 2 or pairs.dtype != np.uint8:
        raise UserError(
            f"{paths['dat']}: expected bytes (N, 2, height, width), found {pairs.dtype} "
            f"{pairs.shape}"
        )
    if category.size != len(pairs) or info.shape != (len(pairs), 4):
        raise UserError(
            f"{folder}: expected {len(pairs)} categories and rows of four in the info of {name}, "
            f"one per picture, found {category.shape} and {info.shape}"
        )
    toy, elevation, azimuth, lighting = info.astype(np.int64).T
    labels = np.stack([category.reshape(-1), elevation, azimuth // 2, lighting], axis=1)
    bad = np.argwhere((labels < 0) | (labels >= np.array(SCHEMA.sizes)))
    if len(bad):
        row, column = bad[0].tolist()
        raise UserError(
            f"{paths['info' if column else 'cat']}: expected {SCHEMA.names[column]} from 0 to "
            f"{SCHEMA.sizes[column] - 1}, found {labels[row, column]} at row {row}"
        )
    return pairs[:, 0], labels.astype(np.int64), toy


def _path(folder: Path, name: str, kind: str) -> Path:
    return folder / f"smallnorb-{name}-{kind}.mat"


def _matrix(path: Path) -> npt.NDArray[Any]:
    """Map a matrix; the authors' page describes the format."""
    if not path.is_file():
        hint = "; gunzip it first" if path.with_name(path.name + ".gz").exists() else ""
        raise UserError(f"{path}: expected a file of SmallNORB, found none{hint}")
    with untrusted(path, "a matrix of SmallNORB"):
        with path.open("rb") as file:
            magic, rank = np.frombuffer(file.read(8), "<i4").tolist()
            # The header holds at least three lengths, whatever the rank.
            shape = np.frombuffer(file.read(4 * max(3, rank)), "<i4")[:rank].tolist()
            start = file.tell()
        if magic not in DTYPES:
            raise ValueError(f"magic {magic:#x}, not one of {[*map(hex, DTYPES)]}")
        return np.memmap(path, DTYPES[magic], "r", start, tuple(shape))
